from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from service.onnx_file import NotReducible, reduced, reduced_model
from tests.service.tiny_model import onnx_model, reference

BRANCHES = ("factual_logits", "counterfactual_logits", "confounder_cosine")


def test_what_leads_to_other_outputs_alone_is_gone_and_the_rest_is_as_it_was() -> None:
    whole, smaller = onnx_model(), b"".join(reduced_model(onnx_model(), BRANCHES))
    graph = onnx.load_model_from_string(smaller).graph
    onnx.checker.check_model(smaller)
    assert [value.name for value in graph.output] == list(BRANCHES)
    assert [value.name for value in graph.input] == ["image"]
    gone = {"feature_map", "alpha_column", "strength_column", "subtrahend", "prior", "tde", "logits"}
    before = onnx.load_model_from_string(whole).graph
    assert list(graph.node) == [node for node in before.node if gone.isdisjoint(node.output)]
    assert list(graph.initializer) == list(before.initializer)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    expected = reference(images, np.zeros(3), np.zeros(3))
    for name, found in zip(BRANCHES, ort.InferenceSession(smaller).run(list(BRANCHES), {"image": images}), strict=True):
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-4)


def test_with_all_outputs_asked_for_the_model_stays_the_same() -> None:
    everything = [value.name for value in onnx.load_model_from_string(onnx_model()).graph.output]
    same = onnx.load_model_from_string(b"".join(reduced_model(onnx_model(), everything)))
    assert same == onnx.load_model_from_string(onnx_model())


def test_a_file_lives_as_long_as_it_is_loaded(tmp_path: Path) -> None:
    whole = tmp_path / "model.onnx"
    whole.write_bytes(onnx_model())
    with reduced(whole, BRANCHES) as file:
        assert file != whole
        assert len(ort.InferenceSession(file).get_outputs()) == 3
    assert not file.exists()
    assert whole.read_bytes() == onnx_model()


def test_a_graph_within_a_node_may_use_any_value_so_that_nothing_is_left_out(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    inner = helper.make_graph([helper.make_node("Neg", ["hidden"], ["inner"])], "inner", [], [value("inner", 1, None)])
    nodes = [
        helper.make_node("Abs", ["image"], ["hidden"]),
        helper.make_node("If", ["which"], ["branch"], then_branch=inner, else_branch=inner),
        helper.make_node("Relu", ["image"], ["other"]),
    ]
    inputs = [value("image", TensorProto.FLOAT, ["N"]), value("which", TensorProto.BOOL, [])]
    graph = helper.make_graph(
        nodes, "g", inputs, [value(name, TensorProto.FLOAT, None) for name in ("branch", "other")]
    )
    content = helper.make_model(graph).SerializeToString()
    with pytest.raises(NotReducible, match="graph of its own"):
        reduced_model(content, ["branch"])
    whole = tmp_path / "model.onnx"
    whole.write_bytes(content)
    with reduced(whole, ["branch"]) as file:
        assert file == whole


def test_whatever_bytes_come_they_are_a_model_or_refused() -> None:
    draw, content = np.random.default_rng(0), np.frombuffer(onnx_model(), np.uint8)
    refused = 0
    for _ in range(300):
        changed = content[: draw.integers(1, len(content))] if draw.random() < 0.5 else content.copy()
        changed = np.where(
            draw.random(len(changed)) < 0.005, draw.integers(0, 256, len(changed), dtype=np.uint8), changed
        )
        try:
            reduced_model(changed.tobytes(), BRANCHES)
        except NotReducible:
            refused += 1
    assert refused > 100
    for content_of_none in (b"", b"no model", b"\x08\x08", b"\x3a\xff"):
        with pytest.raises(NotReducible):
            reduced_model(content_of_none, BRANCHES)
