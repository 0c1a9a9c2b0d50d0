"""A heavy model: what a service leaves of the images/s that decoding and ONNX Runtime reach without any server.

ResNeXt-50 32x4d and JPEGs of about 500x375. The reference is one process that decodes in threads while ONNX Runtime
works on the full batch before: nothing is left idle, and there is no HTTP, no validation, no answer.
"""

import subprocess
import sys

from service.cores import available_cores
from tests.benchmarks.load import Body, burst
from tests.benchmarks.models import HEAVY
from tests.benchmarks.pictures import jpegs
from tests.benchmarks.result import Figure, at_least
from tests.benchmarks.rounds import median_ratio, take_turns
from tests.benchmarks.servers import ROOT, evenkeel
from tests.benchmarks.workplace import Workplace

PART = "Heavy model"
BATCH = 8


def run(workplace: Workplace) -> list[Figure]:
    """Compare the service under 32 connections with the reference, in turns."""
    bundle, pictures = workplace.bundle(HEAVY).path, jpegs(workplace.place("pictures"))
    seconds = workplace.seconds(10)

    def reference() -> float:
        return without_server(str(bundle), pictures, seconds)

    with evenkeel(bundle, workplace.place("run-heavy"), max_batch_size=BATCH) as server:

        def service() -> float:
            return burst(server.url(), pictures, connections=4 * BATCH, seconds=seconds, until_answer=True).rate

        found = take_turns({"service": service, "reference": reference}, workplace.rounds(5))
    ratio = median_ratio(found["service"], found["reference"])
    by_turns = f"{_list(found['service'])} and {_list(found['reference'])}"
    note = f"batches of {BATCH}, {available_cores()} threads; by turns {by_turns}"
    return [
        Figure(PART, "decoding and ONNX Runtime without a server", max(found["reference"]), "images/s"),
        Figure(PART, "images/s, evenkeel / without a server", ratio, goal=at_least(0.95), note=note),
    ]


def without_server(bundle: str, pictures: Body, seconds: float) -> float:
    """Return the images/s of the reference, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.no_server", bundle, str(BATCH), str(seconds)]
    said = subprocess.run(
        [*command, *map(str, pictures.files)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=600
    )
    return float(said.stdout.split()[-1])


def _list(rates: list[float]) -> str:
    return ", ".join(f"{rate:.1f}" for rate in rates)
