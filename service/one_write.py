"""uvicorn's HTTP protocol, with answers that leave in one write.

uvicorn writes the head of an answer and then its body. For a small answer the second system call, and the packet that
wakes the client for nothing, cost as much as the answer's JSON. Whoever knows the whole answer may also hand it over
whole, by the extension `WHOLE_ANSWER` of the request's scope: then nothing is left to check or to put together.
It knows nothing of what is answered.
"""

import asyncio
from collections.abc import Callable
from typing import Any
from weakref import ReferenceType, ref

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.front_door import WHOLE_ANSWER
from service.routes.forms import WHOLE_BODY

_HEAD = b"HTTP/1."


class OneWriteProtocol(HttpToolsProtocol):
    """Gives uvicorn a transport that waits with the head for the body, and requests a way past it."""

    _default_headers: list[tuple[bytes, bytes]] | None = None
    _default_lines = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(_Corked(transport, self.loop))  # type: ignore[arg-type]

    def default_lines(self) -> bytes:
        """Return the headers that every answer has, as lines; they change with the second."""
        headers = self.server_state.default_headers
        if headers is not self._default_headers:
            self._default_headers = headers
            self._default_lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        return self._default_lines

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection. Its last request knew it, and would keep it and itself until garbage is looked for."""
        super().connection_lost(exc)
        if self.cycle is not None:
            self.cycle.on_response = _nothing
            self.cycle.scope.pop("extensions", None)

    def on_headers_complete(self) -> None:
        """Begin a request, whose head is whole."""
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            known = ref(self.cycle)
            self.scope["extensions"] = {WHOLE_ANSWER: _whole(self, known), WHOLE_BODY: _body(known)}  # type: ignore[dict-item]


def _nothing() -> None:
    pass


# What a request's scope holds must not hold the request: such a circle, body and all, is memory that goes only when
# garbage is looked for, and the requests until then find none that is still warm in the processor's cache.


def _body(known: ReferenceType[RequestResponseCycle]) -> Callable[[], bytes | None]:
    def take() -> bytes | None:
        """Return the body if all of it has come; `receive` then waits for the client's leaving."""
        cycle = known()
        if cycle is None or cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue:
            return None
        cycle.flow.resume_reading()
        cycle.message_event.clear()
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    return take


def _whole(
    protocol: OneWriteProtocol, known: ReferenceType[RequestResponseCycle]
) -> Callable[[int, bytes, bytes], bool]:
    def answer(status: int, lines: bytes, body: bytes) -> bool:
        cycle = known()
        if cycle is None or cycle.disconnected or cycle.flow.write_paused:
            return False
        if not cycle.keep_alive or cycle.response_started or cycle.waiting_for_100_continue:
            return False
        cycle.response_started = cycle.response_complete = True
        protocol.transport.write(b"".join((STATUS_LINE[status], protocol.default_lines(), lines, b"\r\n", body)))
        cycle.message_event.set()
        cycle.on_response()
        return True

    return answer


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
        elif data.startswith(_HEAD) and data.endswith(b"\r\n\r\n"):
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
