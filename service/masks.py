"""From a detector's small masks to pixels of the picture, as COCO's run-length encoding. Pure numpy.

A mask of m x m probabilities lies within its box, each the value at the centre of its cell. Between the centres it is
bilinear, and beyond the outermost ones it falls off to zero at one cell's distance; outside of the box it is zero. A
pixel belongs to the object where the value at the pixel's centre reaches the threshold.

No picture is made for that: down a column of pixels the value is a line between one cell's centre and the next, so the
runs follow from where those lines cross the threshold. Only cells between whose four centres they can cross are looked
at, one step for each in each of its columns of pixels; `most_steps` tells beforehand how many these are. Masks are
taken together, as far as the steps of a block go.

Source: COCO's API, *Mask*: counts of zeros and ones in turn, column by column, packed in groups of five bits.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

_ROUNDING = 1e-12
"""How much of itself a value may lose on the way between two centres."""
_BLOCK = 100_000
"""Steps that are taken at once: few enough for the processor's cache, enough for numpy."""


class _Crossings(NamedTuple):
    """Where values cross the threshold between a cell's centre and the next below it, each [s], column by column.

    Attributes:
        mask, column, cell: which mask, column of pixels and cell.
        before, after: the values at the cell's centre and at the next.
    """

    mask: Counts
    column: Counts
    cell: Counts
    before: Floats
    after: Floats


def pack_masks(masks: NDArray[np.float32], boxes: Floats, *, width: int, height: int, threshold: float) -> list[str]:
    """Return the packed counts of each mask: `pack_counts` of its `mask_runs`.

    Args:
        masks: probabilities, [n, m, m].
        boxes: (x1, y1, x2, y2) in pixels of the picture, [n, 4].
        width, height: of the picture.
        threshold: above 0.

    >>> boxes = np.array([[1.0, 1.0, 3.0, 3.0], [1.0, 1.0, 2.0, 2.0]])
    >>> pack_masks(np.ones((2, 1, 1), np.float32), boxes, width=4, height=4, threshold=0.5)
    ['52203', '51:']
    """
    packed = []
    for block in _blocks(_steps(masks, boxes, threshold)):
        packed += _packed(*_runs(masks[block], boxes[block], width, height, threshold))
    return packed


def most_steps(masks: NDArray[np.float32], boxes: Floats, threshold: float) -> int:
    """Return how many steps it takes at most to find the runs of masks; a step gives at most one count.

    >>> most_steps(np.ones((1, 1, 1), np.float32), np.array([[1.0, 1.0, 3.0, 3.0]]), threshold=0.5)
    12
    """
    return int(_steps(masks, boxes, threshold).sum())


def mask_runs(
    mask: NDArray[np.float32], box: tuple[float, float, float, float], *, width: int, height: int, threshold: float
) -> Counts:
    """Return the lengths of the runs of zeros and ones in turn, column by column from the left, zeros first.

    With centres at `v_j = y1 + (j + 1/2) (y2 - y1) / m - 1/2` in rows of pixels, the value in row y between `v_j` and
    `v_(j+1)` is linear; likewise across columns.

    >>> mask_runs(np.ones((1, 1), np.float32), (1, 1, 3, 3), width=4, height=4, threshold=0.5).tolist()
    [5, 2, 2, 2, 5]
    """
    counts, _ = _runs(mask[None], np.array([box], np.float64), width, height, threshold)
    return counts


def pack_counts(counts: Counts) -> str:
    """Return the counts as COCO packs them: from the fourth on less the one before the last, in groups of five bits.

    The lowest group comes first; the sixth bit says that another follows; 48 makes it a printable character.

    >>> pack_counts(np.array([5, 2, 2, 2, 5]))
    '52203'
    """
    return _packed(counts, np.array([len(counts)]))[0]


def _steps(masks: NDArray[np.float32], boxes: Floats, threshold: float) -> Counts:
    """Return how many steps each mask takes at most, [n]."""
    columns = (boxes[:, 2] - boxes[:, 0]).clip(0) / masks.shape[-1] + 1
    steps: Counts = _mixed(_padded(masks), threshold).sum(axis=(1, 2)) * columns.astype(np.int64)
    return steps


def _blocks(steps: Counts) -> Iterator[slice]:
    """Yield stretches of masks that together take about as many steps as a block has."""
    block = (steps.cumsum() - steps) // _BLOCK
    edges = np.flatnonzero(np.diff(block, prepend=-1, append=-1)).tolist()
    yield from map(slice, edges, edges[1:])


def _padded(masks: NDArray[np.float32]) -> Floats:
    return np.pad(masks.astype(np.float64), ((0, 0), (1, 1), (1, 1)))


def _mixed(padded: Floats, threshold: float) -> NDArray[np.bool_]:
    """Return between which four centres the value can cross the threshold, rounding included, [n, m + 1, m + 1]."""
    above, below = padded >= threshold * (1 + _ROUNDING), padded < threshold * (1 - _ROUNDING)
    mixed: NDArray[np.bool_] = ~(_all_four(above) | _all_four(below))
    return mixed


