"""Rests of the event loop, while there is little for it to do but to refuse.

Where the model runs on the cores that the loop shares, a refusal costs the run more than its own work: each wakes the
loop, which drives what the run had in a core's cache out of it. So the loop rests between refusals, as a network card
holds interrupts back, and who came meanwhile is refused together; what that gains is in the results of the benchmarks.
A rest ends with the run, so that the next begins at once.
"""

import asyncio
from collections.abc import Callable
from threading import Event

_LONGEST = 0.05
"""Seconds; by so much all that the loop does meanwhile is late, and what takes it many turns, several times."""
_SHORTEST = 0.001
"""Seconds below which a rest gains nothing."""
_OF_A_RUN = 0.25
"""The part of a run that a rest may take."""
_TURNS = 3
"""Of the loop, until those who came together are all refused and their answers written."""


class Respite:
    """Rests that end with the run under way, of which there is one at a time."""

    def __init__(self) -> None:
        self._run_has_ended = Event()
        self._run_has_ended.set()
        self._is_due = False
        self._runs = 0

    def begin_run(self) -> None:
        """Take note that a run begins in another thread."""
        self._run_has_ended.clear()
        self._runs += 1

    def end_run(self) -> None:
        """Take note, in that thread, that it has ended."""
        self._run_has_ended.set()

    def take_soon(self, run_seconds: float, is_wanted: Callable[[], bool]) -> None:
        """Let the loop rest once it has done what there is to do; without a run under way it does not.

        Args:
            run_seconds: how long a run takes at least.
            is_wanted: asked then, whether it is to rest still.
        """
        seconds = min(_LONGEST, _OF_A_RUN * run_seconds)
        if seconds >= _SHORTEST and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._take, seconds, is_wanted, self._runs, _TURNS)

    def _take(self, seconds: float, is_wanted: Callable[[], bool], run: int, turns: int) -> None:
        if run != self._runs:  # answers of the one before are being written
            run, turns = self._runs, _TURNS
        if turns:
            asyncio.get_running_loop().call_soon(self._take, seconds, is_wanted, run, turns - 1)
            return
        self._is_due = False
        if is_wanted():
            self._run_has_ended.wait(seconds)
