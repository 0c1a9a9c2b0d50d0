"""What passes between the parts of detection: targets, batches, detections and foreground features. Plain tensors."""

from typing import NamedTuple

from torch import Tensor


class Targets(NamedTuple):
    """What is to be found in one picture, in input pixels."""

    boxes: Tensor
    """Float32 [n, 4]: x1, y1, x2, y2, with x1 < x2 and y1 < y2."""
    labels: Tensor
    """Int64 [n], 0 to C - 1; the background has no targets."""
    masks: Tensor
    """Bool [n, H, W], H and W those of the padded batch."""


class Batch(NamedTuple):
    """Pictures of one size: each lies at the top left, and the rest is zero."""

    pixels: Tensor
    """Uint8 [N, H, W, 3] RGB."""
    sizes: Tensor
    """Float32 [N, 2]: height and width of the part that is picture."""
    targets: tuple[Targets, ...]
    """One for each picture."""


class Detections(NamedTuple):
    """What was found in one picture, scores falling."""

    boxes: Tensor
    """Float32 [n, 4]: x1, y1, x2, y2 in input pixels, within the picture's part."""
    scores: Tensor
    """Float32 [n]: probabilities."""
    labels: Tensor
    """Int64 [n], 0 to C - 1."""
    masks: Tensor
    """Float32 [n, m, m]: probabilities on an even grid over the box."""


class ForegroundFeatures(NamedTuple):
    """The sum of the features of foreground regions, and how many there were, for each stage of the cascade."""

    sums: Tensor
    """Float32 [stages, D]."""
    counts: Tensor
    """Float32 [stages]."""
