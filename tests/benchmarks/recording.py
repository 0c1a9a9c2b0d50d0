"""What it costs to keep every prediction for feedback: a share of 1 against a share of 0, on the tiny model."""

from tests.benchmarks.load import burst
from tests.benchmarks.models import TINY
from tests.benchmarks.pictures import small_png
from tests.benchmarks.result import Figure, at_least
from tests.benchmarks.rounds import median_ratio, take_turns
from tests.benchmarks.servers import Server, evenkeel
from tests.benchmarks.workplace import Workplace

PART = "Keeping predictions"


def run(workplace: Workplace) -> list[Figure]:
    """Compare two services that differ in `EVENKEEL_KEPT_SHARE` alone, at full load and at half of it."""
    picture = small_png(workplace.place("pictures"))
    bundle = workplace.bundle(TINY).path

    def rate(server: Server) -> float:
        return burst(server.url(), picture, connections=32, seconds=workplace.seconds(4)).rate

    with (
        evenkeel(bundle, workplace.place("run-kept"), threads=1, kept_share=1) as keeps,
        evenkeel(bundle, workplace.place("run-not-kept"), threads=1, kept_share=0) as forgets,
    ):
        rate(keeps), rate(forgets)
        found = take_turns({"keeps": lambda: rate(keeps), "forgets": lambda: rate(forgets)}, workplace.rounds(6))
    ratio = median_ratio(found["keeps"], found["forgets"])
    note = "the tiny model at its limit, some thousand predictions a second: the worst case"
    return [Figure(PART, "throughput, all kept / none kept, 32 connections", ratio, goal=at_least(0.97), note=note)]
