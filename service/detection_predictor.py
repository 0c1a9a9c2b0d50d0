"""A detector's runs for a batch of pictures, one by one, and what is said of each in the picture's own pixels.

What a request leaves out is never made: masks are made of the detections that are answered, if it wants them at all,
and if they are not too many for pictures that wide. It knows neither queues nor HTTP.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.detector import Detector, Outputs
from service.images import Sized
from service.masks import most_steps, pack_masks


class Limits(NamedTuple):
    """Which detections of a picture are wanted, and whether with masks.

    Attributes:
        score_threshold: the lowest score.
        top_k: at most so many, the best.
        mask_steps: how many steps its masks may take (`service.masks`); 0: no masks. A request for tensors makes them
            itself.
    """

    score_threshold: float
    top_k: int
    mask_steps: int


class DetectionWork(NamedTuple):
    """One picture to run: by whom, at which alpha, and what is wanted of it; None: the graph's outputs as they are."""

    predictor: "DetectionPredictor"
    picture: Sized
    alpha: float
    limits: Limits | None


class Detections(NamedTuple):
    """The detections of one picture, the best first.

    Attributes:
        boxes: [n, 4], (x1, y1, x2, y2) in the picture's own pixels.
        scores: [n].
        labels: [n], class indices.
        masks: COCO's packed counts, column by column over the whole picture; None where they were not wanted.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: list[str] | None


class MasksTooLong(NamedTuple):
    """The masks of one picture were not made, as they take more steps than its limits allow."""

    steps: int


DetectionOutcome = Detections | MasksTooLong | Outputs
"""What comes of a work: detections, if within its limits, or the graph's outputs where it names none."""


class DetectionPredictor:
    """A detector with what its manifest says of its pictures and masks."""

    def __init__(self, model: Detector) -> None:
        self.model = model
        self._spec = model.manifest.input
        assert model.manifest.detection is not None, "every detector says what it does"
        self.detection = model.manifest.detection

    def trial(self) -> DetectionWork:
        """Return the work that tells whether the detector answers at all: the black picture that warmed it."""
        size = (self._spec.width, self._spec.height)
        black = Sized(np.zeros((self._spec.height, self._spec.width, 3), np.uint8), part=size, own=size)
        return DetectionWork(self, black, self.model.manifest.alpha.default, None)

    def run(self, works: Sequence[DetectionWork]) -> list[DetectionOutcome]:
        """Run the detector for each picture in turn."""
        return [self._one(work) for work in works]

    def _one(self, work: DetectionWork) -> DetectionOutcome:
        pixels, part, own = work.picture
        outputs = self.model.detect(pixels, (part[1], part[0]), work.alpha)
        _refuse_nonsense(outputs, len(self.model.manifest.classes))
        if work.limits is None:
            return outputs
        count = int(outputs["count"])
        scores = outputs["scores"][:count]
        kept = min(int((scores >= work.limits.score_threshold).sum()), work.limits.top_k)  # scores fall
        boxes = in_own_pixels(outputs["boxes"][:kept], part, own)
        detections = Detections(boxes, scores[:kept], outputs["labels"][:kept], None)
        if not work.limits.mask_steps:
            return detections
        masks, threshold = outputs["masks"][:kept], self.detection.mask_threshold
        if (steps := most_steps(masks, boxes, threshold)) > work.limits.mask_steps:
            return MasksTooLong(steps)
        return detections._replace(masks=pack_masks(masks, boxes, width=own[0], height=own[1], threshold=threshold))


def in_own_pixels(boxes: NDArray[np.float32], part: tuple[int, int], own: tuple[int, int]) -> NDArray[np.float64]:
    """Return boxes of input pixels in the picture's own, within the picture.

    Args:
        boxes: (x1, y1, x2, y2), [n, 4].
        part: width and height of the picture as it lies in the input.
        own: its own width and height.

    >>> in_own_pixels(np.array([[0, 2, 8, 4.1]]), (16, 4), (32, 8)).tolist()
    [[0.0, 4.0, 16.0, 8.0]]
    """
    scale = np.array([own[0] / part[0], own[1] / part[1]] * 2)
    scaled: NDArray[np.float64] = (boxes.astype(np.float64) * scale).clip(0, [*own, *own])
    return scaled


def _refuse_nonsense(outputs: Outputs, classes: int) -> None:
    """Refuse what no answer can be made of: a picture may take a model to a NaN, whatever its parity samples did.

    Raises:
        ValueError: which output it is.
    """
    for name in ("boxes", "scores", "masks"):
        if not np.isfinite(outputs[name]).all():
            raise ValueError(f"the model gave a NaN or an infinity in {name}")
    count, labels = int(outputs["count"]), outputs["labels"]
    if not 0 <= count <= len(labels) or ((labels[:count] < 0) | (labels[:count] >= classes)).any():
        raise ValueError(f"the model gave labels beyond its {classes} classes, or a count of {count}")
