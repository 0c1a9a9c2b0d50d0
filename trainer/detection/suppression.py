"""Non-maximum suppression within each class, and the best of what is left, in a fixed number of rows.

It knows neither networks nor what the classes are: to it, a level of the pyramid is a picture like another.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import nms

LOWEST = torch.finfo(torch.float32).min


class Kept(NamedTuple):
    """Boxes that are kept, scores falling; rows beyond the last one have index 0 and score minus infinity."""

    pictures: Int[Tensor, " keep"]
    classes: Int[Tensor, " keep"]
    boxes: Int[Tensor, " keep"]
    scores: Float[Tensor, " keep"]


def best_boxes(
    boxes: Float[Tensor, "n p 4"],
    scores: Float[Tensor, "n classes p"],
    *,
    keep: int,
    iou: float,
    threshold: float = LOWEST,
) -> Kept:
    """Suppress every box that overlaps a better one of its picture and class, and keep the best of all.

    Classes are handled one by one. Shifting the boxes of each class apart and suppressing them all at once, as is
    often done, is wrong for many classes: in float32 large shifts eat up the digits of the coordinates.

    Args:
        boxes: x1, y1, x2, y2, the same for all classes.
        scores: of each box for each class.
        keep: rows of the result.
        iou: boxes that overlap by more are suppressed.
        threshold: scores must lie above it.
    """
    if torch.onnx.is_in_onnx_export():
        chosen = _chosen_in_onnx(boxes, scores, keep, iou, threshold)
    else:
        chosen = _chosen(boxes, scores, keep, iou, threshold)
    picture, label, box = chosen.unbind(dim=1)
    found = scores.flatten()[(picture * scores.shape[1] + label) * scores.shape[2] + box]
    # So many empty rows behind what was found that there always are enough to keep.
    empty = chosen.new_zeros(keep)
    found, order = torch.cat((found, torch.full_like(empty, -torch.inf, dtype=found.dtype))).topk(keep)
    picture, label, box = (torch.cat((index, empty))[order] for index in (picture, label, box))
    return Kept(picture, label, box, found)


def _chosen(boxes: Tensor, scores: Tensor, keep: int, iou: float, threshold: float) -> Tensor:
    """Name what is left of each picture and class, rows of (picture, class, box).

    On the CPU whatever the device: many small problems are no work for a GPU.
    """
    device = boxes.device
    boxes, scores = boxes.detach().cpu(), scores.detach().cpu()
    above = scores > threshold
    rows = []
    for picture, label in above.any(dim=2).nonzero().tolist():
        candidates = above[picture, label].nonzero().flatten()
        left = nms(boxes[picture, candidates], scores[picture, label, candidates], iou)[:keep]
        box = candidates[left]
        rows.append(torch.stack((torch.full_like(box, picture), torch.full_like(box, label), box), dim=1))
    chosen = torch.cat(rows) if rows else torch.zeros((0, 3), dtype=torch.int64)
    return chosen.to(device)


def _chosen_in_onnx(boxes: Tensor, scores: Tensor, keep: int, iou: float, threshold: float) -> Tensor:
    """The same by ONNX's own operator; its rows are not known beforehand, so the shape stated is a stand-in."""
    limits = (torch.tensor([keep]), torch.tensor([iou]), torch.tensor([threshold]))
    return torch.onnx.ops.symbolic(
        "NonMaxSuppression", (boxes, scores, *limits), dtype=torch.int64, shape=(keep, 3), version=11
    )
