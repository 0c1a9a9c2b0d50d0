from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from service.manifest import AlphaSpec, ClassInfo, InputSpec, shot_group_of
from tests.service.conftest import make_draft


@pytest.mark.parametrize(("count", "group"), [(1, "few"), (19, "few"), (20, "medium"), (100, "medium"), (101, "many")])
def test_the_shot_group_follows_from_the_training_count(count: int, group: str) -> None:
    assert shot_group_of(count) == group
    assert ClassInfo.of("cat", count).shot_group == group


def test_a_shot_group_that_contradicts_the_count_is_refused() -> None:
    with pytest.raises(
        ValidationError, match=r"shot_group of class 'cat' with 5 training samples is 'few', got 'many'"
    ):
        ClassInfo(name="cat", train_count=5, shot_group="many")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": [ClassInfo.of("a", 1), ClassInfo.of("a", 2)]}, "each class name occurs once, got 'a' twice"),
        ({"classes": [ClassInfo.of("a", 1)]}, "at least 2"),
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


def spec(**changes: Any) -> InputSpec:
    fields: dict[str, Any] = {"height": 24, "width": 32, "resize": "exact", "mean": (0, 0, 0), "std": (1, 1, 1)}
    return InputSpec(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize_size": 40}, "takes no resize_size"),
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


def test_class_shares_sum_to_one() -> None:
    assert np.exp(make_draft().log_class_share()).sum() == pytest.approx(1.0)
