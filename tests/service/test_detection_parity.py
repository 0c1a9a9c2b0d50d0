from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.detection_parity import DETECTION_OUTPUTS, DetectionParity
from tests.service.tiny_detector import DETECTION, ROWS, THRESHOLD, tiny_detection_parity

PARITY = tiny_detection_parity()


def outputs(**changes: Any) -> dict[str, Any]:
    return {name: getattr(PARITY, name).copy() for name in DETECTION_OUTPUTS} | changes


def gaps(actual: dict[str, Any], parity: DetectionParity = PARITY) -> dict[str, float]:
    return parity.gaps(actual, DETECTION)


def reordered(one: int, other: int) -> dict[str, Any]:
    """The outputs of the first sample with two rows exchanged."""
    changed = outputs()
    for name in ("boxes", "scores", "labels", "masks"):
        changed[name][0, [one, other]] = changed[name][0, [other, one]]
    return changed


def without_last(changed: dict[str, Any]) -> dict[str, Any]:
    last = int(changed["count"][0]) - 1
    for name in ("boxes", "scores", "masks"):
        changed[name][0, last] = 0
    changed["labels"][0, last] = -1
    changed["count"][0] = last
    return changed


def test_samples_survive_the_file(tmp_path: Path) -> None:
    (tmp_path / "parity.npz").write_bytes(PARITY.to_bytes())
    read = DetectionParity.load(tmp_path / "parity.npz")
    for field in fields(PARITY):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(PARITY, field.name))


def test_equal_outputs_have_no_gap() -> None:
    assert set(gaps(outputs()).values()) == {0.0}


@pytest.mark.parametrize(
    ("name", "by", "gap"), [("boxes", 0.2, 0.2 / 32), ("scores", -0.001, 0.001), ("masks", 0.1, 0.1)]
)
def test_a_number_that_differs_is_the_gap_of_its_kind(name: str, by: float, gap: float) -> None:
    changed = outputs()
    changed[name][1, 1] += np.float32(by)
    found = gaps(changed)
    assert found.pop(name) == pytest.approx(gap, rel=1e-3)
    assert set(found.values()) == {0.0}


def test_nearly_equal_scores_in_another_order_are_no_gap() -> None:
    scores = PARITY.scores.copy()
    scores[0, 1] = scores[0, 2] = np.float32(0.4)
    expected = replace(PARITY, scores=scores)
    changed = reordered(1, 2)
    changed["scores"] = scores.copy()
    changed["scores"][0, 2] -= np.float32(1e-6)
    assert max(gaps(changed, expected).values()) == pytest.approx(1e-6, rel=0.1)


def test_another_label_leaves_both_without_their_like() -> None:
    changed = outputs()
    changed["labels"][0, 0] = 1
    assert gaps(changed)["unmatched"] == pytest.approx(PARITY.scores[0, 0] - THRESHOLD)


def test_a_box_elsewhere_leaves_both_without_their_like() -> None:
    changed = outputs()
    changed["boxes"][0, 1] -= np.float32(5)
    assert gaps(changed)["unmatched"] == pytest.approx(PARITY.scores[0, 1] - THRESHOLD)


def test_a_detection_lost_at_the_score_threshold_counts_by_what_it_lies_above() -> None:
    scores = PARITY.scores.copy()
    scores[0, int(PARITY.count[0]) - 1] = np.float32(THRESHOLD + 1e-5)
    found = gaps(without_last(outputs(scores=scores.copy())), replace(PARITY, scores=scores))
    assert found["unmatched"] == pytest.approx(1e-5, rel=0.1)


def test_a_detection_lost_at_the_last_row_counts_by_what_it_lies_above_the_one_that_took_it() -> None:
    full = {name: getattr(PARITY, name)[-1:].copy() for name in DETECTION_OUTPUTS}
    assert full["count"] == ROWS
    samples = {name: getattr(PARITY, name)[-1:] for name in ("images", "image_size", "alpha")}
    expected = DetectionParity(**samples, **{name: value.copy() for name, value in full.items()})
    full["labels"][0, -1] = 1
    full["scores"][0, -1] -= np.float32(1e-6)
    assert 0 < gaps(full, expected)["unmatched"] == pytest.approx(1e-6, rel=0.1)


def _beyond_count(changed: dict[str, Any]) -> None:
    assert changed["count"][0] < ROWS
    changed["labels"][0, -1] = 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda changed: changed["scores"].__setitem__((0, 0), np.nan),
        lambda changed: changed["count"].__setitem__(0, ROWS + 1),
        lambda changed: changed["count"].__setitem__(0, -1),
        lambda changed: changed["scores"].__setitem__((0, 0), changed["scores"][0, 1] / 2),
        lambda changed: changed["labels"].__setitem__((0, 0), -1),
        lambda changed: changed.update(boxes=changed["boxes"][:, :-1]),
        _beyond_count,
    ],
    ids=["nan", "count", "negative count", "rising", "no label", "shape", "beyond count"],
)
def test_what_is_no_answer_has_an_infinite_gap(spoil: Any) -> None:
    changed = outputs()
    spoil(changed)
    assert set(gaps(changed).values()) == {float("inf")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": PARITY.images.astype(np.float32)}, "images must be uint8"),
        ({"alpha": PARITY.alpha[:2]}, r"alpha must be float32 \[3\]"),
        ({"labels": PARITY.labels.astype(np.int32)}, "labels must be int64"),
        ({"image_size": PARITY.image_size * 2}, r"image_size must lie within the images of \[24, 32\]"),
        ({"count": PARITY.count - 1}, "sample 0: rows from count, 3, on must be zero"),
    ],
)
def test_samples_that_do_not_fit_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PARITY, **changes)
