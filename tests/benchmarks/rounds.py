"""Fair comparison on a noisy machine: candidates take turns, and ratios are taken within a round."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

Found = TypeVar("Found")


def take_turns(candidates: Mapping[str, Callable[[], Found]], rounds: int) -> dict[str, list[Found]]:
    """Run A B C, A B C, ...; return what each found, round by round."""
    found: dict[str, list[Found]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            found[name].append(run())
    return found


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median over rounds of numerator / denominator.

    >>> median_ratio([2.0, 6.0, 9.0], [1.0, 2.0, 2.0])
    3.0
    """
    pairs = zip(numerators, denominators, strict=True)
    return statistics.median(one / other if other else float("inf") for one, other in pairs)


def median_within(values: Sequence[float], sure: float = 0.95) -> tuple[float, float]:
    """Return between what the median lies with this probability, by the bootstrap.

    >>> median_within([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    drawn = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [(1 - sure) / 2, (1 + sure) / 2]).tolist()
    return low, high
