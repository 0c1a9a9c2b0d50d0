"""A client that tells every outcome: what was answered, how, after how long; over real sockets, without retries."""

import asyncio
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.service.test_process import Process

PNG = {"Content-Type": "image/png"}


@dataclass(slots=True)
class Answer:
    """What came back, after how many seconds; sent when, by `time.monotonic`; status 0: nothing did."""

    status: int
    seconds: float
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    sent: float = 0.0

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(
    body: bytes = b"", *, path: str = "/predict", method: str = "POST", headers: Mapping[str, str] = PNG
) -> bytes:
    """Return the bytes of a request that ends its connection."""
    lines = {"Host": "x", "Connection": "close", "Content-Length": str(len(body)), **headers}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return head.encode() + b"\r\n" + body


def read(raw: bytes, seconds: float = 0.0, sent: float = 0.0) -> Answer:
    """Return the answer that the bytes of one connection hold."""
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    found = re.fullmatch(r"HTTP/1\.1 (\d{3}) .*", status)
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(found[1]) if found else 0, seconds, headers, body, sent)


async def send(port: int, data: bytes, *, timeout: float = 30.0) -> Answer:  # noqa: ASYNC109 - part of what is tried
    """Send the bytes over a connection of their own and return what came until it was closed."""
    begin = time.monotonic()
    raw = b""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(data)
                raw = await reader.read(-1)
            finally:
                writer.close()
    except OSError:  # TimeoutError too
        pass
    return read(raw, time.monotonic() - begin, begin)


async def leave(port: int, data: bytes, *, after: float) -> None:
    """Send the bytes and go without an answer."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    await asyncio.sleep(after)
    writer.close()
    await writer.wait_closed()


def metric(service: Process, name: str) -> float:
    """Return a sample by its name with its labels, as the service's metrics show it; 0 if they do not."""
    for line in service.get("/metrics")[1].decode().splitlines():
        if line.startswith(name + " "):
            return float(line.split()[-1])
    return 0.0
