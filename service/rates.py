"""A token bucket: how many of something there may be. It knows no clock: the caller says what time it is."""

from dataclasses import dataclass, field
from math import ceil

_LONGEST_WAIT = 86_400


@dataclass(slots=True)
class TokenBucket:
    """Allows `rate` a second on average, and `burst` at once; 0: one second's worth.

    A request that is larger than the bucket passes when the bucket is full, and leaves a debt: whatever the sizes of
    requests, the average holds.

    >>> bucket = TokenBucket(rate=2)
    >>> [bucket.take(2, now=0.0), bucket.take(1, now=0.0), bucket.take(1, now=0.5)]
    [0, 1, 0]
    """

    rate: float
    burst: float = 0.0
    _tokens: float = field(init=False)
    _since: float = field(default=float("-inf"), init=False)

    def __post_init__(self) -> None:
        self.burst = self.burst or max(1.0, self.rate)
        self._tokens = self.burst

    def take(self, count: int, now: float) -> int:
        """Take `count` tokens and return 0, or take none and return the whole seconds after which they are there.

        Of a very small rate it says a day, and then again.
        """
        self._tokens = tokens = min(self.burst, self._tokens + (now - self._since) * self.rate)
        self._since = now
        if count > tokens and (missing := min(count, self.burst) - tokens) > 1e-9:
            return max(1, ceil(min(missing / self.rate, _LONGEST_WAIT)))
        self._tokens = tokens - count
        return 0
