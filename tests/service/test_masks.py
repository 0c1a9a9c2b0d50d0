import numpy as np
import pytest
from faster_coco_eval.core import mask as coco
from numpy.typing import NDArray

from service.masks import _BLOCK as BLOCK
from service.masks import mask_runs, most_steps, pack_counts, pack_masks

WIDTH, HEIGHT = 61, 43
GENERATOR = np.random.default_rng(0)


def smooth(side: int) -> NDArray[np.float32]:
    """A blob with a hole, and noise."""
    row, column = np.mgrid[0:side, 0:side] - (side - 1) / 2
    radius = np.hypot(row, column) / side
    blob = 1.3 - 2.5 * np.abs(radius - 0.3) + GENERATOR.normal(scale=0.15, size=(side, side))
    values: NDArray[np.float32] = blob.clip(0, 1).astype(np.float32)
    return values


def drawn(
    mask: NDArray[np.float32], box: tuple[float, ...], threshold: float, width: int = WIDTH, height: int = HEIGHT
) -> NDArray[np.float64]:
    """The value at every pixel's centre less the threshold, pixel by pixel; outside of the box below zero."""
    x1, y1, x2, y2 = box
    side, padded = len(mask), np.pad(mask.astype(np.float64), 1)
    values = np.full((height, width), -threshold)
    for y in range(height):
        for x in range(width):
            if x1 <= x + 0.5 <= x2 and y1 <= y + 0.5 <= y2:
                u = (x + 0.5 - x1) / (x2 - x1) * side + 0.5
                v = (y + 0.5 - y1) / (y2 - y1) * side + 0.5
                i, j = min(int(u), side), min(int(v), side)
                across = (1 - (u - i)) * padded[j : j + 2, i] + (u - i) * padded[j : j + 2, i + 1]
                values[y, x] = (1 - (v - j)) * across[0] + (v - j) * across[1] - threshold
    return values


BOXES = [
    (0.0, 0.0, 61.0, 43.0),
    (3.2, 4.7, 30.9, 40.1),
    (10.0, 20.0, 13.0, 22.0),
    (59.5, 0.0, 61.0, 43.0),
    (20.3, 10.1, 20.4, 40.0),  # no column's centre lies within
    (5.0, 7.0, 5.0, 7.0),
]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize(("side", "threshold"), [(28, 0.5), (7, 0.3), (1, 0.5)])
def test_runs_are_those_of_the_drawn_mask_and_pack_as_cocos(
    box: tuple[float, float, float, float], side: int, threshold: float
) -> None:
    mask = smooth(side)
    counts = mask_runs(mask, box, width=WIDTH, height=HEIGHT, threshold=threshold)
    packed = {"size": [HEIGHT, WIDTH], "counts": pack_counts(counts)}
    found, margin = coco.decode(packed).astype(bool), drawn(mask, box, threshold)
    clear = np.abs(margin) > 1e-9
    np.testing.assert_array_equal(found[clear], margin[clear] > 0)
    again = coco.encode(np.asfortranarray(found.astype(np.uint8)))
    assert packed["counts"] == _text(again["counts"])
    assert counts.sum() == WIDTH * HEIGHT
    assert (counts[1:] > 0).all()


def alone(masks: NDArray[np.float32], boxes: NDArray[np.float64], width: int, height: int) -> list[NDArray[np.int64]]:
    each = zip(masks, boxes.tolist(), strict=True)
    return [mask_runs(mask, tuple(box), width=width, height=height, threshold=0.5) for mask, box in each]


@pytest.mark.parametrize(("width", "height"), [(31, 23), (97, 1), (1, 64), (90, 5)])
def test_masks_taken_together_are_those_of_drawing_each(width: int, height: int) -> None:
    generator = np.random.default_rng(width)
    for side in (28, 7, 2):
        noise, steep = generator.random((4, side, side)), generator.choice([0.0, 0.3, 0.5, 0.7], (4, side, side))
        masks = np.concatenate([noise, steep, np.ones((2, side, side)), np.zeros((1, side, side))]).astype(np.float32)
        x, y = (np.sort(generator.uniform(-2, most + 2, (len(masks), 2))).clip(0, most) for most in (width, height))
        boxes = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)
        boxes[0], boxes[1, 2] = (0, 0, width, height), boxes[1, 0]  # all of it, and nothing
        boxes[2, [0, 2]] = boxes[2, [2, 0]]  # which no detector should give, is nothing too
        packed = pack_masks(masks, boxes, width=width, height=height, threshold=0.5)
        assert most_steps(masks, boxes, 0.5) >= sum(map(len, alone(masks, boxes, width, height))) - len(masks)
        for mask, box, counts in zip(masks, boxes.tolist(), packed, strict=True):
            found = coco.decode({"size": [height, width], "counts": counts}).astype(bool)
            margin = drawn(mask, tuple(box), 0.5, width, height)
            clear = np.abs(margin) > 1e-9
            np.testing.assert_array_equal(found[clear], margin[clear] > 0)
            assert counts == _text(coco.encode(np.asfortranarray(found.astype(np.uint8)))["counts"])


def test_many_masks_are_taken_in_blocks_and_each_stays_itself() -> None:
    masks = GENERATOR.random((40, 28, 28)).astype(np.float32)
    boxes = np.tile([0.0, 0.0, 640.0, 48.0], (40, 1))
    assert most_steps(masks, boxes, 0.5) > 3 * BLOCK
    together = pack_masks(masks, boxes, width=640, height=48, threshold=0.5)
    assert together == [pack_counts(counts) for counts in alone(masks, boxes, 640, 48)]
    assert pack_masks(masks[:0], boxes[:0], width=640, height=48, threshold=0.5) == []


@pytest.mark.parametrize("picture", [(1, 1), (4000, 3000), (3, 20_000)])
def test_whole_and_empty_pictures_pack_as_cocos(picture: tuple[int, int]) -> None:
    width, height = picture
    for value in (1.0, 0.0):
        mask = np.full((28, 28), value, np.float32)
        counts = mask_runs(mask, (0.0, 0.0, width, height), width=width, height=height, threshold=0.5)
        found = coco.decode({"size": [height, width], "counts": pack_counts(counts)})
        assert found.mean() == pytest.approx(value, abs=0.05)


def test_many_counts_pack_as_cocos() -> None:
    counts = GENERATOR.integers(1, [3, 40, 2000, 3_000_000], (50, 4)).reshape(-1)
    height = int(counts.sum())
    assert pack_counts(counts) == _text(
        coco.frPyObjects({"size": [height, 1], "counts": counts.tolist()}, height, 1)["counts"]
    )


def _text(counts: bytes | str) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts
