"""Regions of a picture to features of one size: each region from the level of the pyramid that fits its size.

It knows nothing of classes.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import roi_align

from trainer.detection.backbone import STRIDES

FULL_SIDE = 224.0
"""A region of this side (input pixels) belongs to stride 16, one of half or twice the side to the level beside it."""
SAMPLES = 2
"""Points along each side of a bin whose mean is taken."""


def region_levels(boxes: Float[Tensor, "n 4"]) -> Int[Tensor, " n"]:
    """Choose each box's level: ``floor(2 + log2(side / 224))``, 0 for stride 4 to 3 for stride 32, side by area.

    Written as comparisons of areas, which no logarithm's last digit can turn.

    Example:
        >>> region_levels(torch.tensor([[0.0, 0, 111, 112], [0, 0, 112, 112], [0, 0, 1000, 1000]])).tolist()
        [0, 1, 3]

    Source: Lin et al., *Feature Pyramid Networks for Object Detection*, CVPR 2017, Eq. 1.
    """
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    borders = [(FULL_SIDE * scale) ** 2 for scale in (0.5, 1.0, 2.0)]
    return torch.stack([area >= border for border in borders]).sum(dim=0)


def pool_regions(maps: list[Tensor], regions: Float[Tensor, "n 5"], size: int) -> Float[Tensor, "n channels size size"]:
    """Pool each region from its level by RoIAlign.

    Args:
        maps: of the pyramid, strides 4 to 32 first; coarser ones are not pooled from.
        regions: the picture's row in the batch, and x1, y1, x2, y2 in input pixels.
        size: steps along each side of the result.

    Source: He et al., *Mask R-CNN*, ICCV 2017; with the half-pixel shift of ``aligned=True``.
    """
    levels = region_levels(regions[:, 1:])
    if torch.onnx.is_in_onnx_export():
        return _pool_everywhere(maps, regions, levels, size)
    rows = [(levels == level).nonzero().flatten() for level in range(4)]
    pooled = [_align(maps, level, regions[chosen], size) for level, chosen in enumerate(rows)]
    return torch.cat(pooled)[torch.cat(rows).argsort()]


def _pool_everywhere(maps: list[Tensor], regions: Tensor, levels: Tensor, size: int) -> Tensor:
    """Pool all regions from all levels and choose: four times the work, but every shape is known beforehand."""
    pooled = _align(maps, 0, regions, size)
    for level in (1, 2, 3):
        pooled = torch.where((levels == level)[:, None, None, None], _align(maps, level, regions, size), pooled)
    return pooled


def _align(maps: list[Tensor], level: int, regions: Tensor, size: int) -> Tensor:
    pooled: Tensor = roi_align(maps[level], regions, size, 1 / STRIDES[level], SAMPLES, aligned=True)
    return pooled
