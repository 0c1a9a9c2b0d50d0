"""Notices that the model has stopped answering, and turns readiness off for as long as that lasts.

A run that hangs cannot be ended from outside, and a device that has failed fails every run after it. Requests then
meet their deadlines or their errors; whoever sends them should send them elsewhere, and is told so by readiness.

That requests fail does not tell whether it is the model's fault or theirs, and where none are sent none can succeed:
so as long as runs fail, a picture that is known to be good is tried now and then, and what comes of that decides.
It knows neither models nor pictures.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from service.metrics import Metrics
from service.routes.context import Readiness

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 5.0
"""Seconds from one trial to the next."""


class Watched(Protocol):
    """What is watched."""

    def stuck_for(self, now: float) -> float:
        """Return for how many seconds a run has lasted at a moment on the loop's clock."""

    @property
    def is_failing(self) -> bool:
        """Whether the run that ended last failed."""


class Watchdog:
    """Looks at the batcher now and then.

    Args:
        watched: the batcher.
        attempt: has the batcher run what is known to be good; raises what it fails with.
        readiness: what is turned off and on.
        patience: seconds of being stuck that are too many.
        metrics: where to count.
    """

    def __init__(
        self,
        watched: Watched,
        attempt: Callable[[], Awaitable[None]],
        readiness: Readiness,
        *,
        patience: float,
        metrics: Metrics,
    ) -> None:
        self._watched = watched
        self._attempt = attempt
        self._readiness = readiness
        self._patience = patience
        self._metrics = metrics
        self._stuck = False
        self._trial: asyncio.Task[None] | None = None
        self._next_trial = 0.0
        self._first_failure: float | None = None  # of the trials in a row
        self._last_failure = 0.0

    async def run(self) -> None:
        """Look until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await asyncio.sleep(min(1.0, self._patience / 4))
                self.look(loop.time())
        finally:
            if self._trial:
                self._trial.cancel()

    def look(self, now: float) -> None:
        """Begin a trial if there is need of one; compare what is with what was, and say so if it has changed."""
        if not self._watched.is_failing:
            self._first_failure = None
        elif self._trial is None and now >= self._next_trial:  # else it waits for its turn: one is enough
            self._next_trial = now + min(_LONGEST_PAUSE, self._patience / 4)
            self._trial = asyncio.get_running_loop().create_task(self._try(now))
        seconds = max(self._watched.stuck_for(now), self._failing_for)
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

    @property
    def _failing_for(self) -> float:
        return 0.0 if self._first_failure is None else self._last_failure - self._first_failure

    async def _try(self, now: float) -> None:
        try:
            await self._attempt()
        except Exception:  # whatever it is, there was no answer; whoever ran it has logged why
            self._last_failure = now
            self._first_failure = now if self._first_failure is None else self._first_failure
        else:
            self._first_failure = None
        finally:
            self._trial = None
