"""A model that is small enough to compute by hand, as ONNX, as numpy, and as a bundle."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.bundle import Bundle, Parity, write_bundle
from tests.service.conftest import CLASSES, COUNTS, HEADS, make_draft

GENERATOR = np.random.default_rng(7)
FACTUAL = GENERATOR.normal(scale=4, size=(3, CLASSES)).astype(np.float32)
COUNTERFACTUAL = GENERATOR.normal(scale=3, size=(3, CLASSES)).astype(np.float32)
COSINE = GENERATOR.normal(size=(3, HEADS)).astype(np.float32)
LOG_SHARE = np.log(np.array(COUNTS) / sum(COUNTS)).astype(np.float32)


def reference(images: NDArray[np.uint8], alpha: NDArray[Any], prior_strength: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """What the model computes, in numpy."""
    features = ((images.astype(np.float32) / 255 - 0.5) / 0.25).mean(axis=(1, 2))
    factual, counterfactual = features @ FACTUAL, features @ COUNTERFACTUAL
    outputs = {
        "logits": factual - alpha[:, None] * counterfactual - prior_strength[:, None] * LOG_SHARE,
        "factual_logits": factual,
        "counterfactual_logits": counterfactual,
        "confounder_cosine": np.tanh(features @ COSINE),
    }
    return {name: value.astype(np.float32) for name, value in outputs.items()}


def onnx_model() -> bytes:
    def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs.split(), [output], **attributes)

    constants = {
        "scale": np.float32(255 * 0.25),
        "shift": np.float32(2.0),
        "factual_weight": FACTUAL,
        "counterfactual_weight": COUNTERFACTUAL,
        "cosine_weight": COSINE,
        "log_share": LOG_SHARE,
        "last": np.array([1], np.int64),
        "space": np.array([1, 2], np.int64),
    }
    nodes = [
        node("Cast", "image", "float_image", to=TensorProto.FLOAT),
        node("Div", "float_image scale", "scaled"),
        node("Sub", "scaled shift", "normal"),
        node("Transpose", "normal", "feature_map", perm=[0, 3, 1, 2]),
        node("ReduceMean", "normal space", "features", keepdims=0),
        node("MatMul", "features factual_weight", "factual_logits"),
        node("MatMul", "features counterfactual_weight", "counterfactual_logits"),
        node("MatMul", "features cosine_weight", "raw_cosine"),
        node("Tanh", "raw_cosine", "confounder_cosine"),
        node("Unsqueeze", "alpha last", "alpha_column"),
        node("Unsqueeze", "prior_strength last", "strength_column"),
        node("Mul", "alpha_column counterfactual_logits", "subtrahend"),
        node("Mul", "strength_column log_share", "prior"),
        node("Sub", "factual_logits subtrahend", "tde"),
        node("Sub", "tde prior", "logits"),
    ]
    tensor, kind = helper.make_tensor_value_info, TensorProto.FLOAT
    inputs = [
        tensor("image", TensorProto.UINT8, ["N", 8, 8, 3]),
        tensor("alpha", kind, ["N"]),
        tensor("prior_strength", kind, ["N"]),
    ]
    outputs = [tensor(name, kind, ["N", CLASSES]) for name in ("logits", "factual_logits", "counterfactual_logits")]
    outputs += [tensor("confounder_cosine", kind, ["N", HEADS]), tensor("feature_map", kind, ["N", 3, 8, 8])]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def tiny_parity(samples: int = 4) -> Parity:
    images = np.random.default_rng(1).integers(0, 256, (samples, 8, 8, 3), dtype=np.uint8)
    images[:, :, :, 0] //= 3
    alpha = np.linspace(0, 3, samples, dtype=np.float32)
    prior_strength = np.linspace(1, 0, samples, dtype=np.float32)
    return Parity(images=images, alpha=alpha, prior_strength=prior_strength, **reference(images, alpha, prior_strength))


def write_tiny_bundle(directory: Path, *, model: bytes | None = None, parity: Parity | None = None) -> Bundle:
    return write_bundle(
        directory,
        make_draft(provenance={"metrics": {"mean_cosine": [0.1, -0.1]}}),
        models={"fp32": onnx_model() if model is None else model},
        files={"parity.npz": (parity or tiny_parity()).to_bytes()},
    )
