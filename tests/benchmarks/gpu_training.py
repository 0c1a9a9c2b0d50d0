"""The long trainings in order of importance, for a machine with a GPU: one command, one table for trainer/RESULTS.md.

python -m tests.benchmarks.gpu_training --data ../cifar100 --data10 ../cifar10 --output runs/gpu --minutes 50
python -m tests.benchmarks.gpu_training --output runs/smoke --smoke     # the whole flow in a minute, on made pictures

Trainings are `trainer compare`'s, so they lie in folders named by what determines them; called again, it goes on with
the one that the time ran out on. Table and JSON are written anew after each. No choice is made on the test set.
"""

import argparse
import json
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tests.trainer.tiny import png
from trainer.checkpoint import load_checkpoint
from trainer.compare import Comparison, compare_methods
from trainer.comparison import Row
from trainer.progress import console
from trainer.train import choose_device

GOAL = 20_000
"""Images/s that a ResNet-32 should pass on a large GPU, with data on the device and compiled steps."""
SMOKE = (
    "schedule={epochs: 1}",
    "batch_size=32",
    "data.long_tail.imbalance_factor=4",
    "backbone.name=small_cnn",  # a ResNet-32 takes a second a step where the machine is small and busy
)
SMOKED = ("strong, both", "CIFAR-10, strong, 400 epochs", "the paper's recipe, other classifiers", "gamma 1/64")
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


def longer(epochs: int) -> str:
    return f"schedule.epochs={epochs}"


CUTMIX = ("augment.cutmix=1", "augment.mixing_probability=0.5", "augment.mixing_until=0.8")
STRONG = "cifar100_lt_strong"
POSTHOC = ("crt", "lws", "tau_norm", "ncm")
PLAN = (
    Entry("strong, 400 epochs", STRONG, settings=(longer(400),)),
    Entry("CIFAR-10, strong, 400 epochs", "cifar10_lt_strong", settings=(longer(400),)),
    Entry("the paper's recipe", "cifar100_lt", seeds=(0, 1)),
    Entry("the paper's recipe, other classifiers", "cifar100_lt", methods=("linear", "cosine", "capsule", *POSTHOC)),
    Entry("factor 50", "cifar100_lt", settings=("data.long_tail.imbalance_factor=50",)),
    Entry("factor 10", "cifar100_lt", settings=("data.long_tail.imbalance_factor=10",)),
    *(Entry(f"K {heads}", "cifar100_lt", settings=(f"head.num_heads={heads}",)) for heads in (1, 4)),
    *(Entry(f"tau {tau}", "cifar100_lt", settings=(f"head.tau={tau}",)) for tau in (8, 32)),
    *(Entry(f"gamma 1/{part}", "cifar100_lt", settings=(f"head.gamma={1 / part}",)) for part in (16, 64)),
    Entry("strong, CutMix", STRONG, settings=(longer(400), *CUTMIX)),
    Entry("strong, sharpness-aware", STRONG, settings=(longer(400), "optimizer.sharpness_rho=0.1")),
    Entry("strong, both", STRONG, settings=(longer(400), *CUTMIX, "optimizer.sharpness_rho=0.1")),
    Entry("strong, 800 epochs", STRONG, settings=(longer(800),)),
    Entry("strong, as it is", STRONG),
    Entry("strong, second seed", STRONG, seeds=(1,), settings=(longer(400),)),
    Entry("CIFAR-10, strong, second seed", "cifar10_lt_strong", seeds=(1,), settings=(longer(400),)),
    Entry("losses", "cifar100_lt", methods=("focal", "balanced_softmax", "logit_adjustment")),
    Entry("CIFAR-10, the paper's recipe", "cifar10_lt"),
    Entry("strong, other classifiers", STRONG, methods=("linear", "cosine", "capsule"), settings=(longer(400),)),
)
"""The base of the ablations, K 2, tau 16 and gamma 1/32, is the paper's recipe itself."""


class OutOfTime(KeyboardInterrupt):
    """The time budget is used up; what is being trained keeps its last whole epoch."""


@contextmanager
def budget(minutes: float) -> Iterator[None]:
    """End the block after so many minutes, as Ctrl-C would."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(entry: Entry, *, data: str | None, output: Path, device: str, smoke: bool) -> list[Row]:
    """Train what is missing of an entry, and measure it under every choice of knobs."""
    source = [f"data.source={json.dumps(data)}"] if data else []
    smaller = list(SMOKE) if smoke else []
    settings = [*entry.settings, *smaller, *source]
    wanted = Comparison(
        recipe=entry.recipe,
        settings=settings,
        methods=list(entry.methods),
        seeds=list(entry.seeds),
        output=output,
        runs=[],
        alpha=None,
        device_name=device,
    )
    return compare_methods(wanted)


def command_of(entry: Entry, row: Row, data: str | None, *, smoke: bool) -> str:
    """Write the command that makes one row again."""
    parts = ["python", "-m", "trainer", "compare", entry.recipe, "--methods", row.method, "--seeds", str(row.seed)]
    parts += ["--data", data] if data else []
    parts += [part for setting in (*entry.settings, *(SMOKE if smoke else ())) for part in ("--set", setting)]
    return shlex.join(parts)


def images_per_second(row: Row) -> float:
    """Take the median over the epochs of a row's training, without the first, which compiles."""
    rates = [record.images_per_second for record in load_checkpoint(Path(row.run)).history]
    return statistics.median(rates[1:] or rates)


