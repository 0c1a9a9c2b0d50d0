"""Requests at a rate, whatever becomes of those before, by a client that takes as little of the cores as it can.

It shares them with what it measures: a coroutine for each request took twice as much.
"""

import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.operations.client import Answer, read

_SENT_AT_ONCE = 200_000
"""Bytes that a connection's buffer takes, so that a request of fewer is sent by one call."""
_PATIENCE = 120.0
"""Seconds that answers may take after the last request was due."""


@dataclass(slots=True)
class _Exchange:
    connection: socket.socket
    sent: float
    rest: memoryview
    parts: list[bytes] = field(default_factory=list)


def at_a_rate(port: int, data: Sequence[bytes], *, rate: float, count: int) -> list[Answer]:
    """Send `count` requests, taken from `data` in turn, at `rate` a second, each on a connection of its own.

    Each must ask for its connection to be closed. One whose answer is not whole in time has the status 0.
    """
    poll, under_way, answers = select.epoll(), dict[int, _Exchange](), list[Answer]()
    begin, number = time.monotonic(), 0
    last = begin + count / rate + _PATIENCE
    with poll:
        while number < count or under_way:
            now, due = time.monotonic(), begin + number / rate
            if number < count and now >= due:
                _begin(poll, under_way, port, data[number % len(data)], now)
                number += 1
                due = now  # whoever has answered meanwhile is looked at, even behind schedule
            for descriptor, happened in poll.poll(max(0.0, due - now) if number < count else 1.0):
                exchange = under_way[descriptor]
                if exchange.rest and happened & select.EPOLLOUT:
                    _go_on(poll, exchange)
                if happened & ~select.EPOLLOUT and (part := _received(exchange.connection)):
                    exchange.parts.append(part)
                elif happened & ~select.EPOLLOUT:
                    answers.append(_end(under_way.pop(descriptor)))
            if now > last:
                answers += [_end(exchange) for exchange in under_way.values()]
                break
    return answers


def _begin(poll: select.epoll, under_way: dict[int, _Exchange], port: int, data: bytes, now: float) -> None:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SENT_AT_ONCE)
    connection.setblocking(False)
    connection.connect_ex(("127.0.0.1", port))  # what comes of it is told by what is sent and received
    exchange = under_way[connection.fileno()] = _Exchange(connection, now, memoryview(data))
    poll.register(connection, select.EPOLLIN | select.EPOLLOUT)
    _go_on(poll, exchange)


def _go_on(poll: select.epoll, exchange: _Exchange) -> None:
    try:
        exchange.rest = exchange.rest[exchange.connection.send(exchange.rest) :]
    except BlockingIOError:
        return
    except OSError:
        exchange.rest = memoryview(b"")  # there may be an answer all the same
    if not exchange.rest:
        poll.modify(exchange.connection, select.EPOLLIN)


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65_536)
    except OSError:
        return b""


def _end(exchange: _Exchange) -> Answer:
    exchange.connection.close()
    answer = read(b"".join(exchange.parts), time.monotonic() - exchange.sent, exchange.sent)
    if len(answer.body) != int(answer.headers.get("content-length", len(answer.body))):
        answer.status = 0
    return answer
