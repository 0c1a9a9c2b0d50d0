from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from service.manifest import AlphaSpec, ClassInfo, InputSpec, shot_group_of
from service.temperature import Calibration
from tests.service.conftest import make_draft
from tests.service.tiny_detector import DETECTION, LONGEST_SIDE, make_detection_draft


@pytest.mark.parametrize(("count", "group"), [(1, "few"), (19, "few"), (20, "medium"), (100, "medium"), (101, "many")])
def test_the_shot_group_follows_from_the_training_count(count: int, group: str) -> None:
    assert shot_group_of(count) == group
    assert ClassInfo.of("cat", count).shot_group == group


def test_a_shot_group_that_contradicts_the_count_is_refused() -> None:
    cat = ClassInfo(name="cat", train_count=5, shot_group="many")
    with pytest.raises(
        ValidationError,
        match=r"classes\.1\.shot_group of class 'cat' with 5 training samples is 'few', got 'many'; use ClassInfo",
    ):
        make_draft(classes=[ClassInfo.of("dog", 1), cat])
    assert make_detection_draft(classes=[ClassInfo.of("dog", 1), cat]).classes[1].shot_group == "many"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": [ClassInfo.of("a", 1), ClassInfo.of("a", 2)]}, "each class name occurs once, got 'a' twice"),
        ({"classes": [ClassInfo.of("a", 1)]}, "classes: a classifier has at least 2, got 1"),
        ({"classes": [ClassInfo.of("a", 1), ClassInfo.of("b", 0)]}, r"classes\.1\.train_count of class 'b': .* got 0"),
        ({"detection": DETECTION}, "detection: task 'classification' has no detection"),
        (
            {"input": LONGEST_SIDE},
            r"input\.resize: task 'classification' takes 'exact' or 'shortest_side', got 'longest",
        ),
        ({"task": "segmentation"}, "task: Input should be|'classification' or 'detection'"),
        ({"provenance": {"loss": float("nan")}}, "provenance holds a NaN"),
        ({"name": "../evil"}, "name"),
        ({"colour": "blue"}, "Extra inputs are not permitted"),
    ],
)
def test_a_draft_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_draft(**changes)


@pytest.mark.parametrize("default", [-0.1, 3.1, float("nan"), float("inf")])
def test_a_default_alpha_outside_its_range_is_refused(default: float) -> None:
    with pytest.raises(ValidationError):
        AlphaSpec(default=default, chosen_by="recipe", minimum=0, maximum=3)


CALIBRATION = Calibration(log_temperature=(0, 0, 0, 0, 0, 0), images=1)


def spec(**changes: Any) -> InputSpec:
    fields: dict[str, Any] = {"height": 24, "width": 32, "resize": "exact", "mean": (0, 0, 0), "std": (1, 1, 1)}
    return InputSpec(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize_size": 40}, "takes no resize_size"),
        ({"resize": "longest_side", "resize_size": 40}, "resize 'longest_side' takes no resize_size, got 40"),
        ({"resize": "longest_side", "crop": "with_resize"}, "needs resize 'shortest_side', got 'longest_side'"),
        ({"resize": "shortest_side"}, "needs a resize_size of at least 32"),
        ({"resize": "shortest_side", "resize_size": 31}, "got 31"),
        ({"std": (1, 0, 1)}, "std must be above 0"),
        ({"mean": (0, 0, float("inf"))}, "finite"),
    ],
)
def test_an_input_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(**changes)


def test_exact_stretches_any_picture_to_the_input() -> None:
    assert spec().geometry(100, 7) == ((32, 24), (0, 0, 32, 24))


@pytest.mark.parametrize("size", [(1, 1), (33, 500), (500, 33), (40, 40), (41, 63)])
def test_the_crop_of_the_shortest_side_lies_within_the_resized_picture(size: tuple[int, int]) -> None:
    resized, (left, top, right, bottom) = spec(resize="shortest_side", resize_size=40).geometry(*size)
    assert min(resized) == 40
    assert 0 <= left < right <= resized[0]
    assert 0 <= top < bottom <= resized[1]
    picture = Image.new("RGB", size).resize(resized).crop((left, top, right, bottom))
    assert picture.size == (32, 24)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detection": None}, "detection: task 'detection' needs one, got none; say stages"),
        ({"input": spec()}, r"input\.resize: task 'detection' takes 'longest_side', got 'exact'; use that one"),
        ({"calibration": CALIBRATION}, "calibration: task 'detection' has none, got one; leave it out"),
        ({"classes": []}, "at least 1"),
    ],
)
def test_a_detector_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_detection_draft(**changes)


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((32, 24), (32, 24)),
        ((64, 48), (32, 24)),
        ((8, 6), (32, 24)),  # a small picture grows
        ((100, 7), (32, 2)),  # 2.24
        ((64, 9), (32, 5)),  # 4.5, half up
        ((64, 7), (32, 4)),  # 3.5, half up
        ((48, 500), (2, 24)),  # 2.3
        ((4000, 1), (32, 1)),
        ((1, 4000), (1, 24)),
    ],
)
def test_the_longest_side_just_fits_at_the_top_left(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    rule = spec(resize="longest_side")
    assert rule.geometry(*size) == (fitted, (0, 0, 32, 24))
    white = Image.new("RGB", size, (255, 255, 255)).resize(fitted)
    pixels = np.asarray(white.crop((0, 0, 32, 24)))
    assert pixels.shape == (24, 32, 3)
    assert (pixels[: fitted[1], : fitted[0]] == 255).all()
    assert pixels.sum(dtype=int) == 255 * 3 * fitted[0] * fitted[1]


def test_class_shares_sum_to_one() -> None:
    assert np.exp(make_draft().log_class_share()).sum() == pytest.approx(1.0)
