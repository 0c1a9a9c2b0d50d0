"""A detector as an ONNX file, and whether ONNX Runtime finds in pictures what PyTorch finds. Knows no runs."""

import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnxscript.optimizer import fold_constants, remove_unused_nodes
from torch import Tensor

from service.bundle import PARITY_TOLERANCE, DetectionParity, DetectionSpec
from trainer.detection.graph import INPUTS, OUTPUTS, DetectionGraph
from trainer.errors import TrainerError
from trainer.export import OPSET, save_onnx

SMALLEST_SHARE = 0.75
"""Of the samples, that must agree. Rounding alone may turn one around: where two scores, or an overlap and its
threshold, differ in their last digit, a box is kept here and suppressed there."""


def export_graph(graph: DetectionGraph, height: int, width: int, file: Path) -> None:
    """Write the graph for one picture of this size as an ONNX file.

    Of the exporter's optimiser only constants are folded: its rewriting takes longer than all the rest, and ONNX
    Runtime does the same when it loads the file.
    """
    examples = (
        torch.zeros(1, height, width, 3, dtype=torch.uint8),
        torch.tensor([[height, width]], dtype=torch.float32),
        torch.ones(1),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        program = torch.onnx.export(
            graph,
            examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=OUTPUTS,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    fold_constants(program.model)
    remove_unused_nodes(program.model)
    model = program.model_proto
    # How many boxes suppression leaves is stated by a stand-in (trainer.detection.suppression); ONNX Runtime, which
    # infers shapes by itself, would believe it.
    del model.graph.value_info[:]
    save_onnx(model, file)


def expected_detections(graph: DetectionGraph, images: Tensor, sizes: Tensor, alphas: Tensor) -> DetectionParity:
    """Compute with PyTorch what every runtime must find.

    Args:
        graph: in evaluation mode, on the CPU.
        images: uint8 [N, H, W, 3].
        sizes: height and width of what of them is picture, float32 [N, 2].
        alphas: float32 [N].
    """
    rows = zip(images, sizes, alphas, strict=True)
    with torch.no_grad():
        found = [[part.numpy() for part in graph(*(one[None] for one in row))] for row in rows]
    return _parity({"images": images.numpy(), "image_size": sizes.numpy(), "alpha": alphas.numpy()}, found)


def check_detections(file: Path, parity: DetectionParity, spec: DetectionSpec) -> DetectionParity:
    """Compare ONNX Runtime with PyTorch, picture by picture.

    Returns:
        the samples that agree; most of them must.

    Raises:
        TrainerError: too few do; says by how much the others differ.
    """
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    agreeing, faults = [], []
    for row in range(len(parity.images)):
        sample = _rows(parity, [row])
        gaps = sample.gaps(run_detector(session, sample), spec)
        name, gap = max(gaps.items(), key=lambda one: one[1])
        if gap <= PARITY_TOLERANCE["fp32"]:
            agreeing.append(row)
        else:
            faults.append(f"sample {row} at alpha {parity.alpha[row]:.3g}: {name} by {gap:.2g}")
    if len(agreeing) < SMALLEST_SHARE * len(parity.images):
        raise TrainerError(
            f"parity missed: {len(faults)} of {len(parity.images)} pictures differ from PyTorch by more than "
            f"{PARITY_TOLERANCE['fp32']:g} ({'; '.join(faults)}); no bundle was written"
        )
    return _rows(parity, agreeing)


def run_detector(session: ort.InferenceSession, parity: DetectionParity) -> dict[str, NDArray[Any]]:
    """Run a session on parity samples, one by one, and name its outputs."""
    inputs = zip(parity.images, parity.image_size, parity.alpha, strict=True)
    runs = [
        session.run(list(OUTPUTS), {name: one[None] for name, one in zip(INPUTS, row, strict=True)}) for row in inputs
    ]
    return {name: np.concatenate(parts) for name, parts in zip(OUTPUTS, zip(*runs, strict=True), strict=True)}


def _parity(inputs: dict[str, NDArray[Any]], found: list[list[NDArray[Any]]]) -> DetectionParity:
    outputs = {name: np.concatenate(parts) for name, parts in zip(OUTPUTS, zip(*found, strict=True), strict=True)}
    return DetectionParity(**inputs, **outputs)


def _rows(parity: DetectionParity, rows: list[int]) -> DetectionParity:
    return DetectionParity(**{field.name: getattr(parity, field.name)[rows] for field in fields(parity)})
