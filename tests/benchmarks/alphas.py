"""Whether it costs anything that every request has an alpha of its own. On the tiny model, where nothing hides it.

A machine changes by more than three percent from second to second: so many short turns are taken, and the figure comes
with what it lies between, by the bootstrap, and with the time of the processor that a request takes in the service.
"""

from statistics import median
from typing import NamedTuple

from tests.benchmarks.load import burst
from tests.benchmarks.models import TINY
from tests.benchmarks.pictures import small_png
from tests.benchmarks.result import Figure, at_least
from tests.benchmarks.rounds import median_within, take_turns
from tests.benchmarks.servers import evenkeel
from tests.benchmarks.workplace import Workplace

PART = "Random alphas"


class _Found(NamedTuple):
    rate: float
    cost: float  # of a request, in seconds of the processor


def run(workplace: Workplace) -> list[Figure]:
    """Compare requests with random alphas in [0, 3] with requests that all name 1.5."""
    picture, seconds = small_png(workplace.place("pictures")), workplace.seconds(1)
    with evenkeel(workplace.bundle(TINY).path, workplace.place("run-alphas"), threads=1) as server:

        def turn(low: float, high: float) -> _Found:
            before = server.processor_seconds()
            load = burst(server.url(), picture, connections=32, seconds=seconds, alphas=(low, high))
            return _Found(load.rate, (server.processor_seconds() - before) / load.requests)

        turn(0, 3)
        found = take_turns({"random": lambda: turn(0, 3), "one": lambda: turn(1.5, 1.5)}, workplace.rounds(60))
    pairs = list(zip(found["random"], found["one"], strict=True))
    rates, costs = [random.rate / one.rate for random, one in pairs], [random.cost / one.cost for random, one in pairs]
    low, high = median_within(rates)
    note = f"95 % sure: {low:.3f} to {high:.3f}; {len(pairs)} pairs of {seconds:g} s"
    what = "throughput, random alphas / one alpha, 32 connections"
    return [
        Figure(PART, what, median(rates), goal=at_least(0.97), note=note),
        Figure(PART, "processor time of a request, random alphas / one alpha", median(costs)),
    ]
