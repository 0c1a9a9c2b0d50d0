"""The trade-off over alpha, exactly: which class wins where, and how right that would have been.

Each class's logit is a line over alpha, `factual[c] - alpha * counterfactual[c]`, so the winner over alpha is
the upper envelope of C lines: a few breakpoints, found without a forward pass. And a labelled sample is right
on one interval of alpha or on none, so accuracy over alpha is a step function whose steps are known exactly.

A prior correction is a constant per class: take `factual - prior_strength * log_class_share` as `factual`.
It knows numpy alone: no model, no bundle, no HTTP.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_BLOCK = 1024
"""Samples at a time: a block of 1,000 classes stays within the processor's cache or near it."""


class Envelope:
    """The winners over alpha in [low, high]: `winners[i]` wins between `breakpoints[i - 1]` and `breakpoints[i]`.

    Args:
        low, high: the range of alpha.
        crossings: where the winner changes, ascending within [low, high], B numbers.
        classes: the winning class of each stretch, from low to high, B + 1 indices.
    """

    __slots__ = ("_classes", "_crossings", "high", "low")

    def __init__(self, low: float, high: float, crossings: list[float], classes: list[int]) -> None:
        self.low, self.high = low, high
        self._crossings, self._classes = crossings, classes

    @property
    def breakpoints(self) -> Floats:
        """Where the winner changes, float64 [B]."""
        return np.array(self._crossings, dtype=np.float64)

    @property
    def winners(self) -> NDArray[np.int64]:
        """The winning class of each stretch, int64 [B + 1]."""
        return np.array(self._classes, dtype=np.int64)

    def winner_at(self, alpha: float) -> int:
        """Return the winning class at alpha; on a breakpoint, the lower index of the two that meet there.

        >>> upper_envelope([1.0, 0.0], [2.0, 0.0], low=0, high=3).winner_at(0.25)
        0
        """
        return self._classes[self._stretch_at(alpha)]

    def stable_interval(self, alpha: float) -> tuple[float, float]:
        """Return the largest interval around alpha, within [low, high], on which the winner stays the same.

        >>> upper_envelope([1.0, 0.0], [2.0, 0.0], low=0, high=3).stable_interval(0.25)
        (0.0, 0.5)
        """
        stretch, crossings = self._stretch_at(alpha), self._crossings
        start = crossings[stretch - 1] if stretch > 0 else self.low
        return start, crossings[stretch] if stretch < len(crossings) else self.high

    def _stretch_at(self, alpha: float) -> int:
        if not self.low <= alpha <= self.high:
            raise ValueError(f"alpha must lie in [{self.low}, {self.high}], got {alpha}; build a wider envelope")
        first, last = bisect_left(self._crossings, alpha), bisect_right(self._crossings, alpha)
        return min(range(first, last + 1), key=self._classes.__getitem__) if first < last else first


def upper_envelope(factual: ArrayLike, counterfactual: ArrayLike, *, low: float, high: float) -> Envelope:
    """Return which class has the largest `factual[c] - alpha * counterfactual[c]` for each alpha in [low, high].

    Walks from the winner at `low` to the winner at `high`, each time to the first line that crosses from below:
    O(C) per breakpoint, in float64. Of equal lines the lowest index wins, as in `argmax`; so it does at `low`
    and at `high` themselves, where a stretch may then have no length. A class that only touches the envelope
    from below at an inner point never wins.

    Args:
        factual, counterfactual: logits of one sample, [C].
        low, high: the range of alpha, low <= high.

    Raises:
        ValueError: the shapes differ, a number is not finite, or the range is empty.

    >>> envelope = upper_envelope([2.0, 1.0, 0.0], [3.0, 1.0, 0.5], low=0.0, high=3.0)
    >>> envelope.breakpoints.tolist(), envelope.winners.tolist()
    ([0.5, 2.0], [0, 1, 2])
    """
    heights, slopes = _lines(factual, counterfactual, 1, low, high)
    winner, last = int((heights - low * slopes).argmax()), int((heights - high * slopes).argmax())
    return _walk(heights, slopes, winner, last, (float(low), float(high)))


