"""Notices that the model has stopped answering, and turns readiness off for as long as that lasts.

A run that hangs cannot be ended from outside, and a device that has failed fails every run after it. Requests then
meet their deadlines or their errors; whoever sends them should send them elsewhere, and is told so by readiness.
"""

import asyncio
import logging
from typing import Protocol

from service.metrics import Metrics
from service.routes.context import Readiness

logger = logging.getLogger(__name__)


class Watched(Protocol):
    """What is watched."""

    def stuck_for(self, now: float) -> float:
        """Return for how many seconds a run has lasted, or all runs have failed, at a moment on the loop's clock."""


class Watchdog:
    """Looks at the batcher now and then.

    Args:
        watched: the batcher.
        readiness: what is turned off and on.
        patience: seconds of being stuck that are too many.
        metrics: where to count.
    """

    def __init__(self, watched: Watched, readiness: Readiness, *, patience: float, metrics: Metrics) -> None:
        self._watched = watched
        self._readiness = readiness
        self._patience = patience
        self._metrics = metrics
        self._stuck = False

    async def run(self) -> None:
        """Look until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, self._patience / 4))
            self.look(loop.time())

    def look(self, now: float) -> None:
        """Compare what is with what was, and say so if it has changed."""
        seconds = self._watched.stuck_for(now)
        stuck = seconds >= self._patience
        if stuck == self._stuck:
            return
        self._stuck = stuck
        if stuck:
            logger.error("the model has not answered for %.1f s: not ready until it does", seconds)
            self._metrics.stalls.inc()
            self._readiness.suspend("The model has stopped answering.")
        else:
            logger.warning("the model answers again: ready")
            self._readiness.resume()
