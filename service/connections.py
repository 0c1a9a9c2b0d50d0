"""What a connection may cost besides its requests: time and bytes of a head, bodies nobody wants, readers that stall.

The routes bound the time of a body and of an answer; the rest is bounded here. An idle connection is closed after as
long as the server under it (uvicorn) is set to. A head must come within the time that a request has, and within
`HEAD_BYTES`. What comes of a body after its answer is read and dropped for as long, so that the answer is not lost. A
client that takes nothing of its answer for as long is cut off. While the service ends, each answer ends its connection.
Of requests sent one behind the other a few are taken ahead, and no more is read until those are answered. What is no
HTTP gets the same form of error as everything else, once the requests before it are answered; nothing that follows it
is taken. An upgrade to another protocol is passed over.

Nothing is timed for each request: the server looks at all connections each second. It knows no route.

Source: RFC 9112 (HTTP/1.1), 3.2, 6.1, 9.3.2, 9.5 and 9.6; RFC 9110, 5.5 and 7.8; RFC 6585, 5.
"""

import asyncio
from typing import TYPE_CHECKING, cast

import httptools
import orjson
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from service import security_headers
from service.body_in_place import BodyInPlace
from service.errors import STATUS, HeadTooLarge, HeadTooSlow, InvalidRequest, ServiceError, UnsupportedCoding
from service.front_door import FrontDoor
from service.one_write import OneWriteProtocol
from service.routes.context import Service
from service.routes.forms import BODY_IN_PLACE

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

HEAD_BYTES = 65_536
"""Most bytes of a request's head, and of what else in a message is no body: trailers, sizes of chunks."""

_OVERHEAD_OF_A_BYTE = 8
"""Bytes that may come with each byte of a body: one by one in chunks they take six."""

MOST_AHEAD = 16
"""So many requests behind the one under way, and no further bytes are parsed."""

_ANOTHER_PROTOCOL = {b"upgrade", b"http2-settings"}
"""Headers that matter only to who would speak it."""

_SLICE = 4096
"""Bytes parsed at a time, save of a body whose length is known: what they hold may go beyond `MOST_AHEAD`."""

_LARGE = 262_144
"""Bytes of a body from which on the rest is read in place: what the loop reads at once."""

_ONCE = ("Authorization", "Content-Type", "Content-Encoding", "Inference-Header-Content-Length", "X-Request-Timeout")
"""Headers of which a request has one at most: of two, whoever stands before may heed the other."""

_NO_HTTP = InvalidRequest("This is no HTTP request.", remedy="Speak HTTP/1.1.")


class _Flow(FlowControl):
    """Goes on reading only when nothing that was read waits to be parsed."""

    held = b""

    def resume_reading(self) -> None:
        """Read, unless something waits."""
        if not self.held:
            super().resume_reading()


