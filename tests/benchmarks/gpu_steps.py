"""Images/s of the strong recipe's training steps, by how they are run, alone and side by side; one line of JSON each.

python -m tests.benchmarks.gpu_steps --data ../cifar100 --ways plain captured compiled both --at-once 1
python -m tests.benchmarks.gpu_steps --data ../cifar100 --ways captured --at-once 1 6 12

Processes warm up for an epoch or more, agree on a moment by the clock, and count the steps of the same seconds.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import torch

from trainer.config import load_recipe
from trainer.data import Batch, Pixels, load_splits
from trainer.mixing import mix
from trainer.train import Training, choose_device

WAYS = {
    "plain": ("compile=never", "capture=never"),
    "captured": ("compile=never", "capture=auto"),
    "compiled": ("compile=auto", "capture=never"),
    "both": ("compile=auto", "capture=auto"),
}


def _batches(pixels: Pixels) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from pixels.training(epoch)
        epoch += 1


def count(settings: list[str], seconds: float, device_name: str) -> None:
    """Print after how many seconds it is warm, wait for a line, and print images/s over so many seconds."""
    recipe, device = load_recipe("cifar100_lt_strong", settings), choose_device(device_name)
    splits = load_splits(recipe)
    began = time.monotonic()
    training, pixels = Training(recipe, splits, device), Pixels(splits.train, recipe, device, name="training images")
    training.model.train()
    done, until, batches = 0, 0.0, _batches(pixels)
    for step, (batch, labels) in enumerate(batches):
        mixed, mixture = mix(recipe.augment, batch, 0.1)
        training._step(mixed, labels, 0.1, mixture)
        if training.average:
            training.average.update(step)
        if step < pixels.steps_per_epoch():
            continue
        if not until:
            _settle(device)
            print(time.monotonic() - began, flush=True)
            sys.stdin.readline()
            begin = time.monotonic()
            until = begin + seconds
            continue
        done += len(labels)
        if time.monotonic() > until:
            break
    _settle(device)
    print(done / (time.monotonic() - begin), flush=True)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu_steps", description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["captured"])
    parser.add_argument("--at-once", nargs="+", type=int, default=[1])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.count:
        count([*asked.set, f"data.source={json.dumps(asked.data)}"], asked.seconds, asked.device)
        return
    for way in asked.ways:
        for at_once in asked.at_once:
            command = [sys.executable, "-m", "tests.benchmarks.gpu_steps", "--count", "--data", asked.data]
            command += ["--seconds", str(asked.seconds), "--device", asked.device]
            command += [part for setting in (*WAYS[way], *asked.set) for part in ("--set", setting)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            running = [subprocess.Popen(command, **pipes) for _ in range(at_once)]  # type: ignore[call-overload]
            warm = [float(one.stdout.readline() or "nan") for one in running]
            for one in running:
                one.stdin.write("go\n")
                one.stdin.flush()
            rates = [float(one.communicate()[0] or "nan") for one in running]
            found = {"way": way, "at_once": at_once, "images_per_second": round(sum(rates))}
            print(json.dumps(found | {"seconds_until_warm": round(max(warm), 1)}), flush=True)


if __name__ == "__main__":
    main()
