"""What it costs to keep predictions for feedback.

The goal holds for ResNet-32, of which every prediction is kept, and for the tiny model as the service comes: it makes
some thousand predictions a second and keeps `EVENKEEL_KEPT_RATE` of them, once the ten thousand are used up that it
keeps at once. What it would cost to keep all of those stands beside it.

One service keeps predictions for half a second, then none for as long, and so on, under one load: a machine changes by
more than three percent within seconds, and two processes of one program differ as much by chance. What is sought is the
median over neighbours; between what it lies says the bootstrap. The time of the processor that a request takes, in all
threads of the service, is told by the same phases.
"""

import statistics
import time

from service.settings import Settings
from tests.benchmarks.alternating_service import Phase, read_phases
from tests.benchmarks.load import burst
from tests.benchmarks.models import CIFAR, TINY
from tests.benchmarks.pictures import small_png
from tests.benchmarks.result import Figure, Goal, at_least
from tests.benchmarks.rounds import median_within
from tests.benchmarks.servers import evenkeel
from tests.benchmarks.workplace import Workplace

PART = "Keeping predictions"
GOAL = at_least(0.97)
_EVERY_ONE = 1e6
"""A rate that no service reaches."""


def run(workplace: Workplace) -> list[Figure]:
    """Compare phases that differ in what is kept alone."""
    saved_up = Settings.model_fields["kept_rate"].default / 2  # as it is saved up also while nothing is kept
    parts: list[tuple[str, tuple[str, int], float, float, Goal | None]] = [
        ("ResNet-32, all kept", CIFAR, _EVERY_ONE, 300, GOAL),
        ("tiny model, as it comes", TINY, saved_up, 300, GOAL),
        ("tiny model, all kept", TINY, _EVERY_ONE, 100, None),
    ]
    return [
        figure
        for what, model, rate, seconds, goal in parts
        for figure in _ratios(what, _neighbours(model, rate, workplace.seconds(seconds), workplace), goal)
    ]


def _ratios(what: str, pairs: list[tuple[Phase, Phase]], goal: Goal | None) -> list[Figure]:
    throughput, note = _said([kept.rate / forgotten.rate for kept, forgotten in pairs])
    cost, note_of_cost = _said([kept.cost / forgotten.cost for kept, forgotten in pairs])
    note = f"{statistics.median(kept.rate for kept, _ in pairs):,.0f} requests/s; {note}"
    return [
        Figure(PART, f"throughput, kept / none kept, {what}", throughput, goal=goal, note=note),
        Figure(PART, f"processor time of a request, kept / none kept, {what}", cost, note=note_of_cost),
    ]


def _said(ratios: list[float]) -> tuple[float, str]:
    low, high = median_within(ratios)
    return statistics.median(ratios), f"95 % sure: {low:.3f} to {high:.3f}; {len(ratios)} pairs of neighbours"


def _neighbours(model: tuple[str, int], rate: float, seconds: float, workplace: Workplace) -> list[tuple[Phase, Phase]]:
    """Return pairs of phases, one that keeps and one that does not, all under load and in the long run's state."""
    picture, bundle = small_png(workplace.place("pictures")), workplace.bundle(model).path
    phases = workplace.place("run-kept") / "phases.jsonl"
    settings = {"kept_rate": rate, "trial_phases": str(phases)}
    with evenkeel(bundle, phases.parent, program="tests.benchmarks.alternating_service", **settings) as server:
        begin = time.monotonic()
        burst(server.url(), picture, connections=32, seconds=seconds)
        end = time.monotonic()
    warm = begin + min(10.0, seconds / 4)
    found = read_phases(phases)
    return [
        (first, second) if first.keeps else (second, first)
        for first, second in zip(found[::2], found[1::2], strict=False)
        if first.begin > warm and second.end < end and (rate == _EVERY_ONE or first.skipped)
    ]
