"""What a connection may cost, and what HTTP asks of it, over a real socket; when the app answers, the test says."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.app import create_app
from service.connections import MOST_AHEAD, Connection
from service.routes.context import Service
from service.settings import Settings
from tests.service.fakes import FakeModel

GET = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Served:
    """A server whose app waits for `open` and then tells the path and the body that it was asked with."""

    server: uvicorn.Server = field(init=False)
    port: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    service: Service = field(default_factory=lambda: create_app(Settings(), FakeModel()).service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.open.wait()
        self.headers += scope["headers"]
        body, more = b"", scope["method"] == "POST"
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        told = json.dumps([scope["path"], body.decode()]).encode() + b"\n"
        headers = [(b"content-length", b"%d" % len(told))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": told})

    async def ask(self, *requests: bytes) -> bytes:
        """Send the requests at once, and one more that ends the connection; return all that came."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"".join(requests) + b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        try:
            return await asyncio.wait_for(reader.read(-1), 60)
        finally:
            writer.close()

    def connection(self) -> Connection:
        (connection,) = self.server.server_state.connections
        assert isinstance(connection, Connection)
        return connection


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served, listening = Served(), socket.create_server(("127.0.0.1", 0))
    served.server = uvicorn.Server(
        uvicorn.Config(served, http=Connection, lifespan="off", log_config=None, ws="none", proxy_headers=False)
    )
    served.port = listening.getsockname()[1]
    task = asyncio.create_task(served.server.serve([listening]))
    while not served.server.started:  # noqa: ASYNC110 - it tells by this alone
        await asyncio.sleep(0.01)
    yield served
    served.open.set()
    served.server.should_exit = True
    await task


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of what the parser was given."""
    lengths, take = [], Connection._take

    def counted(connection: Connection, data: bytes) -> None:
        lengths.append(len(data))
        take(connection, data)

    monkeypatch.setattr(Connection, "_take", counted)
    return lengths


def told(answers: bytes) -> list[list[str]]:
    return [json.loads(line) for line in answers.splitlines() if line.startswith(b"[")]


async def test_requests_sent_ahead_wait_outside_and_all_are_answered_in_order(served: Served) -> None:
    count = 20_000
    asking = asyncio.create_task(served.ask(*(GET % number for number in range(count))))
    await asyncio.sleep(0.3)
    connection = served.connection()
    assert MOST_AHEAD <= len(connection.pipeline) < 10 * MOST_AHEAD
    served.open.set()
    assert [path for path, _ in told(await asking)] == [*(f"/{number}" for number in range(count)), "/last"]


async def test_bodies_of_requests_sent_ahead_arrive_whole(served: Served) -> None:
    bodies = [str(number).encode() * 900 for number in range(100)]
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    served.open.set()
    answers = await served.ask(*(head % len(body) + body for body in bodies))
    assert [body.encode() for _, body in told(answers)] == [*bodies, b""]


async def test_a_long_body_is_parsed_as_it_comes_and_what_follows_it_is_not_lost(
    served: Served, parsed: list[int]
) -> None:
    served.open.set()
    length = 2**20
    post = b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (0, length) + b"a" * length
    answers = await served.ask(post, *(GET % number for number in range(1, 2 * MOST_AHEAD)))
    told = [json.loads(line) for line in answers.splitlines() if line.startswith(b"[")]
    assert told[0] == ["/0", "a" * length]
    assert [path for path, _ in told[1:]] == [*(f"/{number}" for number in range(1, 2 * MOST_AHEAD)), "/last"]
    assert len(parsed) < length / 4096 / 2


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0"])
@pytest.mark.parametrize(
    "body", [b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]
)
async def test_an_upgrade_is_passed_over_and_nothing_of_the_request_lost(
    served: Served, protocol: bytes, body: bytes
) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + protocol + b"\r\nHTTP2-Settings: AAEAAEAAAAIA\r\n"
    served.open.set()
    answers = await served.ask(*[b"POST /a HTTP/1.1\r\nHost: x\r\n" + upgrade + body] * 3)
    assert told(answers) == [["/a", "abc"]] * 3 + [["/last", ""]]


async def test_an_upgrade_of_a_request_without_a_body_is_passed_over(served: Served) -> None:
    served.open.set()
    answers = await served.ask(b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert told(answers) == [["/a", ""], ["/last", ""]]


@pytest.mark.parametrize(
    "name",
    ["Authorization", "Content-Type", "Content-Encoding", "Inference-Header-Content-Length", "X-Request-Timeout"],
)
async def test_of_a_header_that_says_one_thing_there_is_one_at_most(served: Served, name: str) -> None:
    served.open.set()
    header = f"{name}: 1\r\n".encode()
    once = b"GET /a HTTP/1.1\r\nHost: x\r\nX-Other: 1\r\nX-Other: 2\r\n" + header + b"\r\n"
    twice = once.replace(header, header + b"X-Another: 1\r\n" + header.lower())
    assert b"HTTP/1.1 200 " in (await served.ask(once))[:20]
    answer = await served.ask(twice)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert f'"message":"The header {name} is given more than once.","field":"{name}"'.encode() in answer


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n"])
async def test_a_request_that_does_not_name_one_host_is_refused(served: Served, hosts: bytes) -> None:
    served.open.set()
    answer = await served.ask(b"GET /a HTTP/1.1\r\n" + hosts + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"field":"Host"' in answer


async def test_an_old_request_needs_no_host(served: Served) -> None:
    served.open.set()
    assert told(await served.ask(b"GET /a HTTP/1.0\r\n\r\n")) == [["/a", ""]]


async def test_an_old_request_that_expects_to_be_told_to_go_on_is_told_nothing(served: Served) -> None:
    served.open.set()
    answer = await served.ask(b"POST /a HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi")
    assert b"100 Continue" not in answer
    assert told(answer) == [["/a", "hi"]]


async def test_a_trailer_is_no_header(served: Served) -> None:
    chunked = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n"
    served.open.set()
    answers = await served.ask(*[chunked + b"Authorization: Bearer x\r\nX-Request-ID: a\r\n\r\n"] * 2)
    assert told(answers) == [["/a", "hi"]] * 2 + [["/last", ""]]
    assert {name for name, _ in served.headers} == {b"host", b"transfer-encoding", b"connection"}


async def test_space_behind_a_headers_value_is_none_of_it(served: Served) -> None:
    served.open.set()
    post = b"POST /a HTTP/1.1\r\nHost: x\t \r\nContent-Length: 2 \r\nExpect: 100-continue \r\n\r\n"
    answer = await served.ask(post + b"hi")
    assert answer.startswith(b"HTTP/1.1 100 ")
    assert told(answer)[0] == ["/a", "hi"]
    assert (b"host", b"x") in served.headers


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"gzip\r\nTransfer-Encoding: chunked", b"identity, chunked"])
async def test_a_coding_that_is_not_understood_is_refused(served: Served, coding: bytes) -> None:
    served.open.set()
    answers = await served.ask(b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: %b\r\n\r\n0\r\n\r\n" % coding)
    assert answers.startswith(b"HTTP/1.1 501 ")
    assert answers.count(b"HTTP/1.1 ") == 1
    assert json.loads(answers.splitlines()[-1])["field"] == "Transfer-Encoding"


POST = b"POST /%d HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
BROKEN = {
    "rubbish": (b"\0\1rubbish\r\n\r\n", 400),
    "chunk": (POST % 9 + b"ZZ\r\n", 400),
    "head": (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 80_000, 431),
    "trailer": (POST % 9 + b"0\r\nA: " + b"a" * 80_000, 431),
}


@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("broken", BROKEN)
async def test_what_is_broken_is_refused_once_the_requests_before_it_are_answered(
    served: Served, broken: str, before: int
) -> None:
    sent, status = BROKEN[broken]
    requests = [GET % number for number in range(before)]
    asking = asyncio.create_task(served.ask(*requests, sent))
    await asyncio.sleep(0.1)
    assert asking.done() == (before == 0)
    served.open.set()
    answers = await asking
    assert [path for path, _ in told(answers)] == [f"/{number}" for number in range(before)]
    assert answers.count(b"HTTP/1.1 ") == before + 1
    assert b"HTTP/1.1 %d " % status in answers
    assert json.loads(answers.splitlines()[-1])["code"] == {400: "invalid_request", 431: "head_too_large"}[status]


async def test_a_body_that_breaks_later_is_refused_and_its_request_is_told_that_its_client_left(served: Served) -> None:
    served.open.set()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    for data in (GET % 1, POST % 2 + b"1\r\na\r\n", b"ZZ\r\n"):
        writer.write(data)
        await asyncio.sleep(0.05)
    answers = await asyncio.wait_for(reader.read(-1), 10)
    assert told(answers) == [["/1", ""]]
    assert answers.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 400 " in answers
    writer.close()


async def test_who_takes_nothing_of_a_whole_answer_is_cut_off(served: Served) -> None:
    served.open.set()
    size = 8_000_000  # more than the system takes of an answer that nobody reads
    _reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1)
    try:
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"a" * size)
        await writer.drain()
        async with asyncio.timeout(10):
            while not served.server.server_state.total_requests:  # noqa: ASYNC110 - it tells by this alone
                await asyncio.sleep(0.01)
            connection = served.connection()
            assert connection.transport.get_write_buffer_size()
            for seconds in (0, 9, 11):
                assert not connection.transport.is_closing()
                connection.look(seconds, 10)
            while served.server.server_state.connections:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
    finally:
        writer.close()


async def test_an_idle_connection_is_closed_without_a_word(served: Served) -> None:
    served.open.set()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(GET % 1)
    await reader.readuntil(b"\n[")
    await reader.readline()
    connection = served.connection()
    for seconds in (0, 4, 6):
        assert not connection.transport.is_closing()
        connection.look(seconds, 10)
    assert await asyncio.wait_for(reader.read(-1), 10) == b""
    writer.close()


PUT = b"PUT /%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
"""What the app answers before its body has come."""


async def answered_early(served: Served, length: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    served.open.set()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(PUT % (1, length))
    assert told(await reader.readuntil(b"]\n")) == [["/1", ""]]
    return reader, writer


async def taken(connection: Connection, left: int) -> None:
    """Wait until no more than so much of a body is left to come."""
    async with asyncio.timeout(10):
        while connection._body_left > left:  # noqa: ASYNC110 - it tells by this alone
            await asyncio.sleep(0.01)


async def closes_quietly(served: Served, reader: asyncio.StreamReader, at: tuple[int, ...]) -> None:
    """Look at the connection at these seconds: it is open until the last of them, and closes with nothing said."""
    connection = served.connection()
    for seconds in at:
        assert not connection.transport.is_closing()
        connection.look(seconds, 10)
    assert await asyncio.wait_for(reader.read(-1), 10) == b""
    assert not served.service.metrics.registry.get_sample_value("evenkeel_errors_total", {"code": "head_too_slow"})


async def test_a_connection_is_idle_once_the_rest_of_a_body_has_followed_its_answer(served: Served) -> None:
    reader, writer = await answered_early(served, 300_000)
    connection = served.connection()
    connection.look(0, 10)
    writer.write(b"a" * 300_000)
    await taken(connection, 0)
    await closes_quietly(served, reader, at=(1, 5, 7))
    writer.close()


async def test_what_follows_the_rest_of_a_body_is_refused_by_itself(served: Served) -> None:
    reader, writer = await answered_early(served, 5)
    writer.write(b"abcde" + b"GET /2 HTTP/1.1\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(-1), 10)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"field":"Host"' in answer
    writer.close()


async def test_an_empty_line_behind_an_answer_is_no_head(served: Served) -> None:
    reader, writer = await answered_early(served, 0)
    connection = served.connection()
    connection.look(0, 10)
    writer.write(b"\r\n")
    await asyncio.sleep(0.05)
    connection.look(6, 10)
    assert await asyncio.wait_for(reader.read(-1), 10) == b""
    writer.close()


async def test_the_rest_of_a_body_is_waited_for_after_its_answer_as_long_as_for_a_head(served: Served) -> None:
    reader, writer = await answered_early(served, 300_000)
    connection = served.connection()
    connection.look(0, 10)
    writer.write(b"a" * 1000)
    await taken(connection, 299_000)
    await closes_quietly(served, reader, at=(9, 11))
    writer.close()


async def test_half_a_head_that_came_before_an_answer_is_waited_for_as_any_other(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(GET % 1 + b"GET /2 HT")
    await asyncio.sleep(0.05)
    served.open.set()
    await reader.readuntil(b"]\n")
    connection = served.connection()
    for seconds in (0, 9, 11):
        assert not connection.transport.is_closing()
        connection.look(seconds, 10)
    assert (await asyncio.wait_for(reader.read(-1), 10)).startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_while_the_service_ends_each_answer_ends_its_connection(served: Served) -> None:
    served.open.set()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(GET % 1)
    assert b"connection: close" not in await reader.readuntil(b"]\n")
    served.service.readiness.end()
    writer.write(GET % 2)
    answer = await asyncio.wait_for(reader.read(-1), 10)
    assert b"connection: close\r\n" in answer
    assert told(answer) == [["/2", ""]]
    writer.close()
