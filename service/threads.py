"""Threads for work that can be dropped, and for work that may hang. It knows nothing of what the work is."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any, ParamSpec, TypeVar

from service.pace import Pace

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Threads:
    """A pool of threads; work that is cancelled before its turn keeps nothing of what it was given.

    `ThreadPoolExecutor` by itself keeps a call and its arguments, such as a picture, until a thread comes to it.

    Args:
        count: how much is done at a time.
        name: what the threads' names begin with.
    """

    def __init__(self, count: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._count = count
        self._pace = Pace()
        self._under_way: set[Future[Any]] = set()

    def submit(
        self, call: Callable[Arguments, Result], /, *arguments: Arguments.args, **named: Arguments.kwargs
    ) -> Future[Result]:
        """Return the work that makes the call."""
        held = [partial(call, *arguments, **named)]
        work = self._executor.submit(self._make, held)
        self._under_way.add(work)

        def forget(done: Future[Result]) -> None:  # knows the work by what it is given: else neither would ever go
            held.clear()
            self._under_way.discard(done)

        work.add_done_callback(forget)
        return work

    def busy(self) -> float:
        """Return how many seconds it may take, by the pace of late, until all that was handed in is done."""
        return len(self._under_way) * self._pace.seconds / self._count

    def _make(self, held: list[partial[Result]]) -> Result:
        begin = perf_counter()
        try:
            return held.pop()()
        finally:
            self._pace.observe(perf_counter() - begin)

    def close(self) -> None:
        """Drop what has not begun; what has goes on to its end, and nobody waits for it."""
        self._executor.shutdown(wait=False, cancel_futures=True)


async def in_a_thread_of_its_own(
    call: Callable[Arguments, Result], /, *arguments: Arguments.args, **named: Arguments.kwargs
) -> Result:
    """Return what a call gives that may hang: it takes no place in a pool, and keeps no process from ending.

    Who gives up waiting leaves the call to itself.
    """
    work: Future[Result] = Future()
    work.set_running_or_notify_cancel()  # from here on it cannot be cancelled, and so always be given its result

    def run(work: Future[Result]) -> None:
        try:
            work.set_result(call(*arguments, **named))
        except BaseException as error:
            work.set_exception(error)
            del work  # the error knows this frame, and with it would keep all that the call had made

    threading.Thread(target=run, args=(work,), name=getattr(call, "__name__", "call"), daemon=True).start()
    try:
        return await asyncio.wrap_future(work)
    finally:
        del work  # likewise
