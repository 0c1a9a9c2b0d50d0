"""What it costs to keep predictions for feedback, against a service that keeps none.

The goal holds for ResNet-32, of which every prediction is kept, and for the tiny model as the service comes: it makes
some thousand predictions a second and keeps `EVENKEEL_KEPT_RATE` of them, once the ten thousand are used up that it
keeps at once. What it would cost to keep all of those stands beside it. Many short turns, as the machine's own mood
changes by more than three percent within a minute: what is sought is the median over neighbours.
"""

import statistics
from contextlib import ExitStack
from functools import partial

from tests.benchmarks.load import Body, burst
from tests.benchmarks.models import CIFAR, TINY
from tests.benchmarks.pictures import small_png
from tests.benchmarks.result import Figure, Goal, at_least
from tests.benchmarks.rounds import median_ratio, take_turns
from tests.benchmarks.servers import Server, evenkeel
from tests.benchmarks.workplace import Workplace

PART = "Keeping predictions"
GOAL = at_least(0.97)
_EVERY_ONE = 1e6
"""A rate that no service reaches."""


def run(workplace: Workplace) -> list[Figure]:
    """Compare services that differ in what they keep alone."""
    return [
        _ratio("ResNet-32, all kept", CIFAR, _EVERY_ONE, workplace, GOAL),
        _ratio("tiny model, as it comes", TINY, None, workplace, GOAL),
        _ratio("tiny model, all kept", TINY, _EVERY_ONE, workplace, None),
    ]


def _ratio(what: str, model: tuple[str, int], rate: float | None, workplace: Workplace, goal: Goal | None) -> Figure:
    picture, bundle = small_png(workplace.place("pictures")), workplace.bundle(model).path
    settings = {} if rate is None else {"kept_rate": rate}
    with ExitStack() as stack:
        keeps = stack.enter_context(evenkeel(bundle, workplace.place("run-kept"), **settings))
        forgets = stack.enter_context(evenkeel(bundle, workplace.place("run-not-kept"), kept_share=0))
        for server in (keeps, forgets):
            burst(server.url(), picture, connections=32, seconds=workplace.seconds(4))
        candidates = {
            "keeps": partial(_rate, keeps, picture, workplace),
            "forgets": partial(_rate, forgets, picture, workplace),
        }
        found = take_turns(candidates, workplace.rounds(15))
    ratio = median_ratio(found["keeps"], found["forgets"])
    ratios = sorted(kept / forgotten for kept, forgotten in zip(found["keeps"], found["forgets"], strict=True))
    quartiles = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    rate = statistics.median(found["keeps"])
    note = f"{rate:,.0f} requests/s; half of the {len(ratios)} ratios lie in {quartiles[0]:.2f} to {quartiles[1]:.2f}"
    return Figure(PART, f"throughput, kept / none kept, {what}", ratio, goal=goal, note=note)


def _rate(server: Server, picture: Body, workplace: Workplace) -> float:
    # First what was saved up while the other had its turn is used up.
    burst(server.url(), picture, connections=32, seconds=1)
    return burst(server.url(), picture, connections=32, seconds=workplace.seconds(2)).rate
