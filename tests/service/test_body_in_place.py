"""Large bodies, read in place: by a connection on either loop, and by a real process."""

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from service.app import create_app
from service.body_in_place import BodyInPlace
from service.connections import Connection
from service.routes.context import Service
from service.routes.forms import BODY_IN_PLACE
from service.settings import Settings
from tests.service.fakes import FakeModel
from tests.service.test_process import Process, running
from tests.service.tiny_model import reference, write_tiny_bundle

LARGE = 3 * 2**20


def post(size: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size


@dataclass
class Taker:
    """An app that waits for `open`, takes each body in place where it can, and says in a word what came of it."""

    open: asyncio.Event = field(default_factory=asyncio.Event)
    patience: float = 20.0
    bodies: list[BodyInPlace | None] = field(default_factory=list)
    wholes: list[bytes | None] = field(default_factory=list)
    service: Service = field(default_factory=lambda: create_app(Settings(), FakeModel()).service)
    server: uvicorn.Server = field(init=False)
    port: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.open.wait()
        take = scope.get("extensions", {}).get(BODY_IN_PLACE, lambda: None)
        self.bodies.append(body := take())
        said = b"whole"
        if body is None:
            message = await receive()
            self.wholes.append(None if message["type"] == "http.disconnect" else message["body"])
        else:
            try:
                whole = await asyncio.wait_for(body.whole, self.patience)
                self.wholes.append(None if whole is None else bytes(whole))
                await asyncio.wait_for(receive(), 0.02)  # only if the client has left
                said = b"empty"
            except TimeoutError:
                said = b"whole" if body.whole.done() and not body.whole.cancelled() else b"given up"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
        await send({"type": "http.response.body", "body": said})

    def connection(self) -> Connection:
        (connection,) = self.server.server_state.connections
        assert isinstance(connection, Connection)
        return connection

    async def until(self, come: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not come():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Taker, asyncio.StreamReader, asyncio.StreamWriter]]:
    taker, listening = Taker(), socket.create_server(("127.0.0.1", 0))
    taker.server = uvicorn.Server(uvicorn.Config(taker, http=Connection, lifespan="off", log_config=None, ws="none"))
    task = asyncio.create_task(taker.server.serve([listening]))
    await taker.until(lambda: taker.server.started)
    reader, writer = await asyncio.open_connection("127.0.0.1", listening.getsockname()[1])
    await taker.until(lambda: bool(taker.server.server_state.connections))
    yield taker, reader, writer
    taker.open.set()
    writer.close()
    taker.server.should_exit = True
    await task


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    assert head.startswith(b"HTTP/1.1 200 ")
    return await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0]))


