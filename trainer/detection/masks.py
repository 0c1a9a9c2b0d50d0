"""Masks between polygons, COCO's run-length code, and pixels. Knows no files and no network."""

from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

Rle = dict[str, Any]
"""COCO's run-length code: ``size`` (height, width) and ``counts``, compressed, as bytes."""
Outline = list[NDArray[np.float32]] | Rle
"""A mask as a file holds it: polygons, each (x, y, x, y, ...) in pixels, or a run-length code."""


class Canvas(NamedTuple):
    """The pixels on which a picture is drawn anew: its size there, and its own."""

    height: int
    width: int
    own_height: int
    own_width: int


def draw(outline: Outline, canvas: Canvas) -> NDArray[np.bool_]:
    """Draw a mask at the size of a canvas, bool [height, width]; a run-length code by the nearest pixel."""
    if isinstance(outline, dict):
        mask = coco_mask.decode(outline)
        rows = (np.arange(canvas.height) + 0.5) * canvas.own_height / canvas.height
        columns = (np.arange(canvas.width) + 0.5) * canvas.own_width / canvas.width
        return np.asarray(mask[np.ix_(rows.astype(int), columns.astype(int))], dtype=bool)
    scale = np.array([canvas.width / canvas.own_width, canvas.height / canvas.own_height])
    polygons = [(ring.reshape(-1, 2) * scale).ravel().tolist() for ring in outline]
    parts = coco_mask.frPyObjects(polygons, canvas.height, canvas.width)
    return np.asarray(coco_mask.decode(coco_mask.merge(parts)), dtype=bool)


def paste(mask: NDArray[np.float32], box: NDArray[np.floating[Any]], size: tuple[int, int], threshold: float) -> Rle:
    """Lay a mask [m, m] over its box and keep the pixels that reach the threshold.

    The value at a pixel whose centre (x, y) lies in the box is the bilinear interpolation of the cells, with zeros
    beyond the outer ones, at ``u = (x - x1) / (x2 - x1) * m - 1/2`` and v alike. As it is separable, the box's part is
    ``A_y mask A_x'`` with the hat function ``A[i, j] = max(0, 1 - |u_i - j|)``.

    Args:
        mask: probabilities.
        box: x1, y1, x2, y2 in the picture's own pixels.
        size: height and width of the picture.
        threshold: of the mask.

    Example:
        >>> rle = paste(np.ones((4, 4), np.float32), np.array([1.0, 0.0, 3.0, 2.0]), (3, 4), 0.5)
        >>> coco_mask.decode(rle).tolist()
        [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    pixels = np.zeros(size, dtype=np.uint8, order="F")
    columns, across = _hats(box[0], box[2], size[1], mask.shape[1])
    rows, down = _hats(box[1], box[3], size[0], mask.shape[0])
    pixels[rows, columns] = down @ mask @ across.T >= threshold
    code: Rle = coco_mask.encode(pixels)
    return code


def _hats(low: float, high: float, size: int, cells: int) -> tuple[slice, NDArray[np.float32]]:
    """Find the pixels whose centres lie between two edges, and the weight of each cell there [pixels, cells]."""
    first, last = max(int(np.ceil(low - 0.5)), 0), min(int(np.floor(high - 0.5)), size - 1)
    centres = np.arange(first, max(last + 1, first)) + 0.5
    places = (centres - low) / max(high - low, 1e-6) * cells - 0.5
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(cells)))
    return slice(first, max(last + 1, first)), weights.astype(np.float32)


def run_lengths(segmentation: Rle, height: int, width: int) -> bytes | None:
    """Compress a run-length code of a file, be it compressed or a list of numbers; None where no pixel is in it.

    So it is, too, where it is no code of a picture of this size.

    COCO's compression writes each count in groups of 5 bits, the lowest first, offset by 48; from the fourth count on
    it is the difference to the count two places before.
    """
    counts = segmentation.get("counts")
    if list(segmentation.get("size") or []) != [height, width]:
        return None
    lengths = _unpacked(counts) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(type(one) is int and one >= 0 for one in lengths):
        return None
    if sum(lengths) != height * width or not sum(lengths[1::2]):
        return None
    return bytes(coco_mask.frPyObjects({"size": [height, width], "counts": lengths}, height, width)["counts"])


def _unpacked(text: str) -> list[int] | None:
    counts: list[int] = []
    value = shift = 0
    for char in text:
        group = ord(char) - 48
        if not 0 <= group < 64:
            return None
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts if shift == 0 else None
