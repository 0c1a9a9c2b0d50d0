"""What the knob costs on this machine: `make bench`.

The TDE classifier in PyTorch, which normalises its weight anew in each call as training does (an exported model holds
the result), against a plain linear one on the same features; and an exact envelope over alpha per prediction.
Every figure is the median over rounds in which the candidates take turns, so that a busy machine slows all alike.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from service.tradeoff import upper_envelope
from trainer.head import tde_logits

ROUNDS = 30
# (features, classes): CIFAR-100's ResNet-32, ImageNet-LT's ResNeXt-50.
SIZES = ((128, 100), (2048, 1000))
BATCH = 64


def median_seconds(candidates: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Time the candidates in turns; the first round warms up and is dropped."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def candidates(dim: int, classes: int) -> dict[str, Callable[[], object]]:
    """Return what is compared, on one batch of random features."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(BATCH, dim, generator=generator)
    weight = torch.randn(classes, dim, generator=generator)
    bias, direction = torch.zeros(classes), torch.randn(dim, generator=generator)
    alpha = torch.linspace(0, 3, BATCH)
    factual, counterfactual = np.random.default_rng(0).normal(size=(2, BATCH, classes))

    def envelopes() -> None:
        for row in range(BATCH):
            upper_envelope(factual[row], counterfactual[row], low=0.0, high=3.0)

    return {
        "plain linear classifier": lambda: torch.nn.functional.linear(features, weight, bias),
        "TDE classifier, mixed alphas (eager)": lambda: tde_logits(
            features, weight, direction, alpha, num_heads=2, tau=16.0, gamma=1 / 32
        ),
        "envelopes over alpha": envelopes,
    }


def main() -> None:
    """Print one table a size."""
    console = Console()
    torch.set_num_threads(1)  # more of them wait for each other at these sizes
    for dim, classes in SIZES:
        table = Table(title=f"{BATCH} images, {dim} features, {classes} classes")
        table.add_column("what")
        table.add_column("µs an image", justify="right")
        with torch.inference_mode():
            for name, seconds in median_seconds(candidates(dim, classes)).items():
                table.add_row(name, f"{seconds / BATCH * 1e6:.2f}")
        console.print(table)


if __name__ == "__main__":
    main()
