from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from service.bundle import BundleError, DetectionParity
from service.detector import OnnxDetector
from service.loading import load_bundle
from service.model import OnnxModel
from service.session import ProviderUnavailable
from service.settings import Settings
from tests.service.fake_cuda import SessionOnTheCpu
from tests.service.tiny_detector import (
    DETECTION,
    HEIGHT,
    WIDTH,
    detector_onnx,
    reference,
    tiny_detection_parity,
    write_detection_bundle,
)
from tests.service.tiny_model import write_tiny_bundle


@pytest.mark.parametrize(("alpha", "size"), [(0.0, (HEIGHT, WIDTH)), (1.5, (HEIGHT, 9)), (3.0, (1, WIDTH))])
def test_detections_equal_the_reference(tmp_path: Path, alpha: float, size: tuple[int, int]) -> None:
    model = OnnxDetector(write_detection_bundle(tmp_path / "tiny"), provider="cpu")
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[: size[0], : size[1]] = 200
    found, expected = model.detect(image, size, alpha), reference(image, np.array(size, np.float32), alpha)
    assert found["count"] == expected["count"] > 0
    for name, actual in found.items():
        np.testing.assert_allclose(actual, expected[name], rtol=1e-5, atol=1e-6)


def test_on_cuda_a_detector_has_one_session_for_its_one_picture(tmp_path: Path, cuda: list[SessionOnTheCpu]) -> None:
    parity = tiny_detection_parity()
    OnnxDetector(write_detection_bundle(tmp_path / "tiny", parity=parity), provider="cuda")
    assert [session.sizes for session in cuda] == [[1] * (1 + len(parity.images))]  # warmed, then checked


def test_a_detector_that_a_gpu_has_no_room_for_runs_on_the_cpu_with_auto(
    tmp_path: Path, cuda: list[SessionOnTheCpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(SessionOnTheCpu, "run_with_iobinding", full)
    bundle = write_detection_bundle(tmp_path / "tiny")
    with pytest.raises(ProviderUnavailable, match="batch size of 1: out of memory; make room if the GPU's memory is"):
        OnnxDetector(bundle, provider="cuda")
    assert OnnxDetector(bundle, provider="auto").provider == "cpu"


def test_a_bundles_task_chooses_what_loads_it(tmp_path: Path) -> None:
    settings = Settings(provider="cpu")
    for write, kind in ((write_detection_bundle, OnnxDetector), (write_tiny_bundle, OnnxModel)):
        loaded = load_bundle(write(tmp_path / kind.__name__).path, settings, "")
        assert loaded is not None
        assert type(loaded.model) is kind


def shifted(parity: DetectionParity, name: str) -> Any:
    value = getattr(parity, name).copy()
    value[0, 0] = value[0, 0] + np.asarray(0.1, value.dtype) if name != "labels" else 1
    return replace(parity, **{name: value})


@pytest.mark.parametrize(
    ("name", "gap"), [("boxes", "boxes by"), ("scores", "scores by"), ("masks", "masks by"), ("labels", "unmatched by")]
)
def test_a_detector_that_differs_from_its_parity_samples_is_refused(tmp_path: Path, name: str, gap: str) -> None:
    bundle = write_detection_bundle(tmp_path / "tiny", parity=shifted(tiny_detection_parity(), name))
    with pytest.raises(BundleError, match=f"differs from the trained model on the parity samples: {gap}"):
        OnnxDetector(bundle, provider="cpu")


def test_a_graph_of_another_shape_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    other = DETECTION.model_copy(update={"max_detections": 7})
    with pytest.raises(BundleError, match=r"has boxes \[1, 5, 4\], and the manifest says \[1, 7, 4\]"):
        OnnxDetector(write_detection_bundle(tmp_path / "tiny", detection=other), provider="cpu")


def test_a_graph_that_lacks_an_output_is_refused(tmp_path: Path) -> None:
    graph = onnx.load_from_string(detector_onnx())
    del graph.graph.output[0]
    bundle = write_detection_bundle(tmp_path / "tiny", model=graph.SerializeToString())
    with pytest.raises(BundleError, match="lacks the inputs or outputs boxes"):
        OnnxDetector(bundle, provider="cpu")