def table(found: list[tuple[Entry, str, Row]], seconds: float) -> str:
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
    about = f"PyTorch {torch.__version__}, {seconds / 60:.0f} minutes in all; fastest training {fastest:,.0f} images/s"
    if torch.cuda.is_available():
        about += f" (goal on a large GPU: {GOAL:,}; {'pass' if fastest >= GOAL else 'MISS'})"
    return "\n".join([about, "", *lines, "", *(f"- {one}" for one in commands)]) + "\n"


def write(found: list[tuple[Entry, str, Row]], output: Path, seconds: float) -> None:
    """Write the table and the numbers, whole each time."""
    rows = [
        {"training": entry.title, **asdict(row), "command": command, "images_per_second": images_per_second(row)}
        for entry, command, row in found
    ]
    (output / "gpu_training.md").write_text(table(found, seconds))
    (output / "gpu_training.json").write_text(json.dumps({"seconds": seconds, "rows": rows}, indent=1) + "\n")


def made_pictures(folder: Path, label_column: str, classes: int) -> str:
    """Write a data set of random pictures in the form of the hub's CIFAR: 8 of each class to train on, 2 to test."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, each, first in (("train", 8, 0), ("test", 2, 10_000)):
        labels = np.repeat(np.arange(classes), each).tolist()
        pictures = [{"bytes": png(first + row, 32, 32), "path": None} for row in range(len(labels))]
        pq.write_table(pa.table({"img": pictures, label_column: labels}), folder / f"{split}.parquet")
    return str(folder)


def profile(output: Path, data: str | None, device: str, *, smoke: bool) -> None:
    """Write where the time of fifty steps of the strong recipe goes, on the host and on the device."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    from trainer.config import load_recipe
    from trainer.data import Pixels, load_splits
    from trainer.train import Training

    source = [f"data.source={json.dumps(data)}"] if data else []
    recipe = load_recipe(STRONG, [*source, *(SMOKE if smoke else ())])
    splits, place = load_splits(recipe), choose_device(device)
    training, pixels = Training(recipe, splits, place), Pixels(splits.train, recipe, place, name="training images")
    training._epoch(pixels, 0)  # compiles
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if place.type == "cuda" else [])]
    with profiled(activities=activities) as seen:
        for _, (batch, labels) in zip(range(50), pixels.training(1), strict=False):
            training._step(batch, labels, 0.1)
    order = "self_cpu_time_total" if place.type == "cpu" else "self_device_time_total"
    (output / "profile.txt").write_text(
        f"{seen.key_averages().table(sort_by='self_cpu_time_total', row_limit=40)}\n"
        f"{seen.key_averages().table(sort_by=order, row_limit=40)}\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu_training", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", help="CIFAR-100: a folder with train*.parquet and test*.parquet [default: the hub's]")
    parser.add_argument("--data10", help="CIFAR-10, likewise")
    parser.add_argument("--output", type=Path, required=True, help="folder of trainings and results")
    parser.add_argument(
        "--minutes", type=float, default=50, help="time budget; what is left over goes on when called again"
    )
    parser.add_argument("--only", help="titles that contain this, such as 'strong'")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--smoke", action="store_true", help="one epoch of each kind on a few made pictures")
    parser.add_argument("--profile", action="store_true", help="first write to profile.txt where a step's time goes")
    asked = parser.parse_args(arguments)
    asked.output.mkdir(parents=True, exist_ok=True)
    data = {"cifar100": asked.data, "cifar10_": asked.data10}
    if asked.smoke:
        data = {
            "cifar100": made_pictures(asked.output / "made100", "fine_label", 12),
            "cifar10_": made_pictures(asked.output / "made10", "label", 10),
        }
    plan = [entry for entry in PLAN if (asked.only or "") in entry.title and (entry.title in SMOKED or not asked.smoke)]
    found: list[tuple[Entry, str, Row]] = []
    began = time.monotonic()
    try:
        with budget(asked.minutes):
            if asked.profile:
                profile(asked.output, data["cifar100"], asked.device, smoke=asked.smoke)
            for number, entry in enumerate(plan, 1):
                console.rule(f"{number} of {len(plan)}: {entry.title}")
                source = data[entry.recipe[:8]]
                rows = run(entry, data=source, output=asked.output, device=asked.device, smoke=asked.smoke)
                found += [(entry, command_of(entry, row, source, smoke=asked.smoke), row) for row in rows]
                write(found, asked.output, time.monotonic() - began)
    except OutOfTime:
        console.print(f"out of time after {len({entry.title for entry, _, _ in found})} of {len(plan)}; call it again")
    sys.stdout.write(table(found, time.monotonic() - began))


if __name__ == "__main__":
    main()
