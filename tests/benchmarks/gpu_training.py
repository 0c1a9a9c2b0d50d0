"""The long trainings, side by side on one GPU: many processes, one table for trainer/RESULTS.md.

python -m tests.benchmarks.gpu_training --data ../cifar100 --output runs/gpu --jobs 12 --minutes 50
python -m tests.benchmarks.gpu_training --data ../cifar100 --output runs/gpu --table   # of what is trained
python -m tests.benchmarks.gpu_training --output runs/smoke --smoke --jobs 2           # the flow, on made pictures

A small network leaves most of a large GPU idle, so trainings share it. Each is a `trainer train` in a folder and with a
log of its own; called again, those that the time ran out on go on. The table is `trainer compare`'s, which finds
finished runs by what determines them. No choice is made on the test set.
"""

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tests.trainer.tiny import png
from trainer.checkpoint import load_checkpoint
from trainer.compare import Comparison, compare_methods
from trainer.comparison import Row
from trainer.methods import METHODS
from trainer.progress import console

GOAL = 20_000
"""Images/s that a ResNet-32 should pass on a large GPU, with data on the device and captured or compiled steps."""
SMOKE = (
    "schedule={epochs: 1}",
    "batch_size=32",
    "data.long_tail.imbalance_factor=4",
    "backbone.name=small_cnn",  # a ResNet-32 takes a second a step where the machine is small and busy
)
SMOKED = (
    "strong, 400 epochs: sharpness-aware",
    "strong, 200 epochs: weight decay 1e-3, CutMix",
    "CIFAR-10: strong, 400 epochs",
    "paper: other classifiers",
)
"""Of each kind of training one, as evaluation and plots take most of the time."""
COLUMNS = {
    "accuracy": "all",
    "many_shot_accuracy": "many",
    "medium_shot_accuracy": "medium",
    "few_shot_accuracy": "few",
    "calibration_error": "ECE",
}


@dataclass(frozen=True)
class Entry:
    """Trainings of one recipe that belong together: methods and seeds, under some settings."""

    title: str
    recipe: str
    methods: tuple[str, ...] = ("deconfounded",)
    seeds: tuple[int, ...] = (0,)
    settings: tuple[str, ...] = ()


CUTMIX = ("augment.cutmix=1", "augment.mixing_probability=0.5", "augment.mixing_until=0.8")
DECAY, MORE_DECAY = "optimizer.weight_decay=0.001", "optimizer.weight_decay=0.002"
NO_AVERAGE = "averaging.decay=0"
CANDIDATES = {
    "the base": (),
    "weight decay 1e-3": (DECAY,),
    "weight decay 2e-3": (MORE_DECAY,),
    "weight decay 1e-3, CutMix": (DECAY, *CUTMIX),
    "weight decay 2e-3, CutMix": (MORE_DECAY, *CUTMIX),
    "weight decay 1e-3, TrivialAugment": (DECAY, "augment.policy=trivial"),
}
"""What `cifar100_lt_strong` may be made of, chosen among on pictures that are neither trained nor tested on
(``tests.benchmarks.left_out``). The base: AutoAugment, Cutout 16, weight decay 5e-4 and the average of the weights."""
LONGER = {
    "weight decay 1e-3, CutMix": CANDIDATES["weight decay 1e-3, CutMix"],
    "the base": (),
    "half of the logit adjustment": (DECAY, *CUTMIX, "loss={name: logit_adjustment, tau: 0.5}"),
    "sharpness-aware": (DECAY, *CUTMIX, "optimizer.sharpness_rho=0.1"),
    "batch 64": (DECAY, *CUTMIX, "batch_size=64", "optimizer.learning_rate=0.05"),
}
PARTS = {
    "crop and flip": (NO_AVERAGE, "augment.policy=none", "augment.cutout=0"),
    "AutoAugment": (NO_AVERAGE, "augment.cutout=0"),
    "AutoAugment and Cutout": (NO_AVERAGE,),
}
"""What each part brings, one after another; the average is the base."""
STRONG, PAPER = "cifar100_lt_strong", "cifar100_lt"
PLAIN = (
    "optimizer.weight_decay=0.0005",
    "augment.cutmix=0",
    "augment.mixing_probability=1",
    "augment.mixing_until=1",
    "alpha={}",
)
"""Takes back what the recipe has beyond the base, and its alpha."""


def strong(epochs: int, what: str, settings: tuple[str, ...], seeds: tuple[int, ...] = (0,)) -> Entry:
    title = f"strong, {epochs} epochs: {what}"
    return Entry(title, STRONG, seeds=seeds, settings=(f"schedule.epochs={epochs}", *PLAIN, *settings))


