"""What an exact envelope over alpha costs a prediction: the winners at every alpha, without running anything again."""

import statistics
import time

import numpy as np

from service.tradeoff import upper_envelopes
from tests.benchmarks.result import Figure
from tests.benchmarks.workplace import Workplace

PART = "Envelopes"
BATCH = 32


def run(workplace: Workplace) -> list[Figure]:
    """Time batches of random logits, by number of classes."""
    figures = []
    for classes in (10, 100, 1000):
        factual, counterfactual = np.random.default_rng(0).normal(size=(2, BATCH, classes))
        seconds = []
        for _ in range(workplace.rounds(200)):
            begin = time.perf_counter()
            upper_envelopes(factual, counterfactual, low=0.0, high=3.0)
            seconds.append((time.perf_counter() - begin) / BATCH)
        figures.append(
            Figure(PART, f"{classes} classes, batch {BATCH}", statistics.median(seconds) * 1e6, "µs a picture")
        )
    return figures
