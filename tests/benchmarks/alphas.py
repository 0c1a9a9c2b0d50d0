"""Whether it costs anything that every request has an alpha of its own. On the tiny model, where nothing hides it."""

from tests.benchmarks.load import burst
from tests.benchmarks.models import TINY
from tests.benchmarks.pictures import small_png
from tests.benchmarks.result import Figure, at_least
from tests.benchmarks.rounds import median_ratio, take_turns
from tests.benchmarks.servers import evenkeel
from tests.benchmarks.workplace import Workplace

PART = "Random alphas"


def run(workplace: Workplace) -> list[Figure]:
    """Compare requests with random alphas in [0, 3] with requests that all name 1.5."""
    picture = small_png(workplace.place("pictures"))
    with evenkeel(workplace.bundle(TINY).path, workplace.place("run-alphas"), threads=1) as server:

        def rate(low: float, high: float) -> float:
            seconds = workplace.seconds(3)
            return burst(server.url(), picture, connections=32, seconds=seconds, alphas=(low, high)).rate

        rate(0, 3)
        found = take_turns({"random": lambda: rate(0, 3), "one": lambda: rate(1.5, 1.5)}, workplace.rounds(6))
    ratio = median_ratio(found["random"], found["one"])
    return [Figure(PART, "throughput, random alphas / one alpha, 32 connections", ratio, goal=at_least(0.97))]
