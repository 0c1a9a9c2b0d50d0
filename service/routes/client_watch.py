"""Whether the client is still there while its work waits or runs. It knows no route."""

import asyncio

from starlette.requests import Request

from service.batcher import Admission
from service.predictor import Outcome, Work

_PATIENCE = 0.05
"""Seconds until it is worth asking."""


class ClientWatch:
    """Abandons an admission if the client leaves; the question is asked only of requests that take a while."""

    __slots__ = ("_admission", "_request", "_task", "_timer")

    def __init__(self, request: Request, admission: Admission[Work, Outcome]) -> None:
        self._request, self._admission = request, admission
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._abandon())

    async def _abandon(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._admission.abandon()

    def end(self) -> None:
        """Stop asking: the answer is there."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