class Connection(OneWriteProtocol):
    """A client's connection."""

    _is_in_head = False  # a part of one has come
    _overhead = 0  # bytes since the last head that were no body
    _body_left = 0  # bytes of a body, as its head states its length
    _upgrades = False  # the message's head asks for another protocol
    _awaited: object = None  # what was awaited when last looked at
    _since = 0.0
    _refusal: ServiceError | None = None  # to be answered once the requests before are
    _running: RequestResponseCycle | None = None  # of requests sent one behind the other `cycle` is the last

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(transport)
        self.flow: _Flow = _Flow(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request under way that its client has left; those that wait behind it are dropped."""
        self.flow.held = b""
        self.pipeline.clear()
        if self._running is not None:
            self._running.disconnected = not self._running.response_complete
            self._running.message_event.set()
            self._running = None  # knows this, and neither would go before garbage is looked for
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: "ASGI3Application") -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        """Take what has come; hold back what lies behind more requests than are taken ahead."""
        data = self.flow.held + data if self.flow.held else data
        start = 0
        while start < len(data):
            if self._refusal is not None or (start and self.transport.is_closing()):
                break
            if len(self.pipeline) >= MOST_AHEAD:
                self.flow.held = data[start:]
                self.flow.pause_reading()
                return
            end = start + max(_SLICE, self._body_left)
            self._take(data[start:end])
            start = end
        self.flow.held = b""

    def on_response_complete(self) -> None:
        """Go on with the next request, and with what was held back once none waits.

        As uvicorn's own, but for a timer for each idle connection, which `look` does without.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._refusal is not None:
            self._end_with(self._refusal)
        if self.flow.held and not self.pipeline and not self.transport.is_closing():
            self.data_received(b"")
            self.flow.resume_reading()

    def _take(self, data: bytes) -> None:
        self._overhead += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._pass_over_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self.logger.warning("Invalid HTTP request received.")
            cause = error.__context__
            self._refuse(cause if isinstance(cause, ServiceError) else _NO_HTTP)
            return
        if self._overhead > HEAD_BYTES and not self.transport.is_closing():
            self._refuse(
                HeadTooLarge(
                    f"The request's head may have at most {HEAD_BYTES} bytes.",
                    field="headers",
                    remedy="Send fewer or shorter headers.",
                )
            )

    def _pass_over_upgrade(self, rest: bytes) -> None:
        """Parse the head again, without its wish for another protocol, and what the parser took for that protocol."""
        if not self._upgrades:  # CONNECT, which is refused: what follows is no HTTP
            self.cycle.keep_alive = False
            return
        headers = [b"%b: %b\r\n" % header for header in self.headers if header[0] not in _ANOTHER_PROTOCOL]
        first = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        self._parse_anew()
        self._take(b"".join((first, *headers, b"\r\n", rest)))

    def _parse_anew(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._is_in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; the space behind its value is none of it, which the parser leaves there.

        A trailer, which comes after chunks, is none: whoever looks at headers before us has not seen it.
        """
        if self._is_in_head:
            super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """Begin a request, whose head is whole."""
        self._overhead, self._is_in_head = 0, False
        self._upgrades = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self._upgrades:
            return
        self._body_left = self._stated_length()
        names = [name for name, _ in self.headers]
        if names.count(b"host") != 1 and self.parser.get_http_version() == "1.1":
            raise InvalidRequest("The request names no host, or several.", field="Host", remedy="Send one Host header.")
        if len(set(names)) < len(names):
            _refuse_repeated(names)
        self._refuse_codings()
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # to which that version has no answer
        super().on_headers_complete()
        if self._body_left >= _LARGE:
            self.scope["extensions"][BODY_IN_PLACE] = self._read_in_place  # type: ignore[assignment]
        if self._service.readiness.is_ending:  # else its next request meets a door that closes
            self.cycle.keep_alive = False

    def _refuse_codings(self) -> None:
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if codings and b",".join(codings).lower() != b"chunked":  # the parser reads chunks, and passes over the rest
            raise UnsupportedCoding(
                "The only transfer coding that is understood is chunked.",
                field="Transfer-Encoding",
                value=b", ".join(codings).decode("latin-1"),
                remedy="Send the body as it is, whole or in chunks.",
            )

    def _read_in_place(self) -> BodyInPlace | None:
        """Have the rest of the body of the request under way read in place; None: in parts, as any other.

        So it is where little of it is left, its client has left, or there is no memory for all that it may become.
        """
        cycle = self._running
        if cycle is None or cycle is not self.cycle or self._body_left < _LARGE:
            return None
        try:
            body = BodyInPlace(self, cycle.body, len(cycle.body) + self._body_left, self._end_in_place)
        except MemoryError:
            return None
        if cycle.waiting_for_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        self.transport.set_protocol(body)
        self.flow.resume_reading()
        return body

    def _end_in_place(self) -> None:
        """Go on behind a body of which the parser has seen nothing but the beginning."""
        self.transport.set_protocol(asyncio.BufferedProtocol())  # the last of these uvloop keeps: it holds nothing
        self.transport.set_protocol(self)
        self._parse_anew()
        self.on_message_complete()
        self.cycle.message_event.clear()  # there is nothing to receive

    def _stated_length(self) -> int:
        # The parser has refused one that is no number, a second one, and one beside chunks.
        stated = [value for name, value in self.headers if name == b"content-length"]
        return int(stated[0]) if stated else 0

    @property
    def _service(self) -> Service:
        return cast(FrontDoor, self.config.app).service

    def on_message_complete(self) -> None:
        """End a request, unless its head is parsed again."""
        self._body_left = 0
        if not self._upgrades:
            super().on_message_complete()
            self.cycle.more_body = False  # of a request that was answered before, too

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._overhead = max(0, self._overhead - _OVERHEAD_OF_A_BYTE * len(body))
        self._body_left = max(0, self._body_left - len(body))
        super().on_body(body)

    def look(self, now: float, patience: float) -> None:
        """Give up on a client that has let this connection wait for the same thing for longer than `patience`."""
        awaited = self._awaits()
        if awaited is None or awaited != self._awaited:
            self._awaited, self._since = awaited, now
        elif now - self._since > (self.timeout_keep_alive if awaited == (True, self.cycle) else patience):
            self._give_up(patience)

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _awaits(self) -> object:
        """Return what the client owes: to take an answer, to end a body, or to send a head; None: nothing."""
        if unsent := self.transport.get_write_buffer_size():
            return unsent
        return None if self._is_answering else (self._is_idle, self.cycle)

    @property
    def _is_idle(self) -> bool:
        """Whether all that came is answered, and no part of a head or of a body lacks the rest."""
        return self.cycle is not None and not (self._is_in_head or self.cycle.more_body)

    def _give_up(self, patience: float) -> None:
        if self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.transport.abort()
        elif self._is_idle or self._unfinished() is not None:  # of which the answer has gone out
            self.transport.close()
        else:
            self._refuse(
                HeadTooSlow(
                    f"The request's head did not arrive within {patience:g} seconds.",
                    field="headers",
                    remedy="Send it faster.",
                )
            )

    def _refuse(self, error: ServiceError) -> None:
        """Answer with the error and close, once the requests before the message at fault are answered."""
        self._service.metrics.errors.labels(error.code).inc()
        running, at_fault = self._running, self._unfinished()
        if at_fault is not None and at_fault is running:
            if at_fault.response_started:  # another answer to the same message
                self.transport.abort()
                return
            at_fault.disconnected = True
            at_fault.message_event.set()
            self._end_with(error)
            return
        if at_fault is not None:
            self.pipeline.popleft()
        if running is None or running.response_complete:
            self._end_with(error)
        else:
            self._refusal = error

    def _unfinished(self) -> RequestResponseCycle | None:
        """Return the latest request if its head is whole and its body is not."""
        return self.cycle if self.cycle is not None and self.cycle.more_body else None

    def _end_with(self, error: ServiceError) -> None:
        status, body = STATUS[type(error)], orjson.dumps(error.body())
        self._service.metrics.count_request("other", status)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *security_headers.OF_DATA,
        ]
        lines = [STATUS_LINE[status], *(b"%b: %b\r\n" % header for header in headers), b"\r\n", body]
        self.transport.write(b"".join(lines))
        self.transport.close()


def _refuse_repeated(names: list[bytes]) -> None:
    for name in _ONCE:
        if names.count(name.lower().encode()) > 1:
            raise InvalidRequest(f"The header {name} is given more than once.", field=name, remedy="Give it once.")
