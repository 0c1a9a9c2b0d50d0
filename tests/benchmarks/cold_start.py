"""From the start of the process to ready, and where the time goes."""

import re
import statistics
import subprocess
import sys
import time

from tests.benchmarks.models import HEAVY, TINY
from tests.benchmarks.result import Figure
from tests.benchmarks.servers import ROOT, evenkeel
from tests.benchmarks.workplace import Workplace

PART = "Cold start"
_STAGES = re.compile(r"loaded in ([\d.]+) s, warm in ([\d.]+) s, parity checked in ([\d.]+) s")


def run(workplace: Workplace) -> list[Figure]:
    """Start the service on the tiny and on the heavy model, several times each."""
    imports = statistics.median(_imports() for _ in range(workplace.rounds(3)))
    figures = []
    for name, model in (("tiny model", TINY), ("ResNeXt-50", HEAVY)):
        starts = [_start(workplace, model) for _ in range(workplace.rounds(3))]
        total, loaded, warm, parity = (statistics.median(column) for column in zip(*starts, strict=True))
        rest = total - imports - loaded - warm - parity
        note = (
            f"interpreter and imports {imports:.2f} (in a process of their own, to its end), hashes checked and "
            f"session made {loaded:.2f}, warm-up {warm:.2f}, parity {parity:.2f}, the rest {rest:.2f}"
        )
        figures.append(Figure(PART, f"process start to ready, {name}", total, "s", note=note))
    return figures


def _start(workplace: Workplace, model: tuple[str, int]) -> tuple[float, float, float, float]:
    with evenkeel(workplace.bundle(model).path, workplace.place("run-start")) as server:
        found = _STAGES.search(server.log.read_text())
        assert found, "the service says how long loading took"
        loaded, warm, parity = map(float, found.groups())
        return server.seconds_to_ready, loaded, warm, parity


def _imports() -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import service.__main__"], cwd=ROOT, check=True)
    return time.perf_counter() - begin
