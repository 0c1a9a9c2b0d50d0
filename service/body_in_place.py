"""The rest of a large body, read from the socket to where it stays.

In parts it would be copied five times: out of the loop's buffer, out of the parser's, into what waits for the request,
out of that, and into one piece; and the client would wait for each part to be taken. Of 32 pictures of 224x224 that was
a third of what they cost beside the model. Here the memory for all of it is set apart once its request asks for it (the
system gives it as it is written to), and the socket is read into that.

It knows neither HTTP nor what a body holds.
"""

import asyncio
from collections.abc import Callable

import numpy as np

_DROPPED = memoryview(bytearray(65_536))
"""Where what nobody wants any more is read to, whosever it was."""


class BodyInPlace(asyncio.BufferedProtocol):
    """Takes the place of a connection's protocol until all of a body has come, and not a byte more.

    Args:
        protocol: whose place it takes; it hears of whatever is no part of the body.
        begun: what has come already.
        size: bytes of the whole body, more than those.
        done: called once all of it has come.

    Raises:
        MemoryError: there is not so much.

    Attributes:
        whole: the body, read-only; None: the connection ended before. Once it is cancelled the memory is let go, and
            what still comes is dropped.
        count: how many bytes have come.
    """

    def __init__(self, protocol: asyncio.Protocol, begun: bytearray, size: int, done: Callable[[], None]) -> None:
        self._memory = np.empty(size, np.uint8).data
        self.whole: asyncio.Future[memoryview | None] = asyncio.get_running_loop().create_future()
        self.count = len(begun)
        self._protocol, self._size, self._done = protocol, size, done
        self._memory[: self.count] = begun
        self.whole.add_done_callback(self._let_go)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go."""
        if self.whole.done():
            return _DROPPED[: self._size - self.count]
        return self._memory[self.count :]

    def buffer_updated(self, nbytes: int) -> None:
        """Count what has come, and give the place back after the last of it."""
        self.count += nbytes
        if self.count < self._size:
            return
        if not self.whole.done():
            self.whole.set_result(self._memory.toreadonly())
        self._done()

    def _let_go(self, _: asyncio.Future[memoryview | None]) -> None:
        self._memory = _DROPPED

    def connection_lost(self, exc: Exception | None) -> None:
        """Say that no more will come."""
        if not self.whole.done():
            self.whole.set_result(None)
        self._protocol.connection_lost(exc)

    def eof_received(self) -> bool | None:
        """Pass it on."""
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        """Pass it on."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._protocol.resume_writing()
