"""A heavy model: what a service leaves of the images/s that decoding and ONNX Runtime reach without any server.

ResNeXt-50 32x4d and JPEGs of about 500x375. The reference is one process that decodes in threads and runs full batches,
with no HTTP, no validation, no answer: the faster of two ways to write it, one batch after the other, or decoding the
next while the model runs.
"""

import subprocess
import sys

import numpy as np

from service.cores import available_cores
from tests.benchmarks.load import Body, burst
from tests.benchmarks.models import HEAVY
from tests.benchmarks.pictures import jpegs
from tests.benchmarks.result import Figure, at_least
from tests.benchmarks.rounds import median_within, take_turns
from tests.benchmarks.servers import ROOT, evenkeel
from tests.benchmarks.workplace import Workplace

PART = "Heavy model"
BATCH = 8
WAYS = ("overlapped", "serial")


def run(workplace: Workplace) -> list[Figure]:
    """Compare the service under 32 connections with the reference, in turns."""
    bundle, pictures = workplace.bundle(HEAVY).path, jpegs(workplace.place("pictures"))
    seconds = workplace.seconds(8)

    def reference() -> list[float]:
        return without_server(str(bundle), pictures, seconds)

    with evenkeel(bundle, workplace.place("run-heavy"), max_batch_size=BATCH) as server:

        def service() -> list[float]:
            load = burst(server.url(), pictures, connections=4 * BATCH, seconds=seconds, until_answer=True)
            return [load.rate]

        found = take_turns({"service": service, "reference": reference}, workplace.rounds(12))
    served, alone = np.array(found["service"]), np.array(found["reference"])
    ratios = served / alone
    fastest = int(np.median(ratios, axis=0).argmin())
    low, high = median_within(ratios[:, fastest].tolist())
    by_way = ", ".join(f"{way} {rate:.1f}" for way, rate in zip(WAYS, np.median(alone, axis=0), strict=True))
    note = (
        f"95 % sure: {low:.3f} to {high:.3f}; {len(ratios)} turns, {np.median(served):.1f} images/s; "
        f"batches of {BATCH}, {available_cores()} threads"
    )
    return [
        Figure(
            PART,
            "decoding and ONNX Runtime without a server",
            float(np.median(alone[:, fastest])),
            "images/s",
            note=by_way,
        ),
        Figure(
            PART,
            "images/s, evenkeel / without a server",
            float(np.median(ratios[:, fastest])),
            goal=at_least(0.95),
            note=note,
        ),
    ]


def without_server(bundle: str, pictures: Body, seconds: float) -> list[float]:
    """Return the images/s of the reference in each way, from a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.no_server", bundle, str(BATCH), str(seconds)]
    said = subprocess.run(
        [*command, *map(str, pictures.files)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=600
    )
    return [float(word) for word in said.stdout.splitlines()[-1].split()]
