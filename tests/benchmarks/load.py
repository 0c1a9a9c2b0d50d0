"""Load on a server: wrk, which takes little of the cores that it shares with what it measures."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("predict.lua")


class NoLoadGenerator(Exception):
    """wrk is not installed."""


@dataclass(frozen=True)
class Body:
    """What is sent: files, taken in turn, of one media type."""

    content_type: str
    files: Sequence[Path]


@dataclass(frozen=True)
class Load:
    """What a burst of load found; seconds throughout. `refused`: answers of 400 and above."""

    requests: int
    seconds: float
    refused: int
    broken: int
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return (self.requests - self.refused) / self.seconds


def burst(
    url: str,
    body: Body,
    *,
    connections: int,
    seconds: float,
    alphas: tuple[float, float] | None = None,
    faults_allowed: bool = False,
    until_answer: bool = False,
) -> Load:
    """Send requests over so many connections for so long, each connection one at a time.

    Args:
        alphas: between which each request's is drawn; None: no request names one.
        faults_allowed: count answers that are errors, too.
        until_answer: the time counts to the last answer. Where answers come in batches that take long, what is under
            way at the end would else count with its time and without its answers.

    Raises:
        NoLoadGenerator: wrk is not installed; says how to get it.
        RuntimeError: an answer was an error, and that is not allowed: such a rate would mean nothing.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise NoLoadGenerator("the benchmarks need wrk, and it is not installed: apt install wrk, or brew install wrk")
    low, high = ("none", "none") if alphas is None else map(str, alphas)
    until = "answer" if until_answer else "end"
    command = [wrk, "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "60s", "-s", str(SCRIPT), url, "--"]
    command += [body.content_type, low, high, until, *map(str, body.files)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 120)
    lines = [line for line in said.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(f"wrk failed on {url}: {said.stdout[-500:]} {said.stderr[-500:]}")
    load = Load(**json.loads(lines[0].removeprefix("RESULT ")))
    if (load.refused or load.broken or not load.requests) and not faults_allowed:
        raise RuntimeError(f"{url} did not answer every request well: {load}")
    return load
