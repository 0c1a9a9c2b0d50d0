"""The exported graph in ONNX Runtime against PyTorch."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from service.bundle import PARITY_TOLERANCE, DetectionParity, DetectionSpec
from tests.trainer.detection.detector import SIDE, picture, tiny_detector
from trainer.detection.graph import INPUTS, OUTPUTS, DetectionGraph
from trainer.detection.parity import check_detections, expected_detections, export_graph, run_detector
from trainer.errors import TrainerError

SPEC = DetectionSpec(stages=2, max_detections=20, mask_size=14, score_threshold=1e-4, nms_iou=0.5, mask_threshold=0.5)


@pytest.fixture(scope="module")
def graph() -> DetectionGraph:
    return DetectionGraph(tiny_detector()).eval()


@pytest.fixture(scope="module")
def expected(graph: DetectionGraph) -> DetectionParity:
    """Four sizes, each at four alphas."""
    images = torch.stack([picture().roll(shift, dims=0) for shift in range(16)])
    sizes = torch.tensor([[SIDE, SIDE], [40, SIDE], [SIDE, 33], [17, 21]], dtype=torch.float32).repeat(4, 1)
    for image, (height, width) in zip(images, sizes.int().tolist(), strict=True):
        image[height:], image[:, width:] = 0, 0
    alphas = torch.tensor([0.0, 0.7, 1.5, 3.0]).repeat_interleave(4)
    return expected_detections(graph, images, sizes, alphas)


@pytest.fixture(scope="module")
def file(graph: DetectionGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_graph(graph, SIDE, SIDE, file)
    return file


def test_onnx_runtime_finds_what_pytorch_finds_at_every_size_and_alpha(file: Path, expected: DetectionParity) -> None:
    agreeing = check_detections(file, expected, SPEC)
    assert len(agreeing.images) >= 12
    assert (agreeing.count > 0).all()
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert max(agreeing.gaps(run_detector(session, agreeing), SPEC).values()) <= PARITY_TOLERANCE["fp32"]


def test_the_graph_keeps_the_bundles_contract(file: Path) -> None:
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    inputs = {one.name: (one.type, one.shape) for one in session.get_inputs()}
    assert inputs == {
        "image": ("tensor(uint8)", [1, SIDE, SIDE, 3]),
        "image_size": ("tensor(float)", [1, 2]),
        "alpha": ("tensor(float)", [1]),
    }
    outputs = {one.name: (one.type, one.shape) for one in session.get_outputs()}
    assert outputs == {
        "boxes": ("tensor(float)", [1, 20, 4]),
        "scores": ("tensor(float)", [1, 20]),
        "labels": ("tensor(int64)", [1, 20]),
        "masks": ("tensor(float)", [1, 20, 14, 14]),
        "count": ("tensor(int64)", [1]),
    }
    assert (tuple(inputs), tuple(outputs)) == (INPUTS, OUTPUTS)


def test_the_graph_suppresses_by_its_own_operator_and_tells_nothing_of_its_making(file: Path) -> None:
    nodes = list(onnx.load(file).graph.node)
    operators = [node.op_type for node in nodes]
    assert operators.count("NonMaxSuppression") == 2
    assert not {"Loop", "If", "Scan"} & set(operators)
    assert not any(node.metadata_props or node.doc_string for node in nodes)


def test_alpha_0_is_the_factual_model_in_onnx_runtime_too(file: Path, expected: DetectionParity) -> None:
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    at = [
        session.run(
            None, {"image": expected.images[:1], "image_size": expected.image_size[:1], "alpha": np.float32([alpha])}
        )
        for alpha in (0.0, 1e-6)
    ]
    for plain, limit in zip(*at, strict=True):
        np.testing.assert_allclose(plain, limit, atol=1e-4)


def test_another_detector_is_refused(file: Path, graph: DetectionGraph, expected: DetectionParity) -> None:
    other = DetectionGraph(tiny_detector()).eval()
    with torch.no_grad():
        other.model.cascade.stages[1].classifier.weight.mul_(-1)  # type: ignore[union-attr, operator]
    rows = [0, 5, 10, 15]
    inputs = (torch.from_numpy(one[rows]) for one in (expected.images, expected.image_size, expected.alpha))
    with pytest.raises(TrainerError, match="parity missed: 4 of 4 pictures differ from PyTorch"):
        check_detections(file, expected_detections(other, *inputs), SPEC)
