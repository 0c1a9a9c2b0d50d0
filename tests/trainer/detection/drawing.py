"""A mask laid over a picture by drawing every pixel: slow and plain, to hold the fast way against."""

from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray


def paste(
    mask: NDArray[np.float32], box: NDArray[np.floating[Any]], size: tuple[int, int], threshold: float
) -> dict[str, Any]:
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
    code: dict[str, Any] = coco_mask.encode(pixels)
    return code


def _hats(low: float, high: float, size: int, cells: int) -> tuple[slice, NDArray[np.float32]]:
    """Find the pixels whose centres lie between two edges, and the weight of each cell there [pixels, cells]."""
    first, last = max(int(np.ceil(low - 0.5)), 0), min(int(np.floor(high - 0.5)), size - 1)
    centres = np.arange(first, max(last + 1, first)) + 0.5
    places = (centres - low) / max(high - low, 1e-6) * cells - 0.5
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(cells)))
    return slice(first, max(last + 1, first)), weights.astype(np.float32)
