"""Answers over a real socket: whole, in order, and by the server's own way where the short one does not fit."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.front_door import WHOLE_ANSWER
from service.one_write import OneWriteProtocol

HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
LINES = b"".join(b"%b: %b\r\n" % header for header in HEADERS)
GET = b"GET /%b HTTP/1.1\r\nHost: x\r\n%b\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    body = scope["path"][1:6].encode()
    if scope["path"].startswith("/whole") and scope["extensions"][WHOLE_ANSWER](200, LINES, body):
        return
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    if scope["path"].startswith("/later"):
        await asyncio.sleep(0.05)
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def address() -> AsyncIterator[tuple[str, int]]:
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=OneWriteProtocol, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listening]))
    while not server.started:  # noqa: ASYNC110 - it tells by this alone
        await asyncio.sleep(0.01)
    yield listening.getsockname()
    server.should_exit = True
    await task


async def ask(address: tuple[str, int], *requests: bytes) -> list[bytes]:
    """Send all at once and return what came, in the pieces that it came in."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"".join(requests))
    pieces: list[bytes] = []
    while b"".join(pieces).count(b"\r\n\r\n") < len(requests) or pieces[-1].endswith(b"\r\n\r\n"):
        piece = await asyncio.wait_for(reader.read(65536), 5)
        if not piece:
            break
        pieces.append(piece)
    writer.close()
    return pieces


@pytest.mark.parametrize("path", [b"whole", b"other"])
async def test_head_and_body_come_in_one_piece(address: tuple[str, int], path: bytes) -> None:
    (piece,) = await ask(address, GET % (path, b""))
    head, _, body = piece.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-type: text/plain" in head
    assert b"\r\ndate: " in head
    assert body == path


async def test_a_head_does_not_wait_for_a_body_that_comes_later(address: tuple[str, int]) -> None:
    head, body = await ask(address, GET % (b"later", b""))
    assert head.endswith(b"\r\n\r\n")
    assert body == b"later"


async def test_requests_sent_together_are_answered_in_order(address: tuple[str, int]) -> None:
    answers = b"".join(await ask(address, *(GET % (path, b"") for path in (b"whole", b"later", b"whole", b"other"))))
    assert [part[:5] for part in answers.split(b"\r\n\r\n")[1:]] == [b"whole", b"later", b"whole", b"other"]


async def test_a_client_that_asks_for_it_is_told_that_the_connection_ends(address: tuple[str, int]) -> None:
    pieces = await ask(address, GET % (b"whole", b"Connection: close\r\n"))
    answer = b"".join(pieces)
    assert b"connection: close" in answer
    assert answer.endswith(b"whole")


async def test_an_answer_reaches_a_client_that_sends_no_more_while_others_are_connected(
    address: tuple[str, int],
) -> None:
    _, other = await asyncio.open_connection(*address)
    for _ in range(20):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(GET % (b"whole", b""))
        writer.write_eof()
        assert (await asyncio.wait_for(reader.read(-1), 5)).endswith(b"whole")
        writer.close()
    other.close()
