"""Work that goes on beside the requests, in a thread of its own. It knows nothing of the work."""

import logging
import threading
from collections.abc import Callable

from service.errors import StoreUnavailable

logger = logging.getLogger(__name__)


class Background:
    """Does some work every so often, until it is stopped; what goes wrong is logged, and the work goes on.

    Args:
        name: of the thread, and in the log.
        interval: seconds from the end of one time to the beginning of the next.
        work: what to do.
        at_the_end: do it once more when it is stopped.
    """

    def __init__(self, name: str, interval: float, work: Callable[[], None], *, at_the_end: bool = False) -> None:
        self._name, self._interval, self._work = name, interval, work
        self._at_the_end = at_the_end
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._failing: type[Exception] | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End soon, after what is under way."""
        self._stopped.set()

    def join(self, timeout: float) -> bool:
        """Return whether it has ended, after at most so many seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def once(self) -> None:
        """Do the work now, in the caller's thread."""
        try:
            self._work()
        except StoreUnavailable as error:
            if self._failing is not type(error):  # once, not every time
                logger.warning("%s: %s", self._name, error)
            self._failing = type(error)
        except Exception as error:
            if self._failing is not type(error):
                logger.exception("%s failed", self._name)
            self._failing = type(error)
        else:
            if self._failing is not None:
                logger.warning("%s: it works again", self._name)
            self._failing = None

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            self.once()
        if self._at_the_end:
            self.once()
