"""How long something takes for each item, of late. It knows nothing of what it is."""

_OF_LATE = 0.8
"""What an observation counts beside the next."""


class Pace:
    """Seconds for each item, of late; an observation of many items counts more than one of few.

    Several threads may observe at once; now and then one of two observations is lost then.

    >>> pace = Pace()
    >>> pace.seconds
    0.0
    >>> pace.observe(2.0, 4)
    >>> pace.seconds
    0.5
    """

    __slots__ = ("_sums",)

    def __init__(self) -> None:
        self._sums = (0.0, 0.0)

    def observe(self, seconds: float, count: int = 1) -> None:
        """Take in how long so many items took together."""
        before, items = self._sums
        self._sums = (_OF_LATE * before + seconds, _OF_LATE * items + count)

    @property
    def seconds(self) -> float:
        """Of one item; 0: nothing is known."""
        seconds, items = self._sums
        return seconds / items if items else 0.0
