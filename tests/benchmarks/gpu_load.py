"""Load from several processes, of several connections each, on one or several servers: what a GPU needs to be busy.

wrk would send large bodies from one thread; here a connection costs a few hundredths of what a picture costs a server.
Every process begins at the same moment; what counts is answered once the queues have filled, and before the end.
"""

import http.client
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tests.benchmarks.workers import Job, work, work_together

Found = tuple[int, int, int, list[float], dict[str, list[float]], str]
RAMP = 0.6
"""Seconds of load before anything counts."""
_KEPT = ("x-decode-time", "x-queue-time", "x-inference-time", "x-total-time")


@dataclass(frozen=True)
class Requests:
    """What is sent: bodies in turn, of so many pictures each.

    Attributes:
        path: such as /predict.
        bodies, headers: of each request.
        images: in each body.
    """

    path: str
    bodies: Sequence[bytes]
    headers: Mapping[str, str]
    images: int = 1


def batched(model: str, height: int, width: int, images: int) -> Requests:
    """Return requests of so many pictures as the binary tensor extension has them."""
    chance, shape = np.random.default_rng(0), (images, height, width, 3)
    pixels = [chance.integers(0, 256, shape, dtype=np.uint8).tobytes() for _ in range(2)]
    size = {"binary_data_size": len(pixels[0])}
    head = json.dumps(
        {
            "inputs": [{"name": "image", "datatype": "UINT8", "shape": shape, "parameters": size}],
            "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Requests(f"/v2/models/{model}/infer", [head + each for each in pixels], headers, images=images)


@dataclass(frozen=True)
class Rate:
    """What was found.

    Attributes:
        images: a second.
        refused: answers that were none of 200.
        lost: connections that ended without an answer.
        p50, p99, slowest: seconds of a request, as its client saw it.
        stages: median milliseconds, as the servers' headers say.
        fault: what went wrong first, if anything.
    """

    images: float
    refused: int
    lost: int
    p50: float
    p99: float
    slowest: float
    stages: dict[str, float]
    fault: str = ""


def load(ports: Sequence[int], requests: Requests, *, processes: int, connections: int, seconds: float) -> Rate:
    """Keep so many connections busy, shared evenly by the processes and the ports, for so long."""
    with TemporaryDirectory() as folder:
        bodies = [Path(folder, str(number)) for number in range(len(requests.bodies))]
        for file, body in zip(bodies, requests.bodies, strict=True):
            file.write_bytes(body)
        job = {"ports": list(ports), "path": requests.path, "headers": dict(requests.headers), "seconds": seconds}
        job["bodies"] = [str(file) for file in bodies]
        shares = [connections // processes + (number < connections % processes) for number in range(processes)]
        jobs = [{**job, "first": number, "connections": share} for number, share in enumerate(shares)]
        return _summed(work_together(__name__, jobs, ramp=RAMP), requests.images, seconds)


def _summed(found: Sequence[Found], images: int, seconds: float) -> Rate:
    took = sorted(second for each in found for second in each[3])
    stages = {name: sorted(value for each in found for value in each[4].get(name, [])) for name in _KEPT}
    return Rate(
        images=sum(each[0] for each in found) * images / seconds,
        refused=sum(each[1] for each in found),
        lost=sum(each[2] for each in found),
        p50=took[len(took) // 2] if took else 0.0,
        p99=took[len(took) * 99 // 100] if took else 0.0,
        slowest=took[-1] if took else 0.0,
        stages={name.removeprefix("x-"): values[len(values) // 2] for name, values in stages.items() if values},
        fault=next((each[5] for each in found if each[5]), ""),
    )


def _prepare(job: Job) -> Callable[[float], Any]:
    bodies = [Path(file).read_bytes() for file in job["bodies"]]
    requests = Requests(job["path"], bodies, job["headers"])
    first, ports = job["first"], job["ports"]

    def send(begin: float) -> Any:
        def ask(number: int) -> Found:
            return _ask(ports[(first + number) % len(ports)], requests, first * 7 + number, begin, job["seconds"])

        with ThreadPoolExecutor(max(1, job["connections"])) as pool:
            parts = list(pool.map(ask, range(job["connections"])))
        stages = {name: [value for part in parts for value in part[4][name]] for name in _KEPT}
        fault = next((part[5] for part in parts if part[5]), "")
        good, refused, lost = (sum(each) for each in zip(*(part[:3] for part in parts), strict=True))
        return good, refused, lost, [second for part in parts for second in part[3]], stages, fault

    return send


def _ask(port: int, requests: Requests, turn: int, begin: float, seconds: float) -> Found:
    """Send one request after the other, from a while before `begin` until so many seconds after."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    good, refused, lost, took = 0, 0, 0, []
    stages: dict[str, list[float]] = {name: [] for name in _KEPT}
    fault = ""
    try:
        while (now := time.time()) < begin + seconds:
            turn += 1
            connection.request("POST", requests.path, requests.bodies[turn % len(requests.bodies)], requests.headers)
            answer = connection.getresponse()
            content, done = answer.read(), time.time()
            if answer.status != 200:
                refused, fault = refused + 1, fault or f"{answer.status} {content[:300]!r}"
            elif begin <= done < begin + seconds:
                good += 1
                took.append(done - now)
                for name in _KEPT:
                    stages[name].append(float(answer.headers.get(name, "nan")))
    except OSError as problem:
        lost, fault = 1, fault or f"{type(problem).__name__}: {problem}"
    finally:
        connection.close()
    return good, refused, lost, took, stages, fault


if __name__ == "__main__":
    work(_prepare)