def upper_envelopes(factual: ArrayLike, counterfactual: ArrayLike, *, low: float, high: float) -> list[Envelope]:
    """Return the envelope of each sample, as `upper_envelope` does, at the cost of a few samples for a whole batch.

    Args:
        factual, counterfactual: logits, [N, C].
        low, high: the range of alpha.

    >>> [envelope.winners.tolist() for envelope in upper_envelopes([[1, 0], [0, 1]], [[1, 0], [0, 0]], low=0, high=3)]
    [[0, 1], [1]]
    """
    heights, slopes = _lines(factual, counterfactual, 2, low, high)
    at_low = heights - low * slopes if low else heights
    begins, ends = at_low.argmax(axis=1).tolist(), (heights - high * slopes).argmax(axis=1).tolist()
    span = float(low), float(high)
    return [_walk(*lines, span) for lines in zip(heights, slopes, begins, ends, strict=True)]


def _walk(heights: Floats, slopes: Floats, first: int, last: int, span: tuple[float, float]) -> Envelope:
    low, high = span
    winner = first
    crossings: list[float] = []
    classes = [winner]
    while winner != last:
        crossing, winner = _next_crossing(heights, slopes, winner, last)
        crossings.append(min(max(crossing, crossings[-1] if crossings else low), high))
        classes.append(winner)
    return Envelope(low, high, crossings, classes)


def _next_crossing(heights: Floats, slopes: Floats, winner: int, last: int) -> tuple[float, int]:
    """Return where the winner is overtaken first, and by which class (the steepest, then the lowest index).

    Slopes fall with every step and never below that of `last`, the known winner at the end of the range: rounding
    can lead neither past it nor round in circles.
    """
    rivals = np.flatnonzero((slopes < slopes[winner]) & (slopes >= slopes[last]))
    if not len(rivals):
        return np.inf, last
    crossings = (heights[winner] - heights[rivals]) / (slopes[winner] - slopes[rivals])
    nearest = crossings.min()
    first = rivals[crossings == nearest]
    rival = int(first[0] if len(first) == 1 else first[slopes[first].argmin()])
    return float(nearest), last if slopes[rival] == slopes[last] else rival


@dataclass(frozen=True, eq=False)
class AccuracyCurve:
    """Accuracy as an exact step function of alpha in [low, high].

    Attributes:
        low, high: the range of alpha.
        breakpoints: float64 [B], ascending, strictly within (low, high).
        overall: float64 [B + 1], share of samples that are right on each stretch between breakpoints.
        balanced: float64 [B + 1], mean over the classes that occur of each class's recall.
        by_group: for each shot group that occurs, the share of its samples that are right, float64 [B + 1].
    """

    low: float
    high: float
    breakpoints: Floats
    overall: Floats
    balanced: Floats
    by_group: Mapping[str, Floats]

    def values(self, objective: str) -> Floats:
        """Return the steps of 'overall', 'balanced' or a shot group's name, [B + 1]."""
        curves = {"overall": self.overall, "balanced": self.balanced, **self.by_group}
        if objective not in curves:
            raise ValueError(f"objective must be one of {', '.join(curves)}, got {objective!r}")
        return curves[objective]

    def at(self, alpha: float) -> dict[str, float]:
        """Return every accuracy at alpha; on a breakpoint, of the stretch that begins there."""
        if not self.low <= alpha <= self.high:
            raise ValueError(f"alpha must lie in [{self.low}, {self.high}], got {alpha}")
        stretch = int(self.breakpoints.searchsorted(alpha, "right"))
        return {name: float(self.values(name)[stretch]) for name in ("overall", "balanced", *self.by_group)}


