"""The parity samples of a detector: pictures with the detections that PyTorch gave for them at some alphas.

Two runtimes that agree up to rounding may still order two equal scores differently, or cut a detection off at the last
place that the other keeps. So detections are compared as sets, matched by label and box; one without its like
counts by how far its score lies above what the other side had to leave out. It knows neither PyTorch nor ONNX Runtime.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.manifest import DetectionSpec
from service.parity import ParityFile

DETECTION_OUTPUTS = ("boxes", "scores", "labels", "masks", "count")

_SAME_BOX = 0.01
"""How far apart two corners of one detection may lie, as a share of the input's longer side; else they are two."""


class Found(NamedTuple):
    """The detections of one picture.

    Attributes:
        boxes: [n, 4], (x1, y1, x2, y2) in input pixels.
        scores: [n], falling.
        labels: [n].
        masks: [n, m, m], probabilities within the box.
    """

    boxes: NDArray[Any]
    scores: NDArray[Any]
    labels: NDArray[Any]
    masks: NDArray[Any]


@dataclass(frozen=True, eq=False)
class DetectionParity(ParityFile):
    """Sample inputs and the outputs expected for them; N samples, M detections at most, masks of m x m.

    Attributes:
        images: uint8 [N, H, W, 3], scaled, the picture at the top left and zeros beyond.
        image_size: float32 [N, 2], height and width of the picture there.
        alpha: float32 [N], mixed on purpose.
        boxes: float32 [N, M, 4].
        scores: float32 [N, M].
        labels: int64 [N, M].
        masks: float32 [N, M, m, m].
        count: int64 [N].
    """

    images: NDArray[np.uint8]
    image_size: NDArray[np.float32]
    alpha: NDArray[np.float32]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.float32]
    count: NDArray[np.int64]

    def __post_init__(self) -> None:
        samples, rows = len(self.images), self.scores.shape[-1] if self.scores.ndim == 2 else 0
        side = self.masks.shape[-1] if self.masks.ndim == 4 else 0
        shapes = {
            "images": (samples, *self.images.shape[1:3], 3),
            "image_size": (samples, 2),
            "alpha": (samples,),
            "boxes": (samples, rows, 4),
            "scores": (samples, rows),
            "labels": (samples, rows),
            "masks": (samples, rows, side, side),
            "count": (samples,),
        }
        for name, shape in shapes.items():
            _check_array(name, getattr(self, name), shape)
        sizes = self.image_size
        if (sizes < 1).any() or (sizes > self.images.shape[1:3]).any():
            raise ValueError(f"image_size must lie within the images of {list(self.images.shape[1:3])}, got {sizes}")
        for row in range(samples):
            if fault := _fault({name: getattr(self, name)[row] for name in DETECTION_OUTPUTS}):
                raise ValueError(f"sample {row}: {fault}")

    def gaps(self, outputs: Mapping[str, NDArray[Any]], spec: DetectionSpec) -> dict[str, float]:
        """Return the largest gap of each kind over all samples; it is infinite where an output is no answer at all.

        - `boxes`: of a coordinate of a matched detection, as a share of the input's longer side
        - `scores`, `masks`: of a matched detection's score, and of a probability of its mask
        - `unmatched`: of a detection that only one side has, how far its score lies above what the other side had to
          leave out: what is below its score threshold, or, where all its rows are taken, below its last score

        Args:
            outputs: boxes, scores, labels, masks and count of all samples, shaped as here.
            spec: the detector's, for its score threshold.
        """
        gaps = dict.fromkeys(("boxes", "scores", "masks", "unmatched"), 0.0)
        if any(np.shape(outputs[name]) != getattr(self, name).shape for name in DETECTION_OUTPUTS):
            return dict.fromkeys(gaps, float("inf"))
        longer = float(max(self.images.shape[1:3]))
        for row in range(len(self.images)):
            actual = {name: np.asarray(outputs[name])[row] for name in DETECTION_OUTPUTS}
            if _fault(actual):
                return dict.fromkeys(gaps, float("inf"))
            expected = {name: getattr(self, name)[row] for name in DETECTION_OUTPUTS}
            for name, gap in _compare(_found(expected), _found(actual), longer, spec).items():
                gaps[name] = max(gaps[name], gap)
        return gaps


def _compare(expected: Found, actual: Found, longer: float, spec: DetectionSpec) -> dict[str, float]:
    ours, theirs = _match(expected, actual, longer)
    here = Found(*(array[ours].astype(np.float64) for array in expected))
    there = Found(*(array[theirs].astype(np.float64) for array in actual))
    return {
        "boxes": _largest(here.boxes - there.boxes) / longer,
        "scores": _largest(here.scores - there.scores),
        "masks": _largest(here.masks - there.masks),
        "unmatched": max(
            _above(np.delete(expected.scores, ours), actual.scores, spec),
            _above(np.delete(actual.scores, theirs), expected.scores, spec),
        ),
    }


def _match(expected: Found, actual: Found, longer: float) -> tuple[list[int], list[int]]:
    """Pair detections of one label whose boxes are the same, the nearest first; return the rows of both sides."""
    apart = np.abs(expected.boxes[:, None] - actual.boxes[None]).max(axis=2, initial=0.0)
    near = (expected.labels[:, None] == actual.labels[None]) & (apart <= _SAME_BOX * longer)
    rows, columns = np.nonzero(near)
    ours: list[int] = []
    theirs: list[int] = []
    for pair in np.argsort(apart[rows, columns], kind="stable").tolist():
        row, column = int(rows[pair]), int(columns[pair])
        if row not in ours and column not in theirs:
            ours.append(row)
            theirs.append(column)
    return ours, theirs


def _above(lone: NDArray[Any], others: NDArray[Any], spec: DetectionSpec) -> float:
    """Return how far the best of the scores that the other side lacks lies above what it had to leave out."""
    if not len(lone):
        return 0.0
    cut = float(others[-1]) if len(others) == spec.max_detections else spec.score_threshold
    return max(0.0, float(lone.max()) - cut)


def _largest(difference: NDArray[Any]) -> float:
    return float(np.abs(difference).max(initial=0.0))


def _found(outputs: Mapping[str, NDArray[Any]]) -> Found:
    count = int(outputs["count"])
    return Found(*(outputs[name][:count] for name in Found._fields))


def _fault(outputs: Mapping[str, NDArray[Any]]) -> str | None:
    """Return what is wrong with one picture's outputs in themselves, or None."""
    count, scores = int(outputs["count"]), outputs["scores"]
    if not 0 <= count <= len(scores):
        return f"count must lie between 0 and {len(scores)}, got {count}"
    if not all(np.isfinite(outputs[name]).all() for name in DETECTION_OUTPUTS):
        return "all numbers must be finite, got a NaN or an infinity"
    if (np.diff(scores[:count]) > 0).any():
        return "scores must fall"
    if (outputs["labels"][:count] < 0).any():
        return f"labels must be at least 0 in the first {count} rows"
    if (outputs["labels"][count:] != -1).any() or any(
        outputs[name][count:].any() for name in ("boxes", "scores", "masks")
    ):
        return f"rows from count, {count}, on must be zero, with label -1"
    return None


def _check_array(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    expected = np.uint8 if name == "images" else np.int64 if name in {"labels", "count"} else np.float32
    if array.dtype != expected or array.shape != shape or 0 in shape:
        raise ValueError(
            f"{name} must be {np.dtype(expected)} {list(shape)} without an empty dimension, "
            f"got {array.dtype} {list(array.shape)}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got a NaN or an infinity")
