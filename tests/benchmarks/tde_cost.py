"""What the TDE graph costs in ONNX Runtime beside the same backbone with a plain linear layer.

Both go through the same exporter. Asked for is what the service asks for, as it asks: both branch logits and the
cosines, and nothing that leads elsewhere.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.cores import available_cores
from service.session import NOTHING_ELSE
from tests.benchmarks.models import CIFAR, HEAVY, plain_model
from tests.benchmarks.result import Figure, at_most
from tests.benchmarks.rounds import median_ratio, take_turns
from tests.benchmarks.workplace import Workplace

PART = "The TDE graph"
BATCHES = (1, 8, 32)
NAMES = {CIFAR: "ResNet-32, 100 classes", HEAVY: "ResNeXt-50 32x4d, 1,000 classes"}
OUTPUTS = ["factual_logits", "counterfactual_logits", "confounder_cosine"]


def run(workplace: Workplace) -> list[Figure]:
    """Time both graphs in turns at each batch size."""
    figures = []
    for model, name in NAMES.items():
        bundle = workplace.bundle(model)
        spec = bundle.manifest.input
        tde, plain = _session(bundle.path / "model.onnx"), _session(plain_model(bundle))
        for batch in BATCHES:
            images = np.random.default_rng(0).integers(0, 256, (batch, spec.height, spec.width, 3), dtype=np.uint8)
            figures.append(_compare(tde, plain, images, f"{name}, batch {batch}", workplace))
    return figures


def _compare(
    tde: onnxruntime.InferenceSession,
    plain: onnxruntime.InferenceSession,
    images: NDArray[np.uint8],
    name: str,
    workplace: Workplace,
) -> Figure:
    ones = np.ones(len(images), np.float32)
    inputs = {"image": images, "alpha": ones, "prior_strength": ones}
    runs = {
        "tde": lambda: _seconds(tde, OUTPUTS, inputs),
        "plain": lambda: _seconds(plain, ["logits"], {"image": images}),
    }
    once = take_turns(runs, 3)["plain"][-1]
    rounds = workplace.rounds(max(7, min(400, round(6 / once / 2))))
    found = take_turns(runs, rounds)
    ratio = median_ratio(found["tde"], found["plain"])
    note = f"{statistics.median(found['plain']) * 1e3:.2f} ms plain; median of {rounds} pairs"
    return Figure(PART, f"time, TDE / linear layer, {name}", ratio, goal=at_most(1.02), note=note)


def _seconds(session: onnxruntime.InferenceSession, outputs: list[str], inputs: dict[str, NDArray[Any]]) -> float:
    begin = time.perf_counter()
    session.run(outputs, inputs, NOTHING_ELSE)
    return time.perf_counter() - begin


def _session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
