"""uvicorn's HTTP protocol, with answers that leave in one write.

uvicorn writes the head of an answer and then its body. For a small answer the second system call, and the packet that
wakes the client for nothing, cost as much as the answer's JSON. Whoever knows the whole answer may also hand it over
whole, by the extension `WHOLE_ANSWER` of the request's scope: then nothing is left to check or to put together.

Such answers leave together, a turn of the loop later: a write that wakes a client costs several times one that meets it
awake, and who takes answers on many connections is woken once, not for each. It knows nothing of what is answered.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast
from weakref import ReferenceType, WeakKeyDictionary, ref

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
        super().connection_made(_Corked(transport, _turn_of(self.loop)))  # type: ignore[arg-type]

    def default_lines(self) -> bytes:
        """Return the headers that every answer has, as lines; they change with the second."""
        headers = self.server_state.default_headers
        if headers is not self._default_headers:
            self._default_headers = headers
            self._default_lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        return self._default_lines

    def eof_received(self) -> None:
        """Write what is held back: a client that sends no more may still read, and the transport closes after this."""
        cast(_Corked, self.transport).flush()
        super().eof_received()

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
        if cycle.flow.read_paused:
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
        whole = b"".join((STATUS_LINE[status], protocol.default_lines(), lines, b"\r\n", body))
        if len(protocol.connections) == 1:
            protocol.transport.write(whole)
        else:
            cast(_Corked, protocol.transport).write_soon(whole)
        cycle.message_event.set()
        cycle.on_response()
        return True

    return answer


class _Turn:
    """What transports hold back in one turn of a loop, until the next."""

    __slots__ = ("_holding",)

    def __init__(self) -> None:
        self._holding: list[_Corked] = []

    def add(self, transport: "_Corked") -> None:
        """Have a transport write what it holds in the next turn."""
        if not self._holding:
            asyncio.get_running_loop().call_soon(self._end)
        self._holding.append(transport)

    def _end(self) -> None:
        holding, self._holding = self._holding, []
        for each in holding:
            each.flush()


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turn] = WeakKeyDictionary()


def _turn_of(loop: asyncio.AbstractEventLoop) -> _Turn:
    return _turns.setdefault(loop, _Turn())


class _Corked:
    """A transport that holds a head back until what follows it, and whole answers, until the loop's next turn."""

    __slots__ = ("_held", "_transport", "_turn", "_write")

    def __init__(self, transport: asyncio.Transport, turn: _Turn) -> None:
        self._transport, self._write, self._turn = transport, transport.write, turn
        self._held: bytes | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever else a transport can do
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, or hold back if it is a head."""
        if self._held is None and data.startswith(_HEAD) and data.endswith(b"\r\n\r\n"):
            self.write_soon(data)
        elif self._held is None:
            self._write(data)
        else:
            held, self._held = self._held, None
            self._transport.writelines((held, data))

    def write_soon(self, data: bytes) -> None:
        """Write in the next turn, with what is held already."""
        if self._held is None:
            self._held = data
            self._turn.add(self)
        else:
            self._held += data

    def close(self) -> None:
        """Write what is held back, and close."""
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Write what is held back."""
        held, self._held = self._held, None
        if held is not None and not self._transport.is_closing():
            self._write(held)
