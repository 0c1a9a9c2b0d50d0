"""The sockets to listen on, bound before anything else is done, so that a port in use is told at once.

A bound socket accepts nothing yet; whoever connects is refused until the server listens.
"""

import errno
import os
import socket
import sys
from ipaddress import ip_address
from typing import Any

_AT_ONCE = 16


class CannotListen(Exception):  # noqa: N818 - as all domain errors here
    """The address cannot be listened on: says which, why, and the remedy."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        super().__init__(_reason(host, port, error))


def bind(host: str, port: int) -> list[socket.socket]:
    """Bind a socket to each address of the host, as asyncio does; port 0 lets the system choose.

    Raises:
        CannotListen: the host is unknown or not of this machine, or the port is in use or not allowed.
    """
    sockets: list[socket.socket] = []
    absent = OSError(errno.EADDRNOTAVAIL, "none of its addresses is of this machine")
    try:
        for family, address in _addresses(host, port):
            try:
                sockets.append(_bound(family, address))
            except OSError as error:
                if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                    raise
                absent = error  # such as ::1 of localhost where there is no IPv6: another may do
        if not sockets:
            raise absent
    except OSError as error:
        for bound in sockets:
            bound.close()
        raise CannotListen(host, port, error) from error
    return sockets


def _bound(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix" and sys.platform != "cygwin":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def listen(sockets: list[socket.socket], host: str, port: int) -> None:
    """Listen on bound sockets; who connects from now on waits until the server takes them over.

    Several may bind one port, and the first to listen has it. The server would not tell: uvloop goes on without.

    Raises:
        CannotListen: another process has begun to listen there.
    """
    try:
        for bound in sockets:
            bound.listen()
    except OSError as error:
        raise CannotListen(host, port, error) from error


def ready_for_crowds(sockets: list[socket.socket]) -> list[socket.socket]:
    """Return each socket and duplicates of it: a server that listens on all accepts so many clients at once.

    uvloop accepts one client for each socket and turn of its loop. A turn takes as long as a batch, so that the last of
    256 who come together would be let in after two seconds; those who have one keep being answered meanwhile.
    """
    return [each for bound in sockets for each in (bound, *(bound.dup() for _ in range(_AT_ONCE - 1)))]


def is_open_to_others(sockets: list[socket.socket]) -> bool:
    """Return whether any of the sockets can be reached from another machine."""
    return not all(ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback for bound in sockets)


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError as error:  # a name that no name may be, such as one with two dots in a row
        raise OSError(str(error)) from error
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _reason(host: str, port: int, error: OSError) -> str:
    place = f"port {port} on {host}"
    if error.errno == errno.EADDRINUSE:
        return f"{place} is in use; give --port or set EVENKEEL_PORT"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"{place} is not allowed to this user; give --port or set EVENKEEL_PORT"
    return f"{host} cannot be listened on: {error.strerror or error}; give --host or set EVENKEEL_HOST"
