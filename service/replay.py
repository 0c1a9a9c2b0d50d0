"""Replay: what every alpha and every prior_strength would have made of predictions that were kept.

Each class's logit is a plane over both knobs. Most classes are below some other everywhere in the allowed rectangle
and can be forgotten; those that remain, the *candidates*, with their two logits, tell the winner at every point of it.
It knows numpy alone: no database, no client, no HTTP.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.tradeoff import AccuracyCurve, Floats, correct_intervals, curve_from_intervals

_MARGIN = 1e-9
"""What a class must lose by at all corners to be forgotten: far above rounding, below any difference that counts."""

_SMALL, _LARGE = np.dtype("<u2"), np.dtype("<u4")
_LOGIT = np.dtype("<f4")

_AT_A_TIME = 8192
"""Logits of a corner that are looked at together: the four corners' are 256 KiB."""


@dataclass(frozen=True, slots=True)
class Rectangle:
    """The knobs that may be asked for: alpha in [low, high], prior_strength in [0, max_prior_strength]."""

    low: float
    high: float
    max_prior_strength: float


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What is kept of one prediction: the classes that can win, ascending [k], and their logits, float32 [k]."""

    classes: NDArray[np.int64]
    factual: NDArray[np.float32]
    counterfactual: NDArray[np.float32]

    def pack(self, num_classes: int) -> bytes:
        """Return the bytes to keep: 10 for each candidate, 12 where the model has more than 65,536 classes."""
        index = _index_type(num_classes)
        arrays = (self.classes.astype(index), self.factual.astype(_LOGIT), self.counterfactual.astype(_LOGIT))
        return b"".join(array.tobytes() for array in arrays)

    @staticmethod
    def unpack(content: bytes, num_classes: int) -> "Candidates":
        """Return the candidates from their bytes.

        Raises:
            ValueError: the bytes are not a whole number of candidates.
        """
        index = _index_type(num_classes)
        count, rest = divmod(len(content), index.itemsize + 2 * _LOGIT.itemsize)
        if rest or not count:
            raise ValueError(f"{len(content)} bytes are no whole number of candidates; the row is damaged")
        classes = np.frombuffer(content, index, count).astype(np.int64)
        factual, counterfactual = np.frombuffer(content, _LOGIT, 2 * count, count * index.itemsize).reshape(2, count)
        return Candidates(classes, factual, counterfactual)


def candidates(
    factual: NDArray[np.float32],
    counterfactual: NDArray[np.float32],
    *,
    log_class_share: Floats,
    log_target: Floats | None = None,
    rectangle: Rectangle,
) -> list[Candidates]:
    """Return for each sample the classes that can win somewhere in the rectangle, and perhaps a few more.

    Planes are linear, so a class that is below some other at the four corners of the rectangle is below it throughout:
    it can win only if no winner of a corner beats it at all four. What is kept is therefore never too little.

    Args:
        factual, counterfactual: logits, [N, C].
        log_class_share: logarithm of each class's share of the training samples, [C].
        log_target: what is added for the client's own class distribution, [C].
        rectangle: the knobs that may be asked for.

    >>> share = np.log([0.5, 0.25, 0.25])
    >>> rectangle = Rectangle(0.0, 3.0, 0.0)
    >>> kept = candidates(np.float32([[2, 1, -9]]), np.float32([[3, 1, 1]]), log_class_share=share, rectangle=rectangle)
    >>> kept[0].classes.tolist()
    [0, 1]
    """
    can_win = _can_win(factual, counterfactual, log_class_share, log_target, rectangle)
    return [
        Candidates(classes, factual[row, classes], counterfactual[row, classes])
        for row, classes in enumerate(map(np.flatnonzero, can_win))
    ]


def packed_candidates(
    factual: NDArray[np.float32],
    counterfactual: NDArray[np.float32],
    *,
    log_class_share: Floats,
    log_target: Floats | None = None,
    rectangle: Rectangle,
) -> list[bytes]:
    """Return the bytes to keep of each sample: those of `candidates(...)`, each packed, put together at once.

    With 100 classes it takes about 3 microseconds a sample, where packing them one by one took 10.
    """
    can_win = _can_win(factual, counterfactual, log_class_share, log_target, rectangle)
    rows, classes = can_win.nonzero()
    index = _index_type(can_win.shape[1])
    logits = [lines[can_win].astype(_LOGIT, copy=False).view(index) for lines in (factual, counterfactual)]
    units = np.concatenate([classes.astype(index), *logits])  # of all samples: indices, then parts of logits
    of_logits = rows.repeat(_LOGIT.itemsize // index.itemsize)
    owners = np.concatenate([rows, of_logits, of_logits])
    packed = units[owners.argsort(kind="stable")].tobytes()  # each sample's lie together, and in the same order
    ends = index.itemsize * np.bincount(owners, minlength=len(can_win)).cumsum()
    return [packed[start:end] for start, end in pairwise([0, *ends.tolist()])]


def _index_type(num_classes: int) -> np.dtype[Any]:
    return _SMALL if num_classes <= 65_536 else _LARGE


def _can_win(
    factual: NDArray[np.float32],
    counterfactual: NDArray[np.float32],
    log_class_share: Floats,
    log_target: Floats | None,
    rectangle: Rectangle,
) -> NDArray[np.bool_]:
    """Return which classes are candidates, [N, C].

    Some samples at a time: numbers that leave the processor's cache cost several times as much.
    """
    alphas = np.array([rectangle.low, rectangle.high])[:, None, None, None]
    lowered = np.array([0.0, rectangle.max_prior_strength])[:, None, None] * log_class_share
    if log_target is not None:
        lowered = lowered - log_target
    can_win = np.empty(factual.shape, dtype=bool)
    samples, classes = factual.shape
    step = max(1, _AT_A_TIME // classes)
    for first in range(0, samples, step):
        some = slice(first, first + step)
        corners = factual[some] - lowered - alphas * counterfactual[some]  # [alphas, strengths, n, C]
        np.logical_not(_beaten(corners.reshape(4, -1, classes)), out=can_win[some])
    return can_win


def _beaten(corners: Floats) -> NDArray[np.bool_]:
    """Return which classes [N, C] are below one corner's winner at all corners [4, N, C]."""
    beaten = np.zeros(corners.shape[1:], dtype=bool)
    winners = corners.argmax(axis=2)
    theirs = corners[:, np.arange(corners.shape[1]), winners] - _MARGIN  # [corners, winners, N]
    for winner in range(4):
        beaten |= (corners < theirs[:, winner, :, None]).all(axis=0)
    return beaten