def correct_intervals(
    factual: ArrayLike, counterfactual: ArrayLike, labels: ArrayLike, *, low: float, high: float
) -> tuple[Floats, Floats]:
    """Return for each sample the interval of alpha in [low, high] on which its label wins.

    The label y beats class c where `alpha * (counterfactual[c] - counterfactual[y]) >= factual[c] - factual[y]`:
    a bound from below or from above, so the label wins on one interval or on none. Where a line equals the
    label's, the lower index wins. Intervals without length are none.

    Args:
        factual, counterfactual: logits, [N, C].
        labels: the true classes, integers [N].

    Returns:
        start [N] and end [N]; where the label never wins, start == end == low.

    >>> correct_intervals([[2.0, 1.0, 0.0]], [[3.0, 1.0, 0.5]], [1], low=0.0, high=3.0)
    (array([0.5]), array([2.]))
    """
    heights, slopes = _lines(factual, counterfactual, 2, low, high)
    truth = _labels(labels, *heights.shape)
    start, end = np.full(len(truth), low, dtype=np.float64), np.full(len(truth), high, dtype=np.float64)
    for first in range(0, len(truth), _BLOCK):
        rows = slice(first, first + _BLOCK)
        start[rows], end[rows] = _intervals(heights[rows], slopes[rows], truth[rows], low, high)
    never = start >= end
    start[never] = end[never] = low
    return start, end


def _intervals(
    heights: Floats, slopes: Floats, labels: NDArray[np.int64], low: float, high: float
) -> tuple[Floats, Floats]:
    own = labels[:, None]
    rise = np.take_along_axis(heights, own, 1) - heights
    run = np.take_along_axis(slopes, own, 1) - slopes
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = rise / run
    start = np.where(run < 0, crossing, -np.inf).max(axis=1).clip(min=low)
    end = np.where(run > 0, crossing, np.inf).min(axis=1).clip(max=high)
    beaten = (run == 0) & ((rise < 0) | ((rise == 0) & (np.arange(heights.shape[1]) < own)))
    end[beaten.any(axis=1)] = -np.inf
    return start, end


def accuracy_curve(
    factual: ArrayLike,
    counterfactual: ArrayLike,
    labels: ArrayLike,
    *,
    low: float,
    high: float,
    shot_groups: Sequence[str] | None = None,
) -> AccuracyCurve:
    """Return the exact accuracy of `argmax(factual - alpha * counterfactual)` for every alpha in [low, high].

    Args:
        factual, counterfactual: logits, [N, C], N at least 1.
        labels: the true classes, integers [N].
        low, high: the range of alpha.
        shot_groups: the shot group of each class, [C]; without it `by_group` is empty.

    Raises:
        ValueError: shapes that do not fit, a label out of range, numbers that are not finite.

    >>> curve = accuracy_curve([[1.0, 0.0], [1.0, 0.0]], [[2.0, 0.0], [1.0, 0.0]], [0, 1], low=0.0, high=3.0)
    >>> curve.breakpoints.tolist(), curve.overall.tolist()
    ([0.5, 1.0], [0.5, 0.0, 0.5])
    """
    intervals = correct_intervals(factual, counterfactual, labels, low=low, high=high)
    classes = np.asarray(factual).shape[1]
    return curve_from_intervals(
        *intervals, labels=labels, num_classes=classes, low=low, high=high, shot_groups=shot_groups
    )


