"""What a detector of the paper's size costs: its export to ONNX, and one picture in ONNX Runtime.

    python -m tests.benchmarks.detection_graph --height 800 --width 1344

The weights are random: the graph's time and memory do not depend on them but for the boxes that score above the
threshold, and no trained detector leaves more of those. Each step runs in a process of its own, so that its peak is
its own.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import torch
from rich.console import Console
from rich.table import Table

from trainer.detection.config import DetectorConfig
from trainer.detection.graph import INPUTS, OUTPUTS, DetectionGraph
from trainer.detection.network import CascadeMaskRCNN
from trainer.detection.parity import export_graph
from trainer.detection.stage import Stage


class Cost(NamedTuple):
    """What a step took, and the most memory that its process had until its end."""

    step: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    note: str = ""


def main() -> None:
    """Export, run and print."""
    asked = _arguments()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        costs: list[Cost] = []
        for step in (_export, _run):
            with context.Pool(1) as alone:
                costs += alone.apply(step, (asked, file))
        size = file.stat().st_size
    table = Table(
        title=f"{asked.backbone}-FPN, {asked.classes + 1:,} outputs, {asked.height}x{asked.width} pixels, "
        f"{asked.mask_stages} mask head(s), {asked.threads} thread(s), {asked.provider}; file of {size / 2**20:.0f} MiB"
    )
    for heading in ("step", "seconds", "CPU seconds", "peak GiB", ""):
        table.add_column(heading, justify="left" if heading in {"step", ""} else "right")
    for cost in costs:
        table.add_row(
            cost.step, f"{cost.seconds:.1f}", f"{cost.cpu_seconds:.1f}", f"{cost.peak_bytes / 2**30:.2f}", cost.note
        )
    Console(width=120).print(table)


def _export(asked: argparse.Namespace, file: Path) -> list[Cost]:
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    config = DetectorConfig.model_validate(
        {"backbone": {"name": asked.backbone}, "mask": {"stages": asked.mask_stages}}
    )
    model = CascadeMaskRCNN(config, asked.classes, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for stage in model.cascade.stages:
        assert isinstance(stage, Stage)
        torch.nn.init.normal_(stage.classifier.momentum_direction)
    before = _peak()
    clock = Clock()
    export_graph(DetectionGraph(model).eval(), asked.height, asked.width, file)
    return [Cost("export", *clock.read(), _peak(), f"the model and libraries before it: {before / 2**30:.2f} GiB")]


def _run(asked: argparse.Namespace, file: Path) -> list[Cost]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = asked.threads
    clock = Clock()
    session = ort.InferenceSession(str(file), options, providers=[asked.provider])
    costs = [Cost("ONNX Runtime: load", *clock.read(), _peak(), ", ".join(session.get_providers()))]
    picture = np.random.default_rng(0).integers(0, 256, (1, asked.height, asked.width, 3), dtype=np.uint8)
    size = np.array([[asked.height, asked.width]], np.float32)
    feeds = dict(zip(INPUTS, (picture, size, np.array([asked.alpha], np.float32)), strict=True))
    for number in range(asked.runs):
        clock = Clock()
        found = dict(zip(OUTPUTS, session.run(list(OUTPUTS), feeds), strict=True))
        note = f"{int(found['count'][0])} detections"
        costs.append(Cost(f"ONNX Runtime: run {number + 1}", *clock.read(), _peak(), note))
    return costs


class Clock:
    """Seconds on the wall, and those that this process has worked: on a busy machine the two differ."""

    def __init__(self) -> None:
        self.begin = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Tell the seconds since the beginning."""
        return time.perf_counter() - self.begin[0], time.process_time() - self.begin[1]


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.detection_graph", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--mask-stages", type=int, default=3)
    parser.add_argument("--alpha", type=float, default=1.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--provider", default="CPUExecutionProvider")
    parser.add_argument("--runs", type=int, default=2, help="pictures, one after the other")
    return parser.parse_args()


if __name__ == "__main__":
    main()
