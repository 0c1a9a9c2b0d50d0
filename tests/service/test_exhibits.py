import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.bundle import Bundle, TdeSpec, write_bundle
from service.exhibits import Exhibits
from tests.service.conftest import CLASSES, make_draft, make_parity
from tests.service.tiny_detector import make_detection_draft, tiny_detection_parity

CURVE = {"alpha": [0, 1.5, 3], "overall": [0.5, 0.6, 0.5], "balanced": [0.4, 0.5, 0.5], "few": [0.1, 0.3, 0.4]}
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def bundle_with(folder: Path, direction: str = "ema", **files: bytes) -> Bundle:
    tde = TdeSpec(num_heads=2, tau=16.0, gamma=0.03125, direction=direction)
    named = {name.replace("_", "."): content for name, content in files.items()}
    content = {"parity.npz": make_parity().to_bytes(), **named}
    return write_bundle(folder / "bundle", make_draft(tde=tde), models={"fp32": b"no model"}, files=content)


def evaluation(**changes: Any) -> bytes:
    return json.dumps({"test_images": 7, "curve": CURVE | changes}).encode()


def test_samples_are_lossless_and_say_their_true_class(tmp_path: Path) -> None:
    exhibits = Exhibits.of(bundle_with(tmp_path, samples_npz=npz(images=IMAGES, labels=np.array([4, 0]))))
    assert [sample.truth for sample in exhibits.samples] == [4, 0]
    for sample, image in zip(exhibits.samples, IMAGES, strict=True):
        assert (np.asarray(Image.open(io.BytesIO(sample.png))) == image).all()


def test_without_samples_the_parity_pictures_are_shown(tmp_path: Path) -> None:
    exhibits = Exhibits.of(bundle_with(tmp_path))
    assert len(exhibits.samples) == len(make_parity().images)
    assert {sample.truth for sample in exhibits.samples} == {None}
    assert (exhibits.test_images, exhibits.accuracy) == (None, None)


@pytest.mark.parametrize(
    "content",
    [
        b"no archive",
        b"",
        npz(images=IMAGES, labels=np.array([0, 0]))[:-40],
        npz(images=IMAGES),
        npz(images=IMAGES.astype(np.float32), labels=np.array([0, 0])),
        npz(images=IMAGES, labels=np.array([0])),
        npz(images=IMAGES, labels=np.array([0, CLASSES])),
        npz(images=IMAGES, labels=np.array([None, 0])),
    ],
)
def test_samples_that_cannot_be_shown_are_left_out_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    with caplog.at_level(logging.WARNING):
        assert Exhibits.of(bundle_with(tmp_path, samples_npz=content)).samples == ()
    assert "there are no pictures to try" in caplog.text


def test_the_curve_is_read(tmp_path: Path) -> None:
    exhibits = Exhibits.of(bundle_with(tmp_path, evaluation_json=evaluation()))
    assert exhibits.test_images == 7
    assert exhibits.accuracy is not None
    assert exhibits.accuracy.model_dump(exclude_none=True) == CURVE


@pytest.mark.parametrize(
    "content",
    [b"{}", b"[]", b"no JSON", evaluation(few=[0.1]), evaluation(overall=[0, 0, 2]), evaluation(alpha=[0, 2, 1])],
)
def test_an_evaluation_without_a_curve_is_left_out_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    with caplog.at_level(logging.WARNING):
        assert Exhibits.of(bundle_with(tmp_path, evaluation_json=content)).accuracy is None
    assert "evaluation.json holds no accuracy over alpha" in caplog.text


def test_the_curve_of_another_direction_is_not_shown(tmp_path: Path) -> None:
    exhibits = Exhibits.of(bundle_with(tmp_path, direction="dataset_mean", evaluation_json=evaluation()))
    assert exhibits.accuracy is None


DETECTION_CURVES = {"alpha": [0, 1.5], "box": {"AP": [0.1, 0.2], "APr": [None, 0.1]}, "mask": {"AP": [0, 1]}}


def detector_with(folder: Path, **files: bytes) -> Bundle:
    named = {name.replace("_", "."): content for name, content in files.items()}
    content = {"parity.npz": tiny_detection_parity().to_bytes(), **named}
    return write_bundle(folder / "bundle", make_detection_draft(), models={"fp32": b"no model"}, files=content)


def sizes_of(exhibits: Exhibits) -> list[tuple[int, int]]:
    return [Image.open(io.BytesIO(sample.png)).size for sample in exhibits.samples]


def test_a_detectors_samples_are_shown_without_what_lies_beyond_the_picture(tmp_path: Path) -> None:
    images = np.zeros((2, 24, 32, 3), np.uint8)
    sizes = np.array([(24, 10), (3, 32)], np.float32)
    exhibits = Exhibits.of(detector_with(tmp_path, samples_npz=npz(images=images, sizes=sizes)))
    assert sizes_of(exhibits) == [(10, 24), (32, 3)]
    assert sizes_of(Exhibits.of(detector_with(tmp_path))) == [(32, 24), (27, 24), (22, 24)]  # of parity


@pytest.mark.parametrize("arrays", [{}, {"sizes": np.array([(24, 33)], np.float32)}, {"sizes": np.zeros((1, 2))}])
def test_a_detectors_samples_that_do_not_fit_are_left_out(tmp_path: Path, arrays: Any, caplog: Any) -> None:
    images = np.zeros((1, 24, 32, 3), np.uint8)
    assert Exhibits.of(detector_with(tmp_path, samples_npz=npz(images=images, **arrays))).samples == ()
    assert "there are no pictures to try" in caplog.text


@pytest.mark.parametrize(
    ("curves", "shown"),
    [(DETECTION_CURVES, True), (DETECTION_CURVES | {"alpha": [0]}, False), ({"alpha": [0], "box": {}}, False)],
)
def test_a_detectors_average_precision_is_shown_if_it_fits(tmp_path: Path, curves: Any, shown: bool) -> None:
    report = json.dumps({"pictures": 9, "curve": curves}).encode()
    exhibits = Exhibits.of(detector_with(tmp_path, evaluation_json=report))
    assert (exhibits.test_images, exhibits.average_precision is not None) == ((9, True) if shown else (None, False))
    assert exhibits.accuracy is None
