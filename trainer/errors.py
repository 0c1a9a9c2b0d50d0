"""What the command line shows to people without a traceback."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
PICTURES = (".png", ".svg", ".pdf")
"""Endings of the files that figures are drawn into."""


class TrainerError(Exception):
    """A fault in what was asked for; the message names the field, the value and the remedy.

    What is not printable, such as a terminal's control sequences in a name out of a file, is escaped.

    Example:
        >>> print(TrainerError("unexpected: \\x1b[31mred"))
        unexpected: \\x1b[31mred
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in message))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full disk, or a folder that cannot be written, into a ``TrainerError`` that names the folder."""
    try:
        yield
    except OSError as error:
        remedy = "free space there, or use another folder" if error.errno in FULL else "use another folder"
        raise TrainerError(f"{folder}: cannot be written ({error.strerror}); {remedy}") from error


@contextmanager
def writing_figure(file: Path) -> Iterator[None]:
    """Make the folder of a figure's file, and turn what keeps it from being written into a ``TrainerError``."""
    if file.is_dir():
        raise TrainerError(f"--output {file}: is a folder; name a file in it, such as {file / 'figure.png'}")
    if file.suffix.lower() not in PICTURES:
        raise TrainerError(f"--output {file}: the name must end in {', '.join(PICTURES)}")
    with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        yield