def test_the_parser_sees_no_more_of_it_than_the_beginning(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed, take = [], Connection._take

    def counted(connection: Connection, data: bytes) -> None:
        parsed.append(len(data))
        take(connection, data)

    async def scenario() -> None:
        one, other = (np.random.default_rng(seed).bytes(LARGE) for seed in range(2))
        async with serving() as (taker, reader, writer):
            taker.open.set()
            writer.write(post(LARGE) + one + post(5) + b"small" + post(LARGE) + other)
            assert [await answer(reader) for _ in range(3)] == [b"whole"] * 3
            assert taker.wholes == [one, b"small", other]
            assert [body is not None for body in taker.bodies] == [True, False, True]
        assert sum(parsed) < LARGE

    monkeypatch.setattr(Connection, "_take", counted)
    runner.run(scenario())


def test_who_asks_first_is_told_to_go_on_and_never_again(runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        async with serving() as (taker, reader, writer):
            taker.open.set()
            writer.write(post(LARGE).replace(b"Host", b"Expect: 100-continue\r\nHost"))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            writer.write(b"a" * LARGE)
            assert await answer(reader) == b"whole"
            assert taker.bodies[0] is not None

    runner.run(scenario())


def test_one_that_is_given_up_is_dropped_and_what_follows_it_is_answered(runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        async with serving() as (taker, reader, writer):
            taker.open.set()
            taker.patience = 0.05
            writer.write(post(LARGE) + b"a" * (LARGE // 2))
            assert await answer(reader) == b"given up"
            (body,) = taker.bodies
            assert body
            assert len(body._memory) < LARGE // 10
            taker.patience = 20
            writer.write(b"a" * (LARGE // 2) + post(LARGE) + b"b" * LARGE)
            assert await answer(reader) == b"whole"
            assert taker.wholes == [b"b" * LARGE]

    runner.run(scenario())


def test_of_one_whose_client_leaves_there_is_nothing(runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        async with serving() as (taker, _, writer):
            taker.open.set()
            writer.write(post(LARGE) + b"a" * (LARGE // 2))
            await taker.until(lambda: bool(taker.bodies) and taker.bodies[0].count >= LARGE // 2)  # type: ignore[union-attr]
            writer.transport.abort()
            await taker.until(lambda: taker.wholes == [None])

    runner.run(scenario())


def test_one_whose_client_has_left_before_is_not_waited_for(runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        async with serving() as (taker, _, writer):
            writer.write(post(LARGE) + b"a" * 1000)
            await taker.until(lambda: taker.connection()._body_left == LARGE - 1000)
            writer.transport.abort()
            await taker.until(lambda: not taker.server.server_state.connections)
            taker.open.set()
            await taker.until(lambda: taker.wholes == [None])
            assert taker.bodies == [None]

    runner.run(scenario())


def test_no_request_takes_the_body_of_the_one_behind_it(runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        async with serving() as (taker, reader, writer):
            taker.connection().data_received(post(300_000) + b"a" * 300_000 + post(LARGE))
            taker.open.set()
            writer.write(b"b" * LARGE)
            assert [await answer(reader) for _ in range(2)] == [b"whole"] * 2
            assert taker.wholes == [b"a" * 300_000, b"b" * LARGE]

    runner.run(scenario())


def test_where_memory_lacks_for_all_of_it_it_comes_in_parts(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: object) -> None:
        raise MemoryError

    async def scenario() -> None:
        async with serving() as (taker, reader, writer):
            taker.open.set()
            writer.write(post(LARGE) + b"a" * LARGE)
            await answer(reader)
            assert taker.bodies == [None]
            assert taker.wholes[0]
            assert set(taker.wholes[0]) == {ord("a")}

    monkeypatch.setattr("service.body_in_place.np.empty", lacking)
    runner.run(scenario())


# A real process.

COUNT = 4096
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("large")
    bundle = write_tiny_bundle(folder / "tiny").path
    settings = {
        "request_timeout": "2",
        "database_url": f"sqlite:///{folder}/state.sqlite",
        "max_images_per_request": f"{COUNT}",
        "max_queue_size": f"{COUNT}",
    }
    with running(bundle, folder / "log", **settings) as one:
        yield one


def request(pixels: np.ndarray[Any, Any], *headers: str, size: int = 0) -> tuple[bytes, bytes]:
    """Return head and body of an inference request whose JSON has so many bytes, or as few as it can have."""
    parameters = {"binary_data_size": pixels.nbytes}
    image = {"name": "image", "datatype": "UINT8", "shape": pixels.shape, "parameters": parameters}
    output = {"name": "logits", "parameters": {"binary_data": True}}
    asked = {"inputs": [image], "outputs": [output], "parameters": {"alpha": 1.5, "prior_strength": 0.5}}
    message = json.dumps(asked).encode().ljust(size)
    lines = [
        *("POST /v2/models/tiny/infer HTTP/1.1", "Host: x", f"Inference-Header-Content-Length: {len(message)}"),
        *(f"Content-Length: {len(message) + pixels.nbytes}", *headers, "", ""),
    ]
    return "\r\n".join(lines).encode(), message + pixels.tobytes()


def logits(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    knobs = np.full(len(pixels), 1.5), np.full(len(pixels), 0.5)
    return reference(pixels, *knobs)["logits"]


class Talk:
    """A connection to the service."""

    def __init__(self, service: Process) -> None:
        self.socket = socket.create_connection(("127.0.0.1", service.port), timeout=20)
        self.answers = self.socket.makefile("rb")

    def __enter__(self) -> "Talk":
        return self

    def __exit__(self, *_: object) -> None:
        self.answers.close()
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def hear(self) -> tuple[int, bytes]:
        """Return status and body of the next answer."""
        head: list[bytes] = []
        while not head or head[-1] != b"\r\n":
            head.append(self.answers.readline())
            assert head[-1], "the connection has ended"
        length = next((int(line.split(b":")[1]) for line in head if line.lower().startswith(b"content-length:")), 0)
        return int(head[0].split()[1]), self.answers.read(length)

    def hear_logits(self, pixels: np.ndarray[Any, Any]) -> None:
        """Take the next answer, which must be right to the last picture."""
        status, body = self.hear()
        assert status == 200, body
        found = np.frombuffer(body[-len(pixels) * 5 * 4 :], "<f4").reshape(-1, 5)
        np.testing.assert_allclose(found, logits(pixels), atol=1e-4)


def test_large_requests_and_those_between_them_are_answered(service: Process) -> None:
    few = PIXELS[5:8]
    with Talk(service) as talk:
        talk.send(*request(PIXELS), *request(few), *request(few, size=1_000_000), *request(PIXELS[::-1]))
        for pixels in (PIXELS, few, few, PIXELS[::-1]):
            talk.hear_logits(pixels)


def test_a_body_that_stops_is_refused_and_the_connection_goes_on_behind_it(service: Process) -> None:
    head, body = request(PIXELS)
    with Talk(service) as talk:
        talk.send(head, body[: len(body) // 2])
        status, said = talk.hear()
        assert (status, json.loads(said)["code"], json.loads(said)["value"]) == (408, "body_too_slow", len(body) // 2)
        talk.send(body[len(body) // 2 :], *request(PIXELS))
        talk.hear_logits(PIXELS)


def test_a_body_that_is_never_ended_ends_its_connection(service: Process) -> None:
    head, body = request(PIXELS)
    with Talk(service) as talk:
        talk.send(head, body[:-1])
        assert talk.hear()[0] == 408
        assert talk.answers.read() == b""  # within the socket's timeout


def test_who_leaves_within_a_body_is_counted_and_no_one_else_notices(service: Process) -> None:
    head, body = request(PIXELS)
    line = b'evenkeel_errors_total{code="client_left"} 1.0'
    assert line not in service.get("/metrics")[1]
    with Talk(service) as stays:
        stays.send(head, body[: len(body) // 2])
        with Talk(service) as leaves:
            leaves.send(head, body[: len(body) // 2])
            time.sleep(0.1)
        stays.send(body[len(body) // 2 :])
        stays.hear_logits(PIXELS)
    assert line in service.get("/metrics")[1]


def test_one_that_states_too_many_bytes_is_refused_before_they_come(service: Process) -> None:
    head, _ = request(PIXELS[:1], size=30 << 20)
    with Talk(service) as talk:
        talk.send(head)
        status, said = talk.hear()
        assert (status, json.loads(said)["code"], json.loads(said)["field"]) == (
            413,
            "body_too_large",
            "Content-Length",
        )


def test_a_connection_does_not_keep_a_body_that_was_answered(service: Process) -> None:
    def resident() -> float:
        pages = int(Path(f"/proc/{service.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    talks = [Talk(service) for _ in range(40)]
    before = resident()
    for talk in talks:
        talk.send(*request(PIXELS[:1], size=4 << 20))
        talk.hear_logits(PIXELS[:1])
    assert resident() - before < 64  # MiB: a few of forty bodies of 4
    for talk in talks:
        talk.send(*request(PIXELS[:1]))
        talk.hear_logits(PIXELS[:1])
        talk.__exit__()