def curve_from_intervals(
    start: ArrayLike,
    end: ArrayLike,
    *,
    labels: ArrayLike,
    num_classes: int,
    low: float,
    high: float,
    shot_groups: Sequence[str] | None = None,
) -> AccuracyCurve:
    """Return the accuracy curve of samples of which each is right on [start, end] (nowhere if start == end).

    What `accuracy_curve` does once it knows the intervals, for those who kept only the intervals.
    """
    begins, ends = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    truth = _labels(labels, len(begins), num_classes)
    if shot_groups is not None and len(shot_groups) != num_classes:
        raise ValueError(f"shot_groups needs one group for each of {num_classes} classes, got {len(shot_groups)}")
    if not low < high:
        raise ValueError(f"a curve needs low < high, got [{low}, {high}]")
    steps = np.unique(np.concatenate([begins, ends]))
    inner = steps[(steps > low) & (steps < high)]
    first, past = inner.searchsorted(begins, "right"), inner.searchsorted(ends, "left") + 1
    past = np.where(ends > begins, past, first)

    def share(weights: Floats) -> Floats:
        changes = np.bincount(first, weights, len(inner) + 2) - np.bincount(past, weights, len(inner) + 2)
        accuracy: Floats = (changes.cumsum()[:-1] / weights.sum()).round(12)
        return accuracy

    groups = np.array(shot_groups if shot_groups is not None else [""] * num_classes)[truth]
    present = [group for group in dict.fromkeys(shot_groups or ()) if group in groups]
    return AccuracyCurve(
        float(low),
        float(high),
        inner,
        overall=share(np.ones(len(truth))),
        balanced=share(1.0 / np.bincount(truth)[truth]),
        by_group={group: share((groups == group).astype(np.float64)) for group in present},
    )


def best_alpha(curve: AccuracyCurve, objective: str = "overall") -> float:
    """Return the centre of the best stretch: the alpha that is best and farthest from being worse.

    The highest step wins; of several equally high stretches the longest (neighbours that are equally high count
    as one stretch), and of equally long ones that of the smaller alpha.

    Args:
        curve: accuracy over alpha.
        objective: 'overall', 'balanced', or a shot group of the curve.

    >>> curve = accuracy_curve([[1.0, 0.0]], [[2.0, 0.0]], [0], low=0.0, high=3.0)
    >>> best_alpha(curve)
    0.25
    """
    return centre_of_best(curve, curve.values(objective))


def centre_of_best(curve: AccuracyCurve, values: Floats) -> float:
    """Return the centre of the best stretch, as `best_alpha` does, for any value of each step of the curve, [B + 1]."""
    edges = np.concatenate([[curve.low], curve.breakpoints, [curve.high]])
    changes = np.flatnonzero(np.diff(values)) + 1
    begins, ends = edges[np.concatenate([[0], changes])], edges[np.concatenate([changes, [len(values)]])]
    levels = values[np.concatenate([[0], changes])]
    lengths = np.where(levels == levels.max(), ends - begins, -np.inf)
    longest = int(lengths.argmax())
    return float((begins[longest] + ends[longest]) / 2)


def _lines(
    factual: ArrayLike, counterfactual: ArrayLike, dimensions: int, low: float, high: float
) -> tuple[Floats, Floats]:
    heights, slopes = np.asarray(factual, dtype=np.float64), np.asarray(counterfactual, dtype=np.float64)
    if heights.shape != slopes.shape or heights.ndim != dimensions or not heights.size:
        raise ValueError(
            f"factual and counterfactual must have the same shape, {'[C]' if dimensions == 1 else '[N, C]'} and "
            f"not empty, got {list(heights.shape)} and {list(slopes.shape)}"
        )
    # A NaN or an infinity makes the whole product one; a product may also overflow, so then each number is asked.
    # By einsum: OpenBLAS, behind vdot, shares a product of more than 10,000 numbers among all cores.
    product = np.einsum("i,i", heights.ravel(), slopes.ravel())
    if not isfinite(product) and not (np.isfinite(heights).all() and np.isfinite(slopes).all()):
        raise ValueError("factual and counterfactual must be finite, got a NaN or an infinity")
    if not -np.inf < low <= high < np.inf:
        raise ValueError(f"the range of alpha needs low <= high, both finite, got [{low}, {high}]")
    return heights, slopes


def _labels(labels: ArrayLike, samples: int, classes: int) -> NDArray[np.int64]:
    truth: NDArray[Any] = np.asarray(labels)
    if truth.shape != (samples,) or not samples or truth.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be one integer for each of {samples} samples, and at least one, "
            f"got {truth.dtype} {list(truth.shape)}"
        )
    if truth.min() < 0 or truth.max() >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {truth.min()}..{truth.max()}")
    return truth.astype(np.int64)
