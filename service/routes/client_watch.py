"""Whether the client is still there while its work is prepared, waits or runs. It knows no route."""

import asyncio

from starlette.requests import Request

from service.batcher import Admission
from service.predictor import AnyOutcome, AnyWork


class ClientWatch:
    """Abandons an admission if the client leaves; `begin` is for requests that take a while, `end` for all."""

    __slots__ = ("_admission", "_request", "_task")

    def __init__(self, request: Request, admission: Admission[AnyWork, AnyOutcome]) -> None:
        self._request, self._admission = request, admission
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Ask from now on, unless that has begun already."""
        if self._task is None:
            self._task = asyncio.create_task(self._abandon())

    async def _abandon(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._admission.abandon()

    def end(self) -> None:
        """Stop asking: the answer is there."""
        if self._task is not None:
            self._task.cancel()
            self._task = None  # it knows this watch, and neither would go before garbage is looked for
