import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn.functional import grid_sample

from tests.trainer.detection.drawing import paste
from tests.trainer.tiny import patient
from trainer.detection.masks import run_lengths

SIZE = (23, 31)


def pasted(mask: NDArray[np.float32], box: list[float], threshold: float = 0.5) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = coco_mask.decode(paste(mask, np.array(box, np.float32), SIZE, threshold))
    return pixels


@pytest.mark.parametrize("box", [[2.3, 1.2, 20.7, 19.9], [-5, -3, 12, 40], [7, 7, 8.4, 7.6], [0, 0, 31, 23]])
def test_a_mask_is_laid_over_its_box_as_grid_sample_does(box: list[float]) -> None:
    mask = np.random.default_rng(0).random((9, 9), dtype=np.float32)
    x1, y1, x2, y2 = box
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    grid = np.stack([2 * (x - x1) / (x2 - x1) - 1, 2 * (y - y1) / (y2 - y1) - 1], axis=-1)
    sampled = grid_sample(
        torch.from_numpy(mask)[None, None].double(), torch.from_numpy(grid)[None], align_corners=False
    )
    inside = (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)
    expected = (sampled[0, 0].numpy() >= 0.5) & inside
    assert (pasted(mask, box) == expected).all()


def test_a_box_beside_the_picture_or_without_area_is_empty() -> None:
    for box in ([40, 2, 50, 9], [-9, -9, -1, -1], [3, 3, 3, 9], [5.6, 5.6, 5.9, 5.9]):
        assert not pasted(np.ones((4, 4), np.float32), box).any()


@patient
@given(st.lists(st.integers(0, 1), min_size=30, max_size=30))
def test_run_lengths_of_both_forms_come_back(bits: list[int]) -> None:
    pixels = np.array(bits, dtype=np.uint8).reshape(5, 6, order="F").copy(order="F")
    code = coco_mask.encode(pixels)
    edges = np.flatnonzero(np.diff(pixels.ravel("F"), prepend=0))
    lengths = np.diff([0, *edges, 30]).tolist()
    for counts in (code["counts"].decode(), lengths):
        read = run_lengths({"size": [5, 6], "counts": counts}, 5, 6)
        assert read == (code["counts"] if any(bits) else None)


@pytest.mark.parametrize("counts", ["", "0", "o", "\x10", [30.0], [31], [31, -1], ["30"], None, [True] * 30])
def test_what_is_no_code_of_the_picture_is_none(counts: object) -> None:
    assert run_lengths({"size": [5, 6], "counts": counts}, 5, 6) is None
