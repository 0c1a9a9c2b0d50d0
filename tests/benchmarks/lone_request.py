"""A lone request on an idle service: what it takes beside decoding and running without a server, and what it waits.

A service that batches by a fixed delay makes the lone request wait for company that never comes. Requests go over one
connection, one at a time, with a pause between them, so that the service is idle each time.
"""

import asyncio
import http.client
import statistics
import time
from collections.abc import Sequence

from service.images import ImageDecoder
from service.model import OnnxModel
from tests.benchmarks.load import Body
from tests.benchmarks.models import HEAVY, TINY
from tests.benchmarks.pictures import jpegs, small_png
from tests.benchmarks.result import Figure, at_most
from tests.benchmarks.servers import Server, evenkeel
from tests.benchmarks.workplace import Workplace
from tests.decoding import decode

PART = "A lone request"
PAUSE = 0.01


def run(workplace: Workplace) -> list[Figure]:
    """Measure with the tiny and with the heavy model."""
    pictures = workplace.place("pictures")
    tiny = _lone("tiny model, 32x32 PNG", TINY, small_png(pictures), 1, workplace.rounds(300), workplace)
    return tiny + _lone("ResNeXt-50, JPEG", HEAVY, jpegs(pictures), None, workplace.rounds(40), workplace)


def _lone(  # noqa: PLR0917
    name: str, model: tuple[str, int], body: Body, threads: int | None, count: int, workplace: Workplace
) -> list[Figure]:
    bundle = workplace.bundle(model)
    pictures = [file.read_bytes() for file in body.files]
    alone = asyncio.run(_without_server(OnnxModel(bundle, provider="cpu", threads=threads), pictures, count))
    with evenkeel(bundle.path, workplace.place("run-lone"), threads=threads) as server:
        found = _ask(server, body.content_type, pictures, count)
    whole, queued = (statistics.median(values) * 1e3 for values in zip(*found, strict=True))
    note = f"{alone * 1e3:.2f} ms without a server: {whole - alone * 1e3:.2f} ms more"
    return [
        Figure(PART, f"seen by the client, {name}", whole, "ms", note=note),
        Figure(PART, f"of which waiting in the queue, {name}", queued, "ms", goal=at_most(0.2), note="x-queue-time"),
    ]


async def _without_server(model: OnnxModel, pictures: Sequence[bytes], count: int) -> float:
    decoder, seconds = ImageDecoder(model.manifest.input, max_pixels=40_000_000, threads=1), []
    for turn in range(count):
        await asyncio.sleep(PAUSE)
        begin = time.perf_counter()
        model.branches((await decode(decoder, pictures[turn % len(pictures)]))[None])
        seconds.append(time.perf_counter() - begin)
    decoder.close()
    return statistics.median(seconds)


def _ask(server: Server, content_type: str, pictures: Sequence[bytes], count: int) -> list[tuple[float, float]]:
    """Return of each request how long it took and how long it waited in the queue, in seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    found = []
    for turn in range(count):
        time.sleep(PAUSE)
        begin = time.perf_counter()
        connection.request("POST", "/predict", pictures[turn % len(pictures)], {"Content-Type": content_type})
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{server.url()} answered {answer.status}")
        found.append((time.perf_counter() - begin, float(answer.headers["x-queue-time"]) / 1e3))
    connection.close()
    return found
