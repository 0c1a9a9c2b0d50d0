"""A pool of threads whose work can be dropped. It knows nothing of what the work is."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

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

    def submit(
        self, call: Callable[Arguments, Result], /, *arguments: Arguments.args, **named: Arguments.kwargs
    ) -> Future[Result]:
        """Return the work that makes the call."""
        held = [partial(call, *arguments, **named)]
        work = self._executor.submit(_make, held)
        work.add_done_callback(lambda _: held.clear())
        return work

    def close(self) -> None:
        """Drop what has not begun, and wait for the rest."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def _make(held: list[partial[Result]]) -> Result:
    return held.pop()()
