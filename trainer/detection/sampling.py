"""Boxes against targets: which of them a stage is trained on, and what each should become.

It knows neither features nor losses.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import box_iou

from trainer.detection.boxes import regions_of
from trainer.detection.types import Targets

NO_MATCH = -1


class Sampled(NamedTuple):
    """Regions of all pictures of a batch, with what each should become."""

    regions: Tensor
    """[n, 5]: the picture's row, and the box."""
    target: Tensor
    """Int64 [n]: the row, in its picture, of the target that the region overlaps most; -1 for the background."""
    labels: Tensor
    """Int64 [n]: that target's class; C for the background."""
    boxes: Tensor
    """[n, 4]: that target's box; for the background the region's own."""
    is_given: Tensor
    """Bool [n]: the region is itself a target's box, put among the proposals."""

    def foreground(self) -> "Sampled":
        """Take the regions that hold something."""
        rows = (self.target != NO_MATCH).nonzero().flatten()
        return Sampled(*(part[rows] for part in self))


def sample_regions(
    proposals: list[Tensor],
    targets: tuple[Targets, ...],
    *,
    iou: float,
    count: int,
    positive_share: float,
    background: int,
) -> Sampled:
    """Draw regions of each picture at random, from its proposals and its targets' own boxes.

    Args:
        proposals: [p, 4] of each picture.
        targets: of each picture; there may be none.
        iou: a region belongs to the target that it overlaps most, from this overlap on; else to the background.
        count: regions of a picture, at most.
        positive_share: the share of foreground among them, at most.
        background: C, its label.
    """
    sampler = BalancedPositiveNegativeSampler(count, positive_share)
    pairs = zip(proposals, targets, strict=True)
    parts = [_sample(boxes, wanted, iou, sampler, background) for boxes, wanted in pairs]
    regions, *rest = zip(*parts, strict=True)
    return Sampled(regions_of(list(regions)), *(torch.cat(column) for column in rest))


def _sample(
    proposals: Tensor, targets: Targets, iou: float, sampler: BalancedPositiveNegativeSampler, background: int
) -> tuple[Tensor, ...]:
    boxes = torch.cat((proposals, targets.boxes))
    match = _match(boxes, targets.boxes, iou)
    positive, negative = (mask[0].nonzero().flatten() for mask in sampler([match + 1]))  # it calls 0 the background
    chosen = torch.cat((positive, negative))
    boxes, match = boxes[chosen], match[chosen]
    labels, wanted = torch.full_like(match, background), boxes.clone()
    labels[: len(positive)] = targets.labels[match[: len(positive)]]
    wanted[: len(positive)] = targets.boxes[match[: len(positive)]]
    return boxes, match, labels, wanted, chosen >= len(proposals)


def _match(boxes: Tensor, targets: Tensor, iou: float) -> Tensor:
    if not len(targets):
        return torch.full((len(boxes),), NO_MATCH, device=boxes.device)
    match: Tensor = Matcher(iou, iou)(box_iou(targets, boxes))
    return match
