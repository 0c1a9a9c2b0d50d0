"""A bundle without training: a de-confounded linear classifier on the pixels of 8x8 pictures, as a real ONNX graph."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.bundle import AlphaSpec, Bundle, ClassInfo, InputSpec, ManifestDraft, Parity, TdeSpec, write_bundle

SIDE = 8
PIXELS = SIDE * SIDE * 3
COUNTS = (500, 120, 60, 15, 5)
TAU = 16.0
FLOAT, BYTE = TensorProto.FLOAT, TensorProto.UINT8

NODES = (
    ("Cast", ["image"], ["float_image"], {"to": FLOAT}),
    ("Flatten", ["float_image"], ["flat"], {}),
    ("Sub", ["flat", "grey"], ["features"], {}),
    ("Unsqueeze", ["features", "last_axes"], ["feature_map"], {}),
    ("ReduceL2", ["features", "axis"], ["norm"], {}),
    ("Div", ["features", "norm"], ["unit_features"], {}),
    ("MatMul", ["unit_features", "weight"], ["factual_logits"], {}),
    ("MatMul", ["unit_features", "unit_direction"], ["confounder_cosine"], {}),
    ("MatMul", ["confounder_cosine", "direction_scores"], ["counterfactual_logits"], {}),
    ("Unsqueeze", ["alpha", "axis"], ["alpha_column"], {}),
    ("Unsqueeze", ["prior_strength", "axis"], ["prior_column"], {}),
    ("Mul", ["alpha_column", "counterfactual_logits"], ["confounded"], {}),
    ("Mul", ["prior_column", "log_share"], ["prior"], {}),
    ("Sub", ["factual_logits", "confounded"], ["effect"], {}),
    ("Sub", ["effect", "prior"], ["logits"], {}),
)


def small_bundle(folder: Path) -> Bundle:
    """Write the bundle; the direction leans to the most frequent class, so alpha decides many pictures."""
    draft = ManifestDraft(
        name="small",
        classes=tuple(ClassInfo.of(f"class {index}", count) for index, count in enumerate(COUNTS)),
        input=InputSpec(height=SIDE, width=SIDE, resize="exact", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        tde=TdeSpec(num_heads=1, tau=TAU, gamma=0.0, direction="ema"),
        alpha=AlphaSpec(default=1.0, chosen_by="recipe", maximum=3.0),
    )
    constants = _constants(draft)
    files = {"parity.npz": _parity(constants).to_bytes()}
    return write_bundle(folder, draft, models={"fp32": _graph(constants)}, files=files)


def picture(seed: int) -> NDArray[np.uint8]:
    """Return a random picture [H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def _constants(draft: ManifestDraft) -> dict[str, NDArray[np.float32 | np.int64]]:
    weight = np.random.default_rng(0).normal(size=(PIXELS, len(COUNTS)))
    weight /= np.linalg.norm(weight, axis=0)
    direction = weight[:, :1] + 0.3 * weight[:, 1:2]
    direction /= np.linalg.norm(direction)
    floats = {
        "grey": np.full(1, 127.4),
        "weight": TAU * weight,
        "unit_direction": direction,
        "direction_scores": TAU * direction.T @ weight,
        "log_share": draft.log_class_share()[None],
    }
    return {
        **{name: array.astype(np.float32) for name, array in floats.items()},
        "axis": np.array([1]),
        "last_axes": np.array([2, 3]),
    }


def _graph(constants: dict[str, NDArray[np.float32 | np.int64]]) -> bytes:
    classes = len(COUNTS)
    inputs = {"image": (BYTE, ["n", SIDE, SIDE, 3]), "alpha": (FLOAT, ["n"]), "prior_strength": (FLOAT, ["n"])}
    outputs = {
        **dict.fromkeys(("logits", "factual_logits", "counterfactual_logits"), (FLOAT, ["n", classes])),
        "confounder_cosine": (FLOAT, ["n", 1]),
        "feature_map": (FLOAT, ["n", PIXELS, 1, 1]),
    }
    graph = helper.make_graph(
        [helper.make_node(operator, read, written, **options) for operator, read, written, options in NODES],
        "small",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


def _parity(constants: dict[str, NDArray[np.float32 | np.int64]]) -> Parity:
    images = np.stack([picture(seed) for seed in range(4)])
    alpha, prior_strength = np.array([[0, 0.5, 1.5, 3], [0, 1, 0, 0.5]], dtype=np.float32)
    features = images.reshape(len(images), -1).astype(np.float32) - constants["grey"]
    unit_features = features / np.linalg.norm(features, axis=1, keepdims=True)
    factual = unit_features @ constants["weight"]
    cosine = unit_features @ constants["unit_direction"]
    counterfactual = cosine @ constants["direction_scores"]
    logits = factual - alpha[:, None] * counterfactual - prior_strength[:, None] * constants["log_share"]
    return Parity(images, alpha, prior_strength, logits, factual, counterfactual, cosine)
