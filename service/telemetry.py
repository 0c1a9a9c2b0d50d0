"""How a request can be followed: its id, its place in a trace, its times, its log lines.

`Exchange.begin` reads the two headers that concern it and nothing else; whatever costs more is only done for requests
that carry a trace or where an operator asked for it. It knows no route and no collector (`service.tracing`).

Source: W3C, *Trace Context* and *Server Timing*.
"""

import itertools
import json
import logging
import os
import re
import sys
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Literal, NamedTuple, Self

from service.keys import without_keys

Headers = list[tuple[bytes, bytes]]

access = logging.getLogger("service.access")

_ID = re.compile(rb"(?!ek_[A-Za-z0-9_-]{30})[A-Za-z0-9._~:/+=@-]{1,128}")  # and no key, as log lines bear it
_TRACEPARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TIMES = (
    b"server-timing: decode;dur=%b, queue;dur=%b, inference;dur=%b, total;dur=%b\r\n"
    b"x-decode-time: %b\r\nx-queue-time: %b\r\nx-inference-time: %b\r\nx-total-time: %b\r\n"
)
_PREFIX = os.urandom(6).hex()
_numbers = itertools.count(1)
_current: ContextVar["Exchange | None"] = ContextVar("exchange", default=None)


class Times(NamedTuple):
    """Seconds of a request by stage; of several images the longest."""

    decode: float
    queue: float
    inference: float
    total: float


class Trace(NamedTuple):
    """A request's place in a trace: the trace, the caller's span, ours, and the caller's flags; all in hexadecimal."""

    trace_id: str
    parent_id: str
    span_id: str
    flags: str

    def header(self) -> str:
        """Return the `traceparent` that names our span."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


class Exchange:
    """A request and its answer.

    Attributes:
        request_id: the client's, if it is one, else a new one.
        trace: where it belongs in a trace; None: in none.
        times: how long it took by stage, once a route has said so.
        begun: when the request came, by `perf_counter`.
    """

    __slots__ = ("begun", "request_id", "times", "trace")

    def __init__(self, request_id: str, trace: Trace | None) -> None:
        self.request_id = request_id
        self.trace = trace
        self.times: Times | None = None
        self.begun = perf_counter()

    @classmethod
    def begin(cls, headers: Iterable[tuple[bytes, bytes]]) -> Self:
        """Return the exchange that a request's headers begin, and have log lines bear its id."""
        request_id: str | None = None
        trace: Trace | None = None
        for name, value in headers:
            if name == b"x-request-id":
                request_id = value.decode() if _ID.fullmatch(value) else None
            elif name == b"traceparent":
                trace = continued(value)
        exchange = cls(request_id or f"{_PREFIX}-{next(_numbers):x}", trace)
        _current.set(exchange)
        return exchange

    def lines(self) -> bytes:
        """Return what the answer says of all this, as lines of its head."""
        said = b"x-request-id: %b\r\n" % self.request_id.encode()
        if self.trace is not None:
            said += b"traceparent: %b\r\n" % self.trace.header().encode()
        if self.times is not None:
            milliseconds = tuple([b"%.3f" % (seconds * 1e3) for seconds in self.times])
            said += _TIMES % (milliseconds + milliseconds)
        return said

    def headers(self) -> Headers:
        """Return the same as names and values."""
        lines = self.lines().split(b"\r\n")[:-1]
        return [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]


def continued(traceparent: bytes) -> Trace | None:
    """Return our place in the caller's trace, or None where the header is none of a trace.

    >>> trace = continued(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    >>> trace.trace_id, trace.parent_id, trace.flags
    ('0af7651916cd43dd8448eb211c80319c', 'b7ad6b7169203331', '01')
    """
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None or (found[1] == b"00" and found[5]):
        return None
    return Trace(found[2].decode(), found[3].decode(), os.urandom(8).hex(), found[4].decode())


def current() -> Exchange | None:
    """Return the exchange that the running code belongs to."""
    return _current.get()


def note_times(times: Times) -> None:
    """Say how long the request took; its answer and its span will tell."""
    exchange = _current.get()
    if exchange is not None:
        exchange.times = times


def log_access(exchange: Exchange, method: str, path: str, status: int, seconds: float) -> None:
    """Write the line of one request; a key that was put into the path by mistake is not in it."""
    path = without_keys(path)
    fields: dict[str, Any] = {"method": method, "path": path, "status": status, "seconds": round(seconds, 6)}
    access.info("%s %s %d in %.1f ms", method, path, status, seconds * 1e3, extra={"fields": fields})


def log_to_stderr(level: str, form: Literal["text", "json"]) -> None:
    """Have everything logged on standard error, a line each, as text or as JSON objects; nobody else's debugging."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[lines], force=True)
    if level == "debug":  # others say then what pictures and addresses hold
        logging.getLogger().setLevel(logging.INFO)
    for name in ("service", "__main__"):
        logging.getLogger(name).setLevel(level.upper())
    logging.captureWarnings(True)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # what clients get wrong is answered, not logged


class TextLines(logging.Formatter):
    """For people: time, level, logger, message, and the request's id where there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line without a traceback; what would end it, such as a path's %0a, is escaped."""
        exchange = _current.get()
        said = super().formatMessage(record) + ("" if exchange is None else f" [{exchange.request_id}]")
        if said.isprintable():
            return said
        return "".join(each if each.isprintable() else repr(each)[1:-1] for each in said)


class JsonLines(logging.Formatter):
    """For machines: one object a line; a traceback is a string in it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        exchange = _current.get()
        if exchange is not None:
            said["request_id"] = exchange.request_id
            if exchange.trace is not None:
                said |= {"trace_id": exchange.trace.trace_id, "span_id": exchange.trace.span_id}
        said |= getattr(record, "fields", {})
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said, default=str)