PLAN = (
    *(strong(200, what, settings) for what, settings in CANDIDATES.items()),
    Entry("paper: de-confounded", PAPER, seeds=(0, 1)),
    Entry("paper: other classifiers", PAPER, methods=("linear", "cosine", "capsule", "crt", "lws", "tau_norm", "ncm")),
    *(Entry(f"paper: factor {f}", PAPER, settings=(f"data.long_tail.imbalance_factor={f}",)) for f in (50, 10)),
    *(Entry(f"paper: K {heads}", PAPER, settings=(f"head.num_heads={heads}",)) for heads in (1, 4)),
    *(Entry(f"paper: tau {tau}", PAPER, settings=(f"head.tau={tau}",)) for tau in (8, 32)),
    *(Entry(f"paper: gamma 1/{part}", PAPER, settings=(f"head.gamma={1 / part}",)) for part in (16, 64)),
    *(strong(400, what, settings) for what, settings in LONGER.items()),
    *(strong(200, what, settings) for what, settings in PARTS.items()),
    *(strong(epochs, "second seed", CANDIDATES["weight decay 1e-3, CutMix"], seeds=(1,)) for epochs in (400, 200)),
    strong(800, "weight decay 1e-3, CutMix", CANDIDATES["weight decay 1e-3, CutMix"]),
    Entry("paper: losses", PAPER, methods=("focal", "balanced_softmax", "logit_adjustment")),
    Entry("CIFAR-10: strong, 400 epochs", "cifar10_lt_strong", settings=("schedule.epochs=400",)),
    Entry("CIFAR-10: paper", "cifar10_lt"),
)
"""The base of the ablations, K 2, tau 16 and gamma 1/32, is the paper's recipe itself."""


@dataclass(frozen=True)
class Job:
    """One training: its folder's name, and its command without data, place and device."""

    name: str
    arguments: tuple[str, ...]


def jobs_of(entry: Entry, *, smoke: bool) -> Iterator[Job]:
    """Yield the trainings of an entry; methods that build on the same one share it."""
    trained = dict.fromkeys(METHODS[method].settings for method in entry.methods)
    for number, method_settings in enumerate(trained):
        for seed in entry.seeds:
            settings = [*method_settings, *entry.settings, *(SMOKE if smoke else ()), f"seed={seed}"]
            name = re.sub(r"[^a-z0-9]+", "-", entry.title.lower())
            parts = [part for setting in settings for part in ("--set", setting)]
            yield Job(f"{name}-{number}-seed{seed}" if number else f"{name}-seed{seed}", (entry.recipe, *parts))


def train(jobs: Sequence[Job], sources: dict[str, str], output: Path, *, at_once: int, minutes: float) -> None:
    """Train jobs in order, so many at once, until all are done or the time is up; then end what runs, gently.

    What is ended keeps its last whole epoch. Logs lie beside the runs.
    """
    waiting, running = list(jobs), dict[Job, subprocess.Popen[bytes]]()
    until = time.monotonic() + 60 * minutes
    try:
        while (waiting or running) and time.monotonic() < until:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                running[job] = _begin(job, source_of(job.arguments[0], sources), output)
            time.sleep(0.2)
            for job in [job for job, process in running.items() if process.poll() is not None]:
                code = running.pop(job).returncode
                state = "done" if code == 0 else f"FAILED with {code}, see its log"
                console.print(f"{job.name}: {state}; {len(running)} running, {len(waiting)} waiting", markup=False)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    for job in (*running, *waiting):
        console.print(f"{job.name}: not done in time; call again to go on", markup=False)


