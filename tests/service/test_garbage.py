"""What a request was made of goes with its answer: nothing of it waits until garbage is looked for."""

import asyncio
import gc
import socket

import uvicorn

from service.app import create_app
from service.connections import Connection
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


async def test_predictions_leave_no_garbage() -> None:
    app, listening = create_app(Settings(), FakeModel()), socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=Connection, log_config=None, ws="none", access_log=False))
    task = asyncio.create_task(server.serve([listening]))
    while not server.started:  # noqa: ASYNC110 - it tells by this alone
        await asyncio.sleep(0.01)
    port = listening.getsockname()[1]
    await answered(port, 3)
    gc.collect()
    gc.disable()
    try:
        await answered(port, 100)
        left = gc.collect()
    finally:
        gc.enable()
        server.should_exit = True
        await task
    assert left < 100, "each request leaves something"
