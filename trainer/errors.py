"""What the command line shows to people without a traceback."""


class TrainerError(Exception):
    """A fault in what was asked for; the message names the field, the value and the remedy."""
