"""Small sums on boxes x1, y1, x2, y2, in input pixels."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SMALLEST_SIDE = 1e-3


def clip(boxes: Float[Tensor, "*n 4"], size: Float[Tensor, " 2"]) -> Float[Tensor, "*n 4"]:
    """Cut boxes off where the picture ends.

    Example:
        >>> clip(torch.tensor([[-1.0, 2.0, 9.0, 9.0]]), torch.tensor([5.0, 7.0])).tolist()
        [[0.0, 2.0, 7.0, 5.0]]
    """
    height, width = size.unbind()
    return torch.minimum(boxes.clamp(min=0), torch.stack((width, height, width, height)))


def has_area(boxes: Float[Tensor, "*n 4"]) -> Bool[Tensor, "*n"]:
    """Tell which boxes have both sides longer than nothing."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return (sides > SMALLEST_SIDE).all(dim=-1)


def regions_of(boxes: list[Tensor]) -> Float[Tensor, "n 5"]:
    """Put the boxes [n, 4] of all pictures under each other, each with its picture's row before it."""
    return torch.cat([torch.nn.functional.pad(one, (1, 0), value=float(row)) for row, one in enumerate(boxes)])
