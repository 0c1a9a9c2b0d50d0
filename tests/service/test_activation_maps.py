from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.activation_maps import ActivationMaps, area_at_half_energy
from service.bundle import Bundle, BundleError
from service.exhibits import Exhibits

CLASSES, DIM, HEADS = 4, 6, 2


def make_maps(seed: int = 0, divisor: tuple[float, float] = (0, 1)) -> ActivationMaps:
    generator = np.random.default_rng(seed)
    direction = generator.normal(size=(HEADS, DIM // HEADS))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    weight = generator.normal(size=(CLASSES, DIM)).astype(np.float32)
    return ActivationMaps(weight, direction.astype(np.float32), np.array(divisor, np.float32))


def logits(maps: ActivationMaps, feature_map: np.ndarray, alpha: float) -> np.ndarray:
    """The formula of the logits, slice by slice, from pooled features."""
    total = np.zeros(CLASSES)
    pooled = feature_map.mean(axis=(1, 2)).reshape(HEADS, -1)
    weight = maps.class_weight.reshape(CLASSES, HEADS, -1).astype(float)
    for k, (x, d) in enumerate(zip(pooled, maps.unit_direction.astype(float), strict=True)):
        divisor = maps.divisor[0] + maps.divisor[1] * np.linalg.norm(x)
        normalised = x / divisor if divisor > 0 else x * 0
        total += weight[:, k] @ normalised - alpha * (normalised @ d) * (weight[:, k] @ d)
    return total


@given(st.integers(0, 50), st.floats(-1, 3), st.sampled_from([(0.0, 1.0), (1.0, 1.0), (1.0, 0.0)]))
def test_the_maps_sum_to_the_logits(seed: int, alpha: float, divisor: tuple[float, float]) -> None:
    maps = make_maps(seed, divisor)
    feature_map = np.random.default_rng(seed + 1).normal(size=(DIM, 3, 5)).astype(np.float32)
    found = maps.of(feature_map, alpha, range(CLASSES))
    assert found.shape == (CLASSES, 3, 5)
    np.testing.assert_allclose(found.sum(axis=(1, 2)), logits(maps, feature_map.astype(float), alpha), atol=1e-5)


def test_a_slice_of_nothing_gives_nothing() -> None:
    feature_map = np.zeros((DIM, 2, 2), np.float32)
    np.testing.assert_array_equal(make_maps().of(feature_map, 1.0, [0, 2]), np.zeros((2, 2, 2)))


def test_the_place_that_holds_the_evidence_shows() -> None:
    maps, feature_map = make_maps(), np.zeros((DIM, 4, 4), np.float32)
    feature_map[:, 1, 2] = maps.class_weight[3]
    (found,) = maps.of(feature_map, 0.0, [3])
    assert np.unravel_index(found.argmax(), found.shape) == (1, 2)
    assert area_at_half_energy(found) == 1 / 16


@pytest.mark.parametrize(
    ("values", "area"), [([1.0] * 8, 0.5), ([4, 1, 1, 1, 1], 0.2), ([2, 2, 2, -9], 0.5), ([0.0, -1.0], None)]
)
def test_the_area_holds_half_of_the_positive_values(values: list[float], area: float | None) -> None:
    assert area_at_half_energy(np.array([values])) == area


def test_what_was_written_is_read(tmp_path: Path) -> None:
    maps = make_maps(divisor=(1, 0))
    (tmp_path / "classifier.npz").write_bytes(maps.to_bytes())
    read = ActivationMaps.load(tmp_path / "classifier.npz")
    for name in ("class_weight", "unit_direction", "divisor"):
        np.testing.assert_array_equal(getattr(read, name), getattr(maps, name))


@pytest.mark.parametrize("content", [b"", b"no zip", make_maps().to_bytes()[:-40]])
def test_a_file_that_holds_no_classifier_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "classifier.npz").write_bytes(content)
    with pytest.raises(BundleError, match="does not hold a classifier"):
        ActivationMaps.load(tmp_path / "classifier.npz")


def test_arrays_that_do_not_fit_are_refused() -> None:
    maps = make_maps()
    with pytest.raises(ValueError, match=r"got \[\[4, 6\], \[2, 2\], \[2\]\]"):
        ActivationMaps(maps.class_weight, maps.unit_direction[:, :2], maps.divisor)
    with pytest.raises(ValueError, match="finite"):
        ActivationMaps(maps.class_weight * np.float32("nan"), maps.unit_direction, maps.divisor)


def test_a_bundle_without_a_classifier_has_no_maps(paper_bundle: Bundle) -> None:
    assert Exhibits.of(paper_bundle).activation_maps is None