def _all_four(centres: NDArray[np.bool_]) -> NDArray[np.bool_]:
    pairs = centres[:, 1:] & centres[:, :-1]
    return pairs[..., 1:] & pairs[..., :-1]


def _runs(
    masks: NDArray[np.float32], boxes: Floats, width: int, height: int, threshold: float
) -> tuple[Counts, Counts]:
    """Return the counts of all masks one after the other, and how many each has."""
    y1, y2, pixels = boxes[:, 1], boxes[:, 3], width * height
    mask, column, cell, before, after = _crossings(masks, boxes, width, threshold)
    cells = np.arange(-1, masks.shape[-1] + 1) + 0.5
    centres = y1[:, None] + cells * ((y2 - y1) / masks.shape[-1])[:, None] - 0.5
    crossing = centres[mask, cell] + (threshold - before) / (after - before) * (centres[:, 1] - centres[:, 0])[mask]
    row = np.where(after > before, np.ceil(crossing), np.floor(crossing) + 1)
    top, bottom = _bounds(y1, y2, height)
    turns = column * height + row.clip(top[mask], bottom[mask]).astype(np.int64)
    within = turns < pixels
    return _counts(mask[within] * pixels + turns[within], len(masks), pixels)


def _crossings(masks: NDArray[np.float32], boxes: Floats, width: int, threshold: float) -> _Crossings:
    x1, x2, cells, padded = boxes[:, 0], boxes[:, 2], masks.shape[-1], _padded(masks)
    first, end = _bounds(x1, x2, width)
    mask, column = _each_of(np.where(x2 > x1, end - first, 0), first)
    scale = cells / np.where(x2 > x1, x2 - x1, 1.0)
    place = (column + 0.5 - x1[mask]) * scale[mask] + 0.5
    left = np.floor(place).astype(np.int64).clip(0, cells)
    share = place - left
    mixed = _mixed(padded, threshold).swapaxes(1, 2)  # column of cells by column
    of, across, down = np.nonzero(mixed)
    per = mixed.sum(axis=2)
    at, step = _each_of(per[mask, left], (per.cumsum().reshape(per.shape) - per)[mask, left])
    rest, share = 1 - share[at], share[at]
    before, after = (
        rest * padded[of, row, across][step] + share * padded[of, row, across + 1][step] for row in (down, down + 1)
    )
    crosses = np.flatnonzero((after >= threshold) != (before >= threshold))
    at, step = at[crosses], step[crosses]
    return _Crossings(mask[at], column[at], down[step], before[crosses], after[crosses])


def _each_of(numbers: Counts, starts: Counts) -> tuple[Counts, Counts]:
    """Return, `numbers[i]` times for each i, i itself and what counts up from `starts[i]`."""
    which = np.repeat(np.arange(len(numbers)), numbers)
    return which, np.arange(len(which)) + np.repeat(starts - (numbers.cumsum() - numbers), numbers)


def _bounds(start: Floats, end: Floats, length: int) -> tuple[Counts, Counts]:
    """Return the first pixel whose centre lies between both, and the one after the last."""
    first = np.ceil(start - 0.5).clip(0, length)
    return first.astype(np.int64), (np.floor(end - 0.5) + 1).clip(first, length).astype(np.int64)


def _counts(turns: Counts, masks: int, pixels: int) -> tuple[Counts, Counts]:
    """Return the lengths between the places where zeros turn into ones and back; two at one place undo each other."""
    turns.sort(kind="stable")  # they are in order but for rounding
    first = np.flatnonzero(np.diff(turns, prepend=-1))
    places = turns[first[np.diff(first, append=len(turns)) % 2 == 1]]
    ends = np.sort(np.concatenate([places, np.arange(1, masks + 1) * pixels]), kind="stable")
    return np.diff(ends, prepend=0), np.bincount(places // pixels, minlength=masks) + 1


def _packed(counts: Counts, lengths: Counts) -> list[str]:
    """Return the counts packed: of each mask so many, one after the other."""
    starts = lengths.cumsum() - lengths
    numbers = counts.copy()
    numbers[2:] -= counts[:-2]
    for place in (starts, starts + 1, starts + 2):
        there = place[place < starts + lengths]
        numbers[there] = counts[there]
    groups, rest = [], np.arange(len(numbers))
    while len(rest):
        group, numbers = numbers & 31, numbers >> 5
        ends = np.where(group & 16, numbers == -1, numbers == 0)
        groups.append(np.zeros(len(counts), np.uint8))
        groups[-1][rest] = group + np.where(ends, 48, 80)
        rest, numbers = rest[~ends], numbers[~ends]
    signs = np.stack(groups, axis=1)
    text = signs[signs > 0].tobytes().decode("ascii")
    stops = np.add.reduceat((signs > 0).sum(axis=1), starts).cumsum().tolist()
    return [text[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
