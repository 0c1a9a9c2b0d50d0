from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.bundle import Bundle, BundleError
from service.parity import Parity
from tests.service.conftest import make_parity


def outputs(parity: Parity) -> dict[str, Any]:
    return {field.name: getattr(parity, field.name) for field in fields(parity)}


def test_samples_survive_the_file(tmp_path: Path) -> None:
    written = make_parity()
    (tmp_path / "parity.npz").write_bytes(written.to_bytes())
    read = Parity.load(tmp_path / "parity.npz")
    for field in fields(written):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(written, field.name))


def test_equal_outputs_have_no_gap() -> None:
    assert set(make_parity().gaps(outputs(make_parity())).values()) == {0.0}


def test_a_gap_is_relative_to_the_largest_expected_value() -> None:
    parity = make_parity()
    largest = float(np.abs(parity.logits).max())
    shifted = outputs(parity) | {"logits": parity.logits + np.float32(0.5)}
    assert parity.gaps(shifted)["logits"] == pytest.approx(0.5 / max(1.0, largest), rel=1e-5)


@pytest.mark.parametrize("wrong", [np.zeros((1, 1), np.float32), np.full((3, 5), np.nan, np.float32)])
def test_another_shape_or_a_nan_is_an_infinite_gap(wrong: Any) -> None:
    parity = make_parity()
    assert parity.gaps(outputs(parity) | {"logits": wrong})["logits"] == float("inf")


@pytest.mark.parametrize(
    "changes",
    [
        {"images": np.zeros((3, 8, 8, 3), np.float32)},
        {"alpha": np.zeros(3, np.float64)},
        {"alpha": np.zeros(2, np.float32)},
        {"logits": np.full((3, 5), np.nan, np.float32)},
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must be"):
        replace(make_parity(), **changes)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04truncated"])
def test_a_damaged_file_is_refused_with_its_path(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "parity.npz"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"parity\.npz does not hold parity samples"):
        Parity.load(path)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "parity.npz"
    np.savez(path, **(outputs(make_parity()) | {"logits": np.array([{"a": 1}], dtype=object)}))
    with pytest.raises(BundleError, match="parity samples"):
        Parity.load(path)


def test_samples_of_another_input_size_do_not_fit_the_bundle(paper_bundle: Bundle) -> None:
    (paper_bundle.path / "parity.npz").write_bytes(make_parity(size=9).to_bytes())
    with pytest.raises(BundleError, match=r"do not fit a model of 8x8 pixels and 5 classes"):
        paper_bundle.parity()
