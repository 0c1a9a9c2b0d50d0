"""What the command line shows to people without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class TrainerError(Exception):
    """A fault in what was asked for; the message names the field, the value and the remedy."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full disk, or a folder that cannot be written, into a ``TrainerError`` that names the folder."""
    try:
        yield
    except OSError as error:
        raise TrainerError(
            f"{folder}: cannot be written ({error.strerror}); free space there, or use another folder"
        ) from error
