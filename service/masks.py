"""From a detector's small masks to pixels of the picture, as COCO's run-length encoding. Pure numpy.

A mask of m x m probabilities lies within its box, each the value at the centre of its cell. Between the centres it is
bilinear, and beyond the outermost ones it falls off to zero at one cell's distance; outside of the box it is zero. A
pixel belongs to the object where the value at the pixel's centre reaches the threshold.

No picture is made for that: down a column of pixels the value is a line between one cell's centre and the next, so the
runs follow from where those lines cross the threshold. It costs as many steps as a box has columns, times m.

Source: COCO's API, *Mask*: counts of zeros and ones in turn, column by column, packed in groups of five bits.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def mask_runs(
    mask: NDArray[np.float32], box: tuple[float, float, float, float], *, width: int, height: int, threshold: float
) -> Counts:
    """Return the lengths of the runs of zeros and ones in turn, column by column from the left, zeros first.

    With centres at `v_j = y1 + (j + 1/2) (y2 - y1) / m - 1/2` in rows of pixels, the value in row y between `v_j` and
    `v_(j+1)` is linear; likewise across columns.

    Args:
        mask: probabilities, [m, m].
        box: (x1, y1, x2, y2) in pixels of the picture, whose corner is (0, 0).
        width, height: of the picture.
        threshold: above 0.

    >>> mask_runs(np.ones((1, 1), np.float32), (1, 1, 3, 3), width=4, height=4, threshold=0.5).tolist()
    [5, 2, 2, 2, 5]
    """
    x1, y1, x2, y2 = box
    columns = _pixels_within(x1, x2, width)
    top, bottom = _bounds(y1, y2, height)
    profiles, centres = _profiles(mask, columns, x1, x2), _centres(len(mask), y1, y2)
    column, cell = np.nonzero((profiles[:, 1:] >= threshold) != (profiles[:, :-1] >= threshold))
    before, after = profiles[column, cell], profiles[column, cell + 1]
    step = centres[1] - centres[0] if len(mask) else 0.0
    crossing = centres[cell] + (threshold - before) / (after - before) * step
    row = np.where(after > before, np.ceil(crossing), np.floor(crossing) + 1)
    turns = columns[column] * height + row.clip(top, bottom).astype(np.int64)
    return _counts(turns, width * height)


def _bounds(start: float, end: float, length: int) -> tuple[int, int]:
    """Return the first pixel whose centre lies between both, and the one after the last."""
    first = min(max(int(np.ceil(start - 0.5)), 0), length)
    return first, min(max(int(np.floor(end - 0.5)) + 1, first), length)


def _pixels_within(start: float, end: float, length: int) -> NDArray[np.int64]:
    return np.arange(*_bounds(start, end, length), dtype=np.int64)


def _centres(cells: int, start: float, end: float) -> Floats:
    """Return where the centres of the cells lie, in pixels, with one more on either side, [m + 2]."""
    centres: Floats = start + (np.arange(-1, cells + 1, dtype=np.float64) + 0.5) * ((end - start) / cells) - 0.5
    return centres


def _profiles(mask: NDArray[np.float32], columns: NDArray[np.int64], start: float, end: float) -> Floats:
    """Return for each column of pixels the values at the rows of cell centres, with zero on either side, [w, m + 2]."""
    cells = len(mask)
    padded = np.pad(mask.astype(np.float64), 1)
    place = (columns + 0.5 - start) * (cells / (end - start)) + 0.5 if end > start else np.zeros(len(columns))
    left = np.floor(place).astype(np.int64).clip(0, cells)
    share = (place - left)[:, None]
    profiles: Floats = (1 - share) * padded.T[left] + share * padded.T[left + 1]
    return profiles


def _counts(turns: NDArray[np.int64], pixels: int) -> Counts:
    """Return the lengths between the places where zeros turn into ones and back; two at one place undo each other."""
    places, times = np.unique(turns, return_counts=True)
    counts: Counts = np.diff(places[(times % 2 == 1) & (places < pixels)], prepend=0, append=pixels)
    return counts


def pack_counts(counts: Counts) -> str:
    """Return the counts as COCO packs them: from the fourth on less the one before the last, in groups of five bits.

    The lowest group comes first; the sixth bit says that another follows; 48 makes it a printable character.

    >>> pack_counts(np.array([5, 2, 2, 2, 5]))
    '52203'
    """
    numbers = counts.copy()
    numbers[3:] -= counts[1:-2]
    groups: list[NDArray[np.int64]] = []
    more = np.ones(len(numbers), bool)
    while more.any():
        group = numbers & 31
        numbers = numbers >> 5
        ends = np.where(group & 16, numbers == -1, numbers == 0)
        groups.append(np.where(more, group + np.where(ends, 48, 80), 0))
        more &= ~ends
    signs = np.stack(groups, axis=1).reshape(-1)
    return signs[signs > 0].astype(np.uint8).tobytes().decode("ascii")
