"""What a request was made of goes with its answer: nothing of it waits until garbage is looked for."""

import asyncio
import gc
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray

from service.app import create_app
from service.body_in_place import BodyInPlace
from service.connections import Connection
from service.errors import ClientLeft, InvalidBody, InvalidImage, InvalidParameter
from service.scoring import Branches
from service.settings import Settings
from tests.service.fakes import FakeModel, picture

BODY = picture(1)
REQUEST = (
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
)


async def answered(port: int, times: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(times):
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length: "))
        await reader.readexactly(int(length.split()[1]))
    writer.close()


class SlowModel(FakeModel):
    """Takes 20 ms."""

    def branches(self, images: NDArray[np.uint8]) -> Branches:
        time.sleep(0.02)
        return super().branches(images)


@asynccontextmanager
async def serving(model: FakeModel) -> AsyncIterator[int]:
    """Serve the model, yield the port after three answers, and look for no garbage from then on."""
    app, listening = create_app(Settings(), model), socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=Connection, log_config=None, ws="none", access_log=False))
    task = asyncio.create_task(server.serve([listening]))
    while not server.started:  # noqa: ASYNC110 - it tells by this alone
        await asyncio.sleep(0.01)
    port = listening.getsockname()[1]
    await answered(port, 3)
    gc.collect()
    gc.disable()
    try:
        yield port
    finally:
        gc.enable()
        server.should_exit = True
        await task


async def test_predictions_leave_no_garbage() -> None:
    async with serving(FakeModel()) as port:
        await answered(port, 100)
        assert gc.collect() < 100, "each request leaves something"


async def test_nor_do_those_that_wait_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.batcher._LONG", 0.005)
    async with serving(SlowModel()) as port:
        await answered(port, 20)
        assert gc.collect() < 100, "each request leaves something"


async def test_a_connection_goes_when_it_ends() -> None:
    async with serving(FakeModel()) as port:
        for _ in range(30):
            await answered(port, 1)
        await asyncio.sleep(0.1)
        kept = [thing for thing in gc.get_objects() if type(thing) is Connection]
        assert len(kept) < 5  # the server looks at all of them each second, and remembers what it saw


async def test_what_a_client_that_leaves_asked_for_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.batcher._LONG", 0.005)
    model = FakeModel()
    async with serving(model) as port:
        model.gate.clear()
        for _ in range(5):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(REQUEST)
            await asyncio.sleep(0.03)
            writer.close()
        await asyncio.sleep(0.1)
        model.gate.set()
        await asyncio.sleep(0.1)
        assert not [thing for thing in gc.get_objects() if type(thing) is ClientLeft]


async def test_a_connection_goes_that_ends_before_the_first_of_several_answers() -> None:
    model = FakeModel()
    async with serving(model) as port:
        model.gate.clear()
        for _ in range(10):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(3 * REQUEST)
            await asyncio.sleep(0.02)
            writer.transport.abort()
        await asyncio.sleep(0.05)
        model.gate.set()
        await asyncio.sleep(0.2)
        kept = [thing for thing in gc.get_objects() if type(thing) is Connection]
        assert len(kept) < 5  # as above


def refusals() -> list[object]:
    return [thing for thing in gc.get_objects() if type(thing) in {InvalidBody, InvalidParameter, InvalidImage}]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"images": 1}',
        b'{"images": [{"data": "AAA"}]}',
        b'{"images": [{"data": "AAAA"}]}',
        b'{"images": [{"data": "%b"}]}' % (b"A" * 100_001),
    ],
)
async def test_a_body_that_is_refused_goes_with_its_answer(body: bytes) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    async with serving(FakeModel()) as port:
        before = len(refusals())  # of tests before
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(5):
            writer.write(head % len(body) + body)
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 4")
        writer.close()
        await asyncio.sleep(0.05)  # a thread may still be at letting go of it
        assert len(refusals()) == before


def read_in_place() -> int:
    return sum(type(thing) is BodyInPlace for thing in gc.get_objects())


@pytest.mark.parametrize("sent", [1_000_000, 500_000])
async def test_a_body_that_was_read_in_place_goes_with_its_answer_or_its_client(sent: int) -> None:
    body = b"{".ljust(1_000_000)
    head = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with serving(FakeModel()) as port:
        before = read_in_place()  # of tests before
        for _ in range(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head + body[:sent])
            if sent == len(body):
                assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 4")
            else:
                await writer.drain()
                await asyncio.sleep(0.02)
            writer.close()
        await asyncio.sleep(0.1)
        assert read_in_place() == before
