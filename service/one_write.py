"""uvicorn's HTTP protocol, but the head and the body of an answer leave in one write instead of two.

For a small answer the second system call, and the second packet that wakes the client for nothing, cost as much as the
answer's JSON. It knows nothing of what is answered.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD = b"HTTP/1."


class OneWriteProtocol(HttpToolsProtocol):
    """Gives uvicorn a transport that waits with the head for the body."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(_Corked(transport, self.loop))  # type: ignore[arg-type]


class _Corked:
    """A transport that holds a head back until what follows it, at the latest until the loop's next turn."""

    __slots__ = ("_head", "_loop", "_transport", "_write")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._write, self._loop = transport, transport.write, loop
        self._head: bytes | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever else a transport can do
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, or hold back if it is a head."""
        head, self._head = self._head, None
        if head is not None:
            self._transport.writelines((head, data))
        elif data.startswith(_HEAD):
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            self._write(data)

    def close(self) -> None:
        """Write what is held back, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        head, self._head = self._head, None
        if head is not None:
            self._write(head)
