"""One run to a folder at a time. Knows no training.

The lock belongs to the process and goes with it, however it ends: a file that is left behind locks nothing.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from trainer.errors import TrainerError, writing

LOCK_FILE = "run.lock"
PATIENCE = 10.0
"""Seconds that one waits: worker processes of a run that was killed hold its lock until they notice."""


@contextmanager
def sole_run(folder: Path) -> Iterator[None]:
    """Hold the folder until the end of the block.

    Raises:
        TrainerError: another process trains into it.
    """
    file = folder / LOCK_FILE
    lock = FileLock(file, timeout=PATIENCE)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise TrainerError(
                f"--output {folder}: {_holder(file)} trains into it; wait for its end, or name another folder"
            ) from error
        holder = file.with_suffix(".holder")
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _holder(file: Path) -> str:
    try:
        return file.with_suffix(".holder").read_text() or "another process"
    except OSError:
        return "another process"
