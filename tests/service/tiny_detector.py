"""A detector that is small enough to compute by hand, as ONNX, as numpy, and as a bundle.

Five things are always where they are; how red the picture is times a line over alpha is the score of each, and what
scores 0.05 or less is left out.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.bundle import (
    AlphaSpec,
    Bundle,
    ClassInfo,
    DetectionParity,
    DetectionSpec,
    InputSpec,
    ManifestDraft,
    TdeSpec,
    write_bundle,
)

ROWS, SIDE = 5, 4
HEIGHT, WIDTH = 24, 32
THRESHOLD = 0.05
LONGEST_SIDE = InputSpec(height=HEIGHT, width=WIDTH, resize="longest_side", mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
DETECTION = DetectionSpec(
    stages=3, max_detections=ROWS, mask_size=SIDE, score_threshold=THRESHOLD, nms_iou=0.5, mask_threshold=0.5
)
CLASSES = (
    ClassInfo(name="person", train_count=900, shot_group="many"),
    ClassInfo(name="toaster", train_count=40, shot_group="medium"),
    ClassInfo(name="hair drier", train_count=0, shot_group="few"),
)
LABELS = np.array([0, 1, 2, 0, 2], np.int64)
BOXES = np.array(  # as shares of the picture
    [[0.1, 0.2, 0.5, 0.9], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.4, 0.5], [0.6, 0.1, 0.9, 0.4], [0.25, 0.3, 0.75, 0.7]],
    np.float32,
)
SCORES = np.array([0.9, 0.5, 0.3, 0.1, 0.01], np.float32)
SLOPES = np.array([-0.1, 0.05, 0.2, -0.01, 0.03], np.float32)
_ROW, _COLUMN = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
MASKS = np.stack([(0.2 + 0.1 * row + 0.15 * np.minimum(_ROW, _COLUMN)).clip(0, 1) for row in range(ROWS)])


def make_detection_draft(**changes: Any) -> ManifestDraft:
    fields: dict[str, Any] = {
        "task": "detection",
        "name": "tiny-detector",
        "classes": CLASSES,
        "input": LONGEST_SIDE,
        "tde": TdeSpec(num_heads=2, tau=16.0, gamma=0.03125, direction="ema"),
        "alpha": AlphaSpec(default=1.0, chosen_by="recipe", minimum=0.0, maximum=3.0),
        "detection": DETECTION,
    }
    return ManifestDraft(**(fields | changes))


def reference(image: NDArray[np.uint8], size: NDArray[np.float32], alpha: float) -> dict[str, NDArray[Any]]:
    """What the detector says of one picture, in numpy; without the dimension of N."""
    height, width = size
    redness = np.float32(image[..., 0].sum(dtype=np.float32) / (height * width * 255))
    scores = ((SCORES + np.float32(alpha) * SLOPES) * redness).clip(0, 1)
    order = np.argsort(-scores, kind="stable")
    kept = scores[order] > THRESHOLD
    return {
        "boxes": (BOXES[order] * np.array([width, height, width, height], np.float32)) * kept[:, None],
        "scores": scores[order] * kept,
        "labels": np.where(kept, LABELS[order], -1),
        "masks": MASKS[order] * kept[:, None, None].astype(np.float32),
        "count": np.array(kept.sum(), np.int64),
    }


def detector_onnx() -> bytes:
    def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)

    constants: dict[str, Any] = {
        "base": SCORES,
        "slope": SLOPES,
        "all_boxes": BOXES,
        "all_labels": LABELS,
        "all_masks": MASKS,
        "red": np.int64(0),
        "full": np.float32(255),
        "low": np.float32(0),
        "high": np.float32(1),
        "rows": np.array([ROWS], np.int64),
        "threshold": np.float32(THRESHOLD),
        "width_height": np.array([1, 0, 1, 0], np.int64),
        "first": np.array([0], np.int64),
        "last": np.array([1], np.int64),
        "sides": np.array([1, 2], np.int64),
        "none": np.array([-1], np.int64),
    }
    nodes = [
        node("Cast", "image", "float_image", to=TensorProto.FLOAT),
        node("Gather", "float_image red", "reds", axis=3),
        node("ReduceSum", "reds", "red_sum", keepdims=0),
        node("ReduceProd", "image_size", "area", keepdims=0),
        node("Mul", "area full", "most_red"),
        node("Div", "red_sum most_red", "redness"),
        node("Mul", "slope alpha", "lean"),
        node("Add", "base lean", "line"),
        node("Mul", "line redness", "raw_scores"),
        node("Clip", "raw_scores low high", "all_scores"),
        node("TopK", "all_scores rows", "top order"),
        node("Greater", "top threshold", "kept"),
        node("Cast", "kept", "kept_float", to=TensorProto.FLOAT),
        node("Cast", "kept", "kept_int", to=TensorProto.INT64),
        node("ReduceSum", "kept_int", "count", keepdims=1),
        node("Mul", "top kept_float", "top_scores"),
        node("Unsqueeze", "top_scores first", "scores"),
        node("Gather", "all_labels order", "top_labels"),
        node("Where", "kept top_labels none", "kept_labels"),
        node("Unsqueeze", "kept_labels first", "labels"),
        node("Gather", "image_size width_height", "scale", axis=1),
        node("Mul", "all_boxes scale", "own_boxes"),
        node("Gather", "own_boxes order", "top_boxes"),
        node("Unsqueeze", "kept_float last", "kept_column"),
        node("Mul", "top_boxes kept_column", "kept_boxes"),
        node("Unsqueeze", "kept_boxes first", "boxes"),
        node("Gather", "all_masks order", "top_masks"),
        node("Unsqueeze", "kept_float sides", "kept_cube"),
        node("Mul", "top_masks kept_cube", "kept_masks"),
        node("Unsqueeze", "kept_masks first", "masks"),
    ]
    tensor, kind = helper.make_tensor_value_info, TensorProto.FLOAT
    inputs = [
        tensor("image", TensorProto.UINT8, [1, HEIGHT, WIDTH, 3]),
        tensor("image_size", kind, [1, 2]),
        tensor("alpha", kind, [1]),
    ]
    outputs = [
        tensor("boxes", kind, [1, ROWS, 4]),
        tensor("scores", kind, [1, ROWS]),
        tensor("labels", TensorProto.INT64, [1, ROWS]),
        tensor("masks", kind, [1, ROWS, SIDE, SIDE]),
        tensor("count", TensorProto.INT64, [1]),
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny_detector", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def tiny_detection_parity(samples: int = 3) -> DetectionParity:
    generator = np.random.default_rng(1)
    images = np.zeros((samples, HEIGHT, WIDTH, 3), np.uint8)
    sizes = np.array([(HEIGHT, WIDTH - 5 * row) for row in range(samples)], np.float32)
    for image, (height, width) in zip(images, sizes.astype(int), strict=True):
        image[:height, :width] = generator.integers(128, 256, (height, width, 3))
    alpha = np.linspace(0, 3, samples, dtype=np.float32)
    each = [reference(*row) for row in zip(images, sizes, alpha.tolist(), strict=True)]
    outputs = {name: np.stack([one[name] for one in each]) for name in each[0]}
    return DetectionParity(images=images, image_size=sizes, alpha=alpha, **outputs)


def write_detection_bundle(
    directory: Path, *, model: bytes | None = None, parity: DetectionParity | None = None, **draft: Any
) -> Bundle:
    return write_bundle(
        directory,
        make_detection_draft(**draft),
        models={"fp32": detector_onnx() if model is None else model},
        files={"parity.npz": (parity or tiny_detection_parity()).to_bytes()},
    )
