"""What the TDE graph costs in ONNX Runtime beside the same backbone with a plain linear layer.

Both go through the same exporter. The TDE graph is as the service runs it: with both branch logits, the cosines and the
feature map, of which it asks for the first three; without what leads to the graph's own logits alone.

Two sessions of one and the same graph differ by some per cent for as long as they live, by where their memory happens
to lie. So many pairs of sessions are made; within each the graphs run in turns, and what is given is the median over
the pairs of sessions. Between what it lies says the bootstrap over them, not over runs.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.cores import available_cores
from service.lanes import RUN_OPTIONS
from service.model import OUTPUTS
from service.onnx_file import reduced
from tests.benchmarks.models import CIFAR, HEAVY, plain_model
from tests.benchmarks.result import Figure, at_most
from tests.benchmarks.rounds import median_ratio, median_within
from tests.benchmarks.workplace import Workplace

PART = "The TDE graph"
BATCHES = (1, 8, 32)
NAMES = {CIFAR: "ResNet-32, 100 classes", HEAVY: "ResNeXt-50 32x4d, 1,000 classes"}
SESSIONS = {CIFAR: 80, HEAVY: 20}
"""Of each graph. What TDE adds takes as long in both models: a per cent of the small one, and nothing of the large."""
SECONDS = {CIFAR: 0.2, HEAVY: 1.0}
"""How long both graphs run in turns, in each pair of sessions at each batch size."""
BRANCHES = ["factual_logits", "counterfactual_logits", "confounder_cosine"]


def run(workplace: Workplace) -> list[Figure]:
    """Time both graphs in turns at each batch size."""
    figures = []
    for model, name in NAMES.items():
        bundle = workplace.bundle(model)
        spec = bundle.manifest.input
        found: dict[int, list[Pair]] = {batch: [] for batch in BATCHES}
        for _ in range(workplace.rounds(SESSIONS[model])):
            with reduced(bundle.path / "model.onnx", OUTPUTS) as file:
                tde, plain = _session(file), _session(plain_model(bundle))
            for batch in BATCHES:
                images = np.random.default_rng(0).integers(0, 256, (batch, spec.height, spec.width, 3), dtype=np.uint8)
                found[batch].append(_pair(tde, plain, images, SECONDS[model]))
        figures += [_figure(pairs, f"{name}, batch {batch}") for batch, pairs in found.items()]
    return figures


class Pair(NamedTuple):
    """What a pair of sessions took."""

    ratio: float
    plain_seconds: float


def _pair(
    tde: onnxruntime.InferenceSession, plain: onnxruntime.InferenceSession, images: NDArray[np.uint8], seconds: float
) -> Pair:
    """Run both in turns, each as often first as second, and as often after itself as after the other."""
    knobs = {given.name: np.zeros(len(images), np.float32) for given in tde.get_inputs() if given.name != "image"}

    def of_tde() -> float:
        return _seconds(tde, BRANCHES, {"image": images, **knobs})

    def of_plain() -> float:
        return _seconds(plain, ["logits"], {"image": images})

    once = of_tde() + of_plain()
    found = []
    for _ in range(max(1, round(seconds / once / 2))):
        found.append((of_tde(), of_plain()))
        second = of_plain()
        found.append((of_tde(), second))
        third = of_plain()
        found.append((of_tde(), third))
        fourth = of_tde()
        found.append((fourth, of_plain()))
    with_tde, without = zip(*found, strict=True)
    return Pair(median_ratio(with_tde, without), statistics.median(without))


def _figure(pairs: Sequence[Pair], name: str) -> Figure:
    ratios, plain = zip(*pairs, strict=True)
    low, high = median_within(ratios)
    note = f"{statistics.median(plain) * 1e3:.2f} ms plain; 95 % sure: {low:.3f} to {high:.3f}; {len(pairs)} sessions"
    return Figure(PART, f"time, TDE / linear layer, {name}", statistics.median(ratios), goal=at_most(1.02), note=note)


def _seconds(session: onnxruntime.InferenceSession, outputs: list[str], inputs: Mapping[str, NDArray[Any]]) -> float:
    begin = time.perf_counter()
    session.run(outputs, inputs, RUN_OPTIONS)
    return time.perf_counter() - begin


def _session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of each constant that the reduced graph needs no more
    options.intra_op_num_threads = available_cores()
    # Else the threads of the session that ran last would still turn about in search of work, on the cores of this one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
