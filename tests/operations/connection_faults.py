"""Faults of how a request comes: too slowly, for ever, in part, not as HTTP; and of how its answer is taken."""

import asyncio
import socket
from contextlib import suppress

from tests.operations.client import PNG, Answer, read, request, send
from tests.operations.fault import CUT, Try, fault
from tests.service.fakes import picture

HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
LONGEST = 20.0
"""Seconds until a connection counts as never ended, which no fault expects."""


async def drip(port: int, first: bytes, piece: bytes, *, every: float, most: int = 1000) -> str:
    """Send the first bytes, then a piece every so often until the service has enough; return what it said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.create_task(_until_closed(reader))
    begin = asyncio.get_running_loop().time()
    with suppress(OSError):
        writer.write(first)
        while not answer.done() and most and asyncio.get_running_loop().time() - begin < LONGEST:
            await writer.drain()
            await asyncio.sleep(every)
            writer.write(piece)
            most -= 1
    return await _outcome(answer, writer)


async def _until_closed(reader: asyncio.StreamReader) -> bytes:
    raw = b""
    with suppress(OSError):
        while part := await reader.read(65_536):
            raw += part
    return raw


async def _outcome(answer: "asyncio.Task[bytes]", writer: asyncio.StreamWriter) -> str:
    try:
        return told(read(await asyncio.wait_for(answer, LONGEST)))
    except TimeoutError:
        return "never ended"
    finally:
        writer.close()


def told(answer: Answer) -> str:
    return str(answer.status) if answer.status else CUT


@fault("heads that come a byte at a time", "408")
async def slow_heads(tried: Try) -> str:
    return await drip(tried.port, b"POST /pre", b"d", every=0.2)


@fault("connections that say nothing", "408")
async def silence(tried: Try) -> str:
    return await drip(tried.port, b"", b"", every=0.2)


@fault("empty lines for ever", "408")
async def empty_lines(tried: Try) -> str:
    return await drip(tried.port, b"", b"\r\n", every=0.2)


@fault("heads without end", "431", CUT)  # cut off: who goes on sending may not see the answer
async def endless_heads(tried: Try) -> str:
    kinds = (b"X: " + b"a" * 8000 + b"\r\n", b"a" * 8000, b"X: a\r\n" * 1000)
    first = tried.chance.choice((b"GET /", HEAD, HEAD + b"X: "))
    return await drip(tried.port, first, tried.chance.choice(kinds) if first != b"GET /" else b"a" * 8000, every=0.0)


@fault("bodies that come a byte at a time", "408")
async def slow_bodies(tried: Try) -> str:
    return await drip(tried.port, HEAD + b"Content-Length: 5000\r\n\r\n", b"a", every=0.2)


@fault("bodies that stop", "408")
async def unfinished_bodies(tried: Try) -> str:
    first = tried.chance.choice((b"Content-Length: 5000\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc"))
    return await drip(tried.port, HEAD + first, b"", every=0.2)


@fault("bodies that go on after a refusal", "413")
async def refused_bodies(tried: Try) -> str:
    first = tried.chance.choice(
        (b"Content-Length: 999999999\r\n\r\n", b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
    )
    return await drip(tried.port, HEAD + first, b"a" * 100, every=0.2)


@fault("chunks, extensions and trailers without end", CUT, "400", "408", "413", "431")
async def endless_chunks(tried: Try) -> str:
    piece = tried.chance.choice((b"X: " + b"a" * 5000 + b"\r\n", b"a" * 5000, b"1;" + b"a" * 9 + b"\r\na\r\n"))
    ending = b"0\r\n" if piece.startswith(b"X") else b"1;" if piece.startswith(b"a") else b""
    return await drip(tried.port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + ending, piece, every=0.001)


@fault("what is no HTTP, or a method that is not served", "400", "405")
async def no_http(tried: Try) -> str:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
    sent = [hello, b"\0" * 100, b"GET\r\n\r\n", b"hello\r\n\r\n", b"CONNECT / HTTP/1.1\r\nHost: x\r\n\r\n"]
    sent += [
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    return told(await send(tried.port, tried.chance.choice(sent)))


@fault("lengths that lie or contradict each other", "400", "408")
async def lying_lengths(tried: Try) -> str:
    lengths = [b"Content-Length: -1", b"Content-Length: 1e3", b"Content-Length: 5\r\nContent-Length: 6"]
    lengths += [b"Content-Length: 99999999999999999999999", b"Content-Length: 5\r\nTransfer-Encoding: chunked"]
    lengths += [b"Transfer-Encoding: chunked, x", b"Content-Length: 100"]
    return told(await send(tried.port, HEAD + tried.chance.choice(lengths) + b"\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"))


@fault("rubbish behind a whole request", "200, then 400", "200, then 431")
async def rubbish_behind(tried: Try) -> str:
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    rubbish = (b"\0rubbish\r\n\r\n", chunked + b"ZZ\r\n", chunked + b"0\r\nA: " + b"a" * 80_000, HEAD + b"a" * 80_000)
    first = request(picture(), headers={**PNG, "Connection": "keep-alive"})
    answer = await send(tried.port, first + tried.chance.choice(rubbish))
    refusal = read(answer.body[answer.body.find(b"HTTP/1.1") :])
    return f"{told(answer)}, then {told(refusal)}"


@fault("upgrades to what is not spoken", "405")
async def upgrades(tried: Try) -> str:
    headers = {"Connection": "Upgrade, close", "Upgrade": tried.chance.choice(("websocket", "h2c", "TLS/1.0"))}
    return told(await send(tried.port, request(path="/predict", method="GET", headers=headers)))


@fault("half-closed connections", "200", CUT)
async def half_closed(tried: Try) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", tried.port)
    data = request(picture())
    writer.write(data[: tried.chance.choice((0, 10, 80, len(data) - 1, len(data)))])
    writer.write_eof()
    return await _outcome(asyncio.create_task(_until_closed(reader)), writer)


@fault("clients that leave at any byte", CUT)
async def leaving(tried: Try) -> str:
    _, writer = await asyncio.open_connection("127.0.0.1", tried.port)
    data = request(picture())
    writer.write(data[: tried.chance.randrange(len(data) + 1)])
    with suppress(OSError):
        await writer.drain()
    await asyncio.sleep(tried.chance.choice((0.0, 0.001, 0.01)))
    if tried.chance.random() < 0.5:
        writer.transport.abort()
    writer.close()
    return CUT


@fault("readers that take nothing of their answers", CUT)
async def stalling_readers(tried: Try) -> str:
    """Ask for much, take nothing for a while, and then see whether the service went on waiting."""
    loop, asked = asyncio.get_running_loop(), 400
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", tried.port))
        question = request(path="/openapi.json", method="GET", headers={"Connection": "keep-alive"})
        sending = asyncio.create_task(loop.sock_sendall(client, question * asked))
        await asyncio.sleep(5.5)
        raw = b""
        with suppress(OSError):
            async with asyncio.timeout(LONGEST):
                while part := await loop.sock_recv(client, 65_536):
                    raw += part
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        return CUT if raw.count(b"HTTP/1.1 200") < asked else "waited for"


@fault("requests without end whose answers nobody takes", "cut off after what buffers hold")
async def endless_requests(tried: Try) -> str:
    """Send small requests one behind the other until cut off; see how much was taken of them."""
    loop, sent, most = asyncio.get_running_loop(), 0, 40 << 20  # buffers of the system take some megabytes
    questions = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 2000  # long answers, which soon fill what there is
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", tried.port))
        try:
            async with asyncio.timeout(3 * LONGEST):  # answers are made until they fill the buffers
                while sent < most:
                    await loop.sock_sendall(client, questions)
                    sent += len(questions)
        except TimeoutError:
            return "never ended"
        except OSError:
            return "cut off after what buffers hold"
    return "taken"


FAULTS = [
    slow_heads,
    silence,
    empty_lines,
    endless_heads,
    slow_bodies,
    unfinished_bodies,
    refused_bodies,
    endless_chunks,
    no_http,
    lying_lengths,
    rubbish_behind,
    upgrades,
    half_closed,
    leaving,
    stalling_readers,
    endless_requests,
]
