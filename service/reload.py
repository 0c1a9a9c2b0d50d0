"""A new bundle takes over from the old one while requests go on, or is refused and the old one stays.

The new bundle is read, verified, loaded, warmed and checked in a thread beside the old one; then requests that come
from that moment on meet the new one, and those under way end with what they began with. It knows neither ONNX nor
HTTP: what loads and what swaps is given to it.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from service.detector import Detector
from service.exhibits import Exhibits
from service.metrics import Metrics
from service.model import Model
from service.threads import in_a_thread_of_its_own

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 300.0
"""Seconds until a watched bundle that was refused is tried again."""


class Loaded(NamedTuple):
    """A bundle in memory, ready to serve."""

    model: Model | Detector
    exhibits: Exhibits


class Reloader:
    """Reloads on request, one at a time; a request during a reload has another one follow.

    Args:
        load: reads the bundle anew, unless its version is the one given: then None.
        swap: takes over what was loaded.
        version: of what is served now.
        metrics: where to count.
    """

    def __init__(
        self,
        load: Callable[[str], Loaded | None],
        swap: Callable[[Loaded], None],
        *,
        version: str,
        metrics: Metrics,
    ) -> None:
        self._load = load
        self._swap = swap
        self._version = version
        self._metrics = metrics
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._refused_at: float | None = None  # the bundle as it is now
        self._logged = ""

    def request(self) -> None:
        """Begin a reload; call it on the event loop."""
        self._logged = ""  # whoever asks is told, also what was told before
        if self._task is not None:
            logger.info("a reload is under way; another follows it")
        self._begin()

    def _begin(self) -> None:
        if self._task is not None:
            self._again = True
            return
        self._task = asyncio.get_running_loop().create_task(self._reload())
        self._task.add_done_callback(self._ended)

    def _ended(self, _: "asyncio.Task[None]") -> None:
        self._task = None
        if self._again:
            self._again = False
            self._begin()

    async def _reload(self) -> None:
        self._refused_at = None
        try:
            loaded = await in_a_thread_of_its_own(self._load, self._version)
        except Exception as error:  # whatever it is, the old one serves
            self._refuse(str(error))
            return
        if loaded is None:
            logger.info("the bundle is still %s", self._version)
            self._metrics.reloads.labels("unchanged").inc()
            return
        try:
            self._swap(loaded)
        except Exception as error:
            self._refuse(str(error))
            return
        before, self._version = self._version, loaded.model.manifest.version
        logger.info("%s takes over from %s", self._version, before)
        self._metrics.reloads.labels("swapped").inc()

    def _refuse(self, reason: str) -> None:
        self._refused_at = asyncio.get_running_loop().time()
        self._metrics.reloads.labels("refused").inc()
        if reason != self._logged:
            logger.error("the bundle is refused, and %s stays: %s", self._version, reason)
            self._logged = reason

    async def watch(self, bundle: Path, interval: float) -> None:
        """Request a reload when the bundle's files have changed and then stayed the same for one interval.

        One that was refused is tried again though its files stay the same, as memory, a device or a disk may have been
        the reason: after one interval, after two more, after four more and so on.
        """
        loop = asyncio.get_running_loop()
        tried = seen = await asyncio.to_thread(signature, bundle)
        pause = interval
        while True:
            await asyncio.sleep(interval)
            before, seen = seen, await asyncio.to_thread(signature, bundle)
            if seen is None or seen != before:
                continue
            if seen != tried:
                tried, pause = seen, interval
                self.request()
            elif self._refused_at is not None and loop.time() >= self._refused_at + pause:
                pause = max(interval, min(2 * pause, _LONGEST_PAUSE))
                self._begin()


def signature(bundle: Path) -> tuple[tuple[str, int, int, int, int], ...] | None:
    """Return what changes when a file of the bundle does, or who may read it; None while there is no such folder.

    Times of writing and sizes can be the same in another file; not so the times that the system notes by itself.
    """
    try:
        files = [(entry.name, entry.stat()) for entry in sorted(bundle.iterdir())]
    except OSError:
        return None
    return tuple((name, stat.st_mtime_ns, stat.st_size, stat.st_ctime_ns, stat.st_ino) for name, stat in files)
