"""How the process ends: at a signal before the server hears any, and without waiting for what hangs.

It imports nothing that takes long: until signals are heard, the first process of a container never gets its SIGTERM,
and SIGHUP ends any other.
"""

import logging
import os
import signal
from pathlib import Path
from types import FrameType
from typing import NoReturn

logger = logging.getLogger(__name__)


class EarlySignals:
    """Hears the signals until the server does: SIGTERM and SIGINT end the process, SIGHUP is remembered.

    Attributes:
        hung_up: SIGHUP has come, and the bundle may have been read before it changed.
    """

    def __init__(self) -> None:
        self.hung_up = False
        self._had_terminal = False

    def hear(self) -> None:
        """Begin; to be called in the main thread, and more than once does no harm."""
        self._had_terminal = _has_terminal()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.end)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, self._hang_up)

    def lost_terminal(self) -> bool:
        """Return whether the terminal that the process was started from is closed."""
        return self._had_terminal and not _has_terminal()

    def end(self, number: int, frame: FrameType | None) -> NoReturn:
        """Say so and end the process: nothing was accepted yet."""
        logger.warning("%s came before the service had started: it ends", signal.Signals(number).name)
        leave()

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        if self.lost_terminal():
            self.end(number, frame)
        self.hung_up = True


early = EarlySignals()
"""Those of this process."""


def leave() -> NoReturn:
    """End the process with 0 at once: what hangs in a thread, such as a run of the model, is not waited for."""
    logging.shutdown()
    os._exit(0)


def _has_terminal() -> bool:
    try:
        with Path("/dev/tty").open("rb", buffering=0):
            return True
    except OSError:
        return False
