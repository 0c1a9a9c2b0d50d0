"""Batches as large bodies to one process whose model takes no time: how many pictures/s are left for a fast device.

32 pictures of 224x224 as a UINT8 tensor (4.8 MB) against the 15-line FastAPI service that makes an array of the body;
to evenkeel through `/v2/.../infer`, with everything on. Both answer with 1,000 logits each; clients share the cores.
"""

import sys
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from numpy.typing import NDArray

from service.app import create_app
from service.connections import Connection
from service.manifest import ClassInfo, InputSpec, Manifest
from service.memory import return_large_blocks
from service.scoring import Branches
from service.settings import Settings
from tests.benchmarks.gpu_load import RAMP, Requests, batched, load
from tests.benchmarks.result import Figure, at_least
from tests.benchmarks.rounds import median_ratio, take_turns
from tests.benchmarks.servers import Server, free_port, running
from tests.benchmarks.workplace import Workplace
from tests.service.fakes import FakeModel, make_manifest

PART = "Large bodies"
COUNT, SIDE, CLASSES = 32, 224, 1000
SPEC = InputSpec(height=SIDE, width=SIDE, resize="exact", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class _Found(NamedTuple):
    images: float
    seconds: float  # of the processor, for a batch


def run(workplace: Workplace) -> list[Figure]:
    """Measure both by turns."""
    tensors = batched("tiny", SIDE, SIDE, COUNT)
    pixels = [body[-COUNT * SIDE * SIDE * 3 :] for body in tensors.bodies]
    requests = {"evenkeel": tensors, "fastapi": Requests("/predict", pixels, {}, images=COUNT)}
    with instant_server("evenkeel", workplace) as ours, instant_server("fastapi", workplace) as other:
        servers = {"evenkeel": ours, "fastapi": other}
        turns = {name: partial(_burst, servers[name], each, workplace) for name, each in requests.items()}
        found = take_turns(turns, workplace.rounds(7))
    rates, costs = ({name: [each[field] for each in burst] for name, burst in found.items()} for field in (0, 1))
    shown = {name: f"{np.median(rates[name]):,.0f} images/s, {np.median(costs[name]) * 1e3:.1f} ms" for name in found}
    note = f"evenkeel {shown['evenkeel']} of the processor a batch; FastAPI {shown['fastapi']}"
    rate = median_ratio(rates["evenkeel"], rates["fastapi"])
    cost = median_ratio(costs["fastapi"], costs["evenkeel"])
    return [
        Figure(PART, "images/s, evenkeel / FastAPI", rate, goal=at_least(1), note=note),
        Figure(PART, "batches for the same time of the processor, evenkeel / FastAPI", cost, goal=at_least(1)),
    ]


def instant_server(kind: str, workplace: Workplace) -> AbstractContextManager[Server]:
    """Start evenkeel or the FastAPI service in front of the model that takes no time."""
    folder, port = workplace.place(f"run-bodies/{kind}"), free_port()
    for old in folder.glob("state.sqlite*"):
        old.unlink()
    command = [sys.executable, "-m", "tests.benchmarks.large_bodies", kind, str(port)]
    settings = {"EVENKEEL_DATABASE_URL": f"sqlite:///{folder / 'state.sqlite'}"}
    ready = "/readyz" if kind == "evenkeel" else "/docs"
    return running(command, folder=folder, ready=ready, environment=settings, port=port)


def _burst(server: Server, requests: Requests, workplace: Workplace) -> _Found:
    before, seconds = server.processor_seconds(), workplace.seconds(3)
    found = load([server.port], requests, processes=1, connections=2, seconds=seconds)
    if found.fault:
        raise RuntimeError(found.fault)
    batches = found.images / COUNT * (RAMP + seconds)
    return _Found(found.images, (server.processor_seconds() - before) / batches)


class _Instant(FakeModel):
    """A model that has its answers ready."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__()
        self.manifest = manifest
        self._logits = np.random.default_rng(0).normal(size=(COUNT, CLASSES)).astype(np.float32)

    def branches(self, images: NDArray[np.uint8]) -> Branches:
        logits = self._logits[: len(images)]
        return Branches(logits, logits, np.ones((len(images), 2), np.float32))


def _evenkeel() -> FastAPI:
    return_large_blocks()  # as `service serve` does
    classes = [ClassInfo.of(f"class {index}", 100) for index in range(CLASSES)]
    return create_app(Settings(), _Instant(make_manifest(classes=classes, input=SPEC)))


def _fastapi() -> FastAPI:
    app = FastAPI()
    logits = np.zeros((COUNT, CLASSES), np.float32).tobytes()

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        images = np.frombuffer(await request.body(), np.uint8).reshape(-1, SIDE, SIDE, 3)
        return Response(logits[: len(images) * CLASSES * 4])

    return app


if __name__ == "__main__":
    kind, port = sys.argv[1:]
    app, protocol = (_evenkeel(), Connection) if kind == "evenkeel" else (_fastapi(), "auto")
    uvicorn.run(app, port=int(port), http=protocol, access_log=False, log_level="warning")