def _begin(job: Job, source: str, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "trainer", "train", *job.arguments, "--data", source]
    command += ["--output", str(output / job.name), "--resume"]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with (output / f"{job.name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def source_of(recipe: str, sources: dict[str, str]) -> str:
    """Say where a recipe's pictures lie; nowhere: an empty string."""
    return sources["cifar100" if recipe.startswith("cifar100") else "cifar10"]


def measure(entry: Entry, sources: dict[str, str], output: Path, *, smoke: bool) -> list[Row]:
    """Measure what is trained of an entry under every choice of knobs."""
    folders = [output / job.name for job in jobs_of(entry, smoke=smoke)]
    source = source_of(entry.recipe, sources)
    wanted = Comparison(
        recipe=entry.recipe,
        settings=[*entry.settings, *(SMOKE if smoke else ()), f"data.source={json.dumps(source)}"],
        methods=list(entry.methods),
        seeds=list(entry.seeds),
        output=output / "compared",
        runs=folders,
        alpha=None,
        device_name="auto",
    )
    return compare_methods(wanted)


def is_trained(entry: Entry, output: Path, *, smoke: bool) -> bool:
    """Tell whether all trainings of an entry have ended."""
    folders = [output / job.name for job in jobs_of(entry, smoke=smoke)]
    return all((folder / "evaluation.json").is_file() for folder in folders)


def command_of(entry: Entry, row: Row, *, smoke: bool) -> str:
    """Write the command that makes one row again."""
    parts = ["python", "-m", "trainer", "compare", entry.recipe, "--methods", row.method, "--seeds", str(row.seed)]
    parts += ["--data", "DATA"]
    parts += [part for setting in (*entry.settings, *(SMOKE if smoke else ())) for part in ("--set", setting)]
    return shlex.join(parts)


def images_per_second(row: Row) -> float:
    """Take the median over the epochs of a row's training, without the first, which compiles."""
    rates = [record.images_per_second for record in load_checkpoint(Path(row.run)).history]
    return statistics.median(rates[1:] or rates)


def table(found: list[tuple[Entry, str, Row]]) -> str:
    """Write what was found as Markdown: a row for each method, seed and choice of knobs."""
    heads = ["training", "method", "seed", "knobs", "alpha", "prior", *COLUMNS.values(), "epochs", "images/s", "took"]
    lines = [f"| {' | '.join([*heads, 'device'])} |", f"| {' | '.join(['---'] * (len(heads) + 1))} |"]
    for entry, _, row in found:
        measures = [f"{100 * row.metrics[name]:.1f}" if name in row.metrics else "" for name in COLUMNS]
        cells = [entry.title, row.method, str(row.seed), row.variant, f"{row.alpha:.2f}", f"{row.prior_strength:.2f}"]
        cells += [*measures, str(row.epochs), f"{images_per_second(row):,.0f}"]
        cells += [f"{row.training_seconds + row.posthoc_seconds:,.0f} s", row.device]
        lines.append(f"| {' | '.join(cells)} |")
    commands = dict.fromkeys(
        f"{entry.title}, {row.method}, seed {row.seed}: `{command}`" for entry, command, row in found
    )
    fastest = max((images_per_second(row) for _, _, row in found), default=0)
    about = f"PyTorch {torch.__version__}; fastest training {fastest:,.0f} images/s"
    return "\n".join([about, "", *lines, "", *(f"- {one}" for one in commands)]) + "\n"


def write(found: list[tuple[Entry, str, Row]], output: Path) -> None:
    """Write the table and the numbers, whole each time."""
    rows = [
        {"training": entry.title, **asdict(row), "command": command, "images_per_second": images_per_second(row)}
        for entry, command, row in found
    ]
    (output / "gpu_training.md").write_text(table(found))
    (output / "gpu_training.json").write_text(json.dumps(rows, indent=1) + "\n")


def made_pictures(folder: Path, label_column: str, classes: int) -> str:
    """Write a data set of random pictures in the form of the hub's CIFAR: 8 of each class to train on, 2 to test."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, each, first in (("train", 8, 0), ("test", 2, 10_000)):
        labels = np.repeat(np.arange(classes), each).tolist()
        pictures = [{"bytes": png(first + row, 32, 32), "path": None} for row in range(len(labels))]
        pq.write_table(pa.table({"img": pictures, label_column: labels}), folder / f"{split}.parquet")
    return str(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu_training", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", help="CIFAR-100: a folder with train*.parquet and test*.parquet, or a hub id")
    parser.add_argument("--data10", help="CIFAR-10, likewise; without it its trainings are left out")
    parser.add_argument("--output", type=Path, required=True, help="folder of trainings, logs and results")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    parser.add_argument("--minutes", type=float, default=50, help="time for training")
    parser.add_argument("--only", action="append", help="titles that match this expression; repeatable, in this order")
    parser.add_argument("--table", action="store_true", help="train nothing: measure what is trained, write the table")
    parser.add_argument("--smoke", action="store_true", help="one epoch of each kind on a few made pictures")
    asked = parser.parse_args(arguments)
    asked.output.mkdir(parents=True, exist_ok=True)
    sources = {"cifar100": asked.data or "", "cifar10": asked.data10 or ""}
    if asked.smoke:
        sources = {
            "cifar100": made_pictures(asked.output / "made100", "fine_label", 12),
            "cifar10": made_pictures(asked.output / "made10", "label", 10),
        }
    plan = [entry for entry in PLAN if source_of(entry.recipe, sources) and (entry.title in SMOKED or not asked.smoke)]
    if asked.only:
        chosen = [entry for wanted in asked.only for entry in plan if re.search(wanted, entry.title)]
        plan = list(dict.fromkeys(chosen))
    began = time.monotonic()
    if not asked.table:
        jobs = [
            job
            for entry in plan
            if not is_trained(entry, asked.output, smoke=asked.smoke)
            for job in jobs_of(entry, smoke=asked.smoke)
        ]
        train(jobs, sources, asked.output, at_once=asked.jobs, minutes=asked.minutes)
    if asked.table or asked.smoke:
        found = []
        for entry in plan:
            if is_trained(entry, asked.output, smoke=asked.smoke):
                rows = measure(entry, sources, asked.output, smoke=asked.smoke)
                found += [(entry, command_of(entry, row, smoke=asked.smoke), row) for row in rows]
                write(found, asked.output)
        sys.stdout.write(table(found))
    console.print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
