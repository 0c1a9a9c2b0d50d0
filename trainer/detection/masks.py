"""Masks of files, polygons or COCO's run-length code, and their pixels. Knows no files and no network."""

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


def run_lengths(segmentation: Rle, height: int, width: int) -> bytes | None:
    """Compress a run-length code of a file, be it compressed or a list of numbers; None where no pixel is in it.

    So it is, too, where it is no code of a picture of this size.

    COCO's compression writes each count in groups of 5 bits, the lowest first, offset by 48; from the fourth count on
    it is the difference to the count two places before.
    """
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(size, list) or size != [height, width]:
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
