"""Long JSON is read in threads of its own, each body in a place of the queue and no longer than somebody waits for it.

It knows neither what a body holds nor what is made of it.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TypeVar

from starlette.requests import Request

from service.routes.client_watch import ClientWatch
from service.routes.context import Service

Query = TypeVar("Query")


async def read_aside(read: Callable[[], Query], request: Request, service: Service, deadline: float) -> Query:
    """Return what `read` makes of a body, from a thread.

    Args:
        read: takes long, and what it refuses it refuses itself.
        request: whose client may leave meanwhile.
        service: whose queue and threads these are.
        deadline: the moment, by `time.monotonic`, after which nobody waits.

    Raises:
        QueueFull, ShuttingDown: there is no place for it.
        DeadlineExceeded, ClientLeft: it is too late, or nobody waits; what has not begun is dropped.
    """
    with service.batcher.admit(1, deadline=deadline) as admission:
        watch = ClientWatch(request, admission)
        try:
            begun: Iterable[Query | Future[Query]] = (service.readers.submit(each) for each in [read])
            made = await admission.prepare(begun, busy=service.readers.busy, when_long=watch.begin)
        finally:
            watch.end()
    return made[0]