@dataclass(frozen=True, eq=False)
class Replay:
    """N labelled predictions of one model, ready to be asked what any knobs would have made of them.

    Attributes:
        classes: candidates of each prediction, ascending; shorter rows repeat their last, int64 [N, K].
        heights: their factual logits, the client's target added, float64 [N, K].
        slopes: their counterfactual logits, float64 [N, K].
        labels: the true classes, int64 [N].
        log_class_share: of the model, [C].
        shot_groups: of the model's classes, [C].
        rectangle: the knobs for which the answers are exact.
    """

    classes: NDArray[np.int64]
    heights: Floats
    slopes: Floats
    labels: NDArray[np.int64]
    log_class_share: Floats
    shot_groups: Sequence[str]
    rectangle: Rectangle

    def __len__(self) -> int:
        return len(self.labels)

    @staticmethod
    def of(
        kept: Sequence[Candidates],
        labels: Sequence[int],
        *,
        log_class_share: Floats,
        log_target: Floats | None = None,
        shot_groups: Sequence[str],
        rectangle: Rectangle,
    ) -> "Replay":
        """Return the replay of at least one prediction.

        Args:
            kept: candidates, N.
            labels: the true classes, N.
            log_class_share, shot_groups: of the model's classes, [C].
            log_target: the client's, as it was when the candidates were found, [C].
            rectangle: the one for which they were found, or one within it.
        """
        longest = max(len(each.classes) for each in kept)

        def padded(rows: list[NDArray[np.float32]]) -> Floats:
            return np.array([np.pad(row, (0, longest - len(row)), "edge") for row in rows], dtype=np.float64)

        classes = np.array([np.pad(each.classes, (0, longest - len(each.classes)), "edge") for each in kept])
        heights = padded([each.factual for each in kept])
        if log_target is not None:
            heights += log_target[classes]
        slopes = padded([each.counterfactual for each in kept])
        truth = np.asarray(labels, dtype=np.int64)
        return Replay(classes, heights, slopes, truth, log_class_share, shot_groups, rectangle)

    def within(self, rectangle: Rectangle) -> "Replay":
        """Return the same predictions, asked about a smaller rectangle only."""
        return replace(self, rectangle=rectangle)

    def winners(self, alpha: float, prior_strength: float) -> NDArray[np.int64]:
        """Return the class that would have won at these knobs, [N]."""
        best = (self._heights(prior_strength) - alpha * self.slopes).argmax(axis=1)
        winners: NDArray[np.int64] = self.classes[np.arange(len(self)), best]
        return winners

    def intervals(self, prior_strength: float) -> tuple[Floats, Floats]:
        """Return for each prediction the interval of alpha on which it would have been right: start [N] and end [N].

        Where it would have been right at no alpha, start == end == the lowest alpha.
        """
        low, high = self.rectangle.low, self.rectangle.high
        own = self.classes == self.labels[:, None]
        start, end = correct_intervals(
            self._heights(prior_strength), self.slopes, own.argmax(axis=1), low=low, high=high
        )
        never = ~own.any(axis=1)
        start[never] = end[never] = low
        return start, end

    def curve(self, prior_strength: float = 0.0) -> AccuracyCurve:
        """Return the exact accuracy over alpha at this prior_strength."""
        return curve_from_intervals(
            *self.intervals(prior_strength),
            labels=self.labels,
            num_classes=len(self.log_class_share),
            low=self.rectangle.low,
            high=self.rectangle.high,
            shot_groups=self.shot_groups,
        )

    def _heights(self, prior_strength: float) -> Floats:
        shifted: Floats = self.heights - prior_strength * self.log_class_share[self.classes]
        return shifted
