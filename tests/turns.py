"""Tests that measure time run while no other test does, also where several processes share the tests out.

A readers-writer lock over files: a test marked `alone` holds it by itself, all others share it; whoever waits is next.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """Wait for a turn, alone or beside others, and hold it until the end of the block."""
    with (folder / "next").open("w") as waiting, (folder / "running").open("w") as running:
        fcntl.flock(waiting, fcntl.LOCK_EX)  # whoever waits to be alone lets nobody pass
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(waiting, fcntl.LOCK_UN)
        yield
