"""Many clients who come together are let in together, not one in each turn of the loop."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from service.listening import bind, ready_for_crowds

uvloop = pytest.importorskip("uvloop", reason="uvloop accepts one client a turn; asyncio's own loop does not")

CROWD, TURNS = 48, 6


@contextmanager
def crowd(port: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(CROWD):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        yield


async def let_in(sockets: list[socket.socket]) -> int:
    """Return how many of a crowd that waits are let in within a few turns."""
    loop, inside = asyncio.get_running_loop(), []

    class Client(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            inside.append(transport)

    servers = [await loop.create_server(Client, sock=each, backlog=CROWD) for each in sockets]
    with crowd(sockets[0].getsockname()[1]):
        for _ in range(TURNS):
            await asyncio.sleep(0)
        count = len(inside)
        for server in servers:
            server.close()
        for transport in inside:
            transport.close()
        await asyncio.sleep(0.05)
    return count


def test_a_crowd_is_let_in_within_a_few_turns() -> None:
    assert uvloop.run(let_in(bind("127.0.0.1", 0))) <= TURNS + 1, "uvloop does without this by now"
    assert uvloop.run(let_in(ready_for_crowds(bind("127.0.0.1", 0)))) == CROWD


def test_a_crowds_sockets_are_one_to_the_system_until_the_last_is_closed() -> None:
    sockets = ready_for_crowds(bind("127.0.0.1", 0))
    address = sockets[0].getsockname()
    sockets[0].listen()
    for each in sockets:
        each.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5)
