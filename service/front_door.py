"""Where every request comes in: the shortest way to the busiest route, a count of every answer, and the headers of all.

`POST /predict` is a route like any other, documented and listed by FastAPI; yet what lies between the server and its
endpoint there (matching, exit stacks, handlers of exceptions, one within the other) costs more than all the work of a
small model. So it is called from here at once, and its errors become answers by the same table.
"""

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from service import security_headers
from service.errors import ServiceError, ShuttingDown
from service.reload import Reloader
from service.request_headers import SortedHeaders
from service.routes.access import SECURITY
from service.routes.context import Service
from service.routes.failures import failure, unexpected
from service.routes.predict import predict
from service.telemetry import Exchange, log_access
from service.tracing import Tracing

PREDICT = "/predict"
WHOLE_ANSWER = "evenkeel.whole_answer"
"""Extension of a scope by which a server takes an answer whole: `f(status, lines, body)` returns whether it did.

The lines of the head must be clean, each with its end, and the content-length among them: nothing is checked any more.
"""


class FrontDoor(FastAPI):
    """The app.

    Attributes:
        service: the parts that requests meet.
        counted_routes: the paths that metrics tell apart; any other path counts as 'other'.
        tracing: where spans go; None: there are none.
        logs_access: log a line for each request.
        reloader: what takes a new bundle over; None: nothing does.
        answers_until: when, by `time.monotonic`, a server that ends has no more time for answers; None: it goes on.
    """

    service: Service
    counted_routes: frozenset[str] = frozenset()
    tracing: Tracing | None = None
    logs_access: bool = False
    reloader: Reloader | None = None
    answers_until: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        request = _Request(scope, receive)
        exchange = Exchange.begin(scope["headers"])
        followed = self._follow(exchange, scope) if self.tracing or self.logs_access else None
        count, path = self.service.metrics.count_request, scope["path"]
        if path == PREDICT and scope["method"] == "POST":
            try:
                response = await predict(request)
            except ServiceError as error:
                response = failure(error, request)
            except asyncio.CancelledError as end:
                response = self._cut_short(request, end)
            except Exception as error:
                response = unexpected(request, error)
            count(path, response.status_code)
            if followed:
                followed(path, response.status_code)
            whole = (scope.get("extensions") or {}).get(WHOLE_ANSWER)
            if not (whole and whole(response.status_code, _lines(response, exchange), response.body)):
                response.raw_headers += security_headers.OF_DATA + exchange.headers()
                await response(scope, receive, send)
            return

        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # the server leaves the body of the answer out
        begun = False

        async def counted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                route = self._route(scope)
                count(route, message["status"])
                headers = list(message["headers"])
                message["headers"] = headers + security_headers.missing(headers) + exchange.headers()
                if followed:
                    followed(route, message["status"])
            await send(message)

        try:
            await super().__call__(scope, receive, counted)
        except asyncio.CancelledError as end:
            if begun:
                raise
            await self._cut_short(request, end)(scope, receive, counted)

    def openapi(self) -> dict[str, Any]:
        """Return the description of the interface; any request may bear a key."""
        document = super().openapi()
        document["components"]["securitySchemes"] = SECURITY
        document["security"] = [{}, {name: [] for name in SECURITY}]
        return document

    def _cut_short(self, request: Request, end: asyncio.CancelledError) -> Response:
        """Return the answer to a request that the server cancels, as the time of the shutdown is over."""
        if not self.service.readiness.is_ending:
            raise end
        error = ShuttingDown(
            "The service shut down before this request was answered.", remedy="Send it again.", retry_after=1
        )
        return failure(error, request)

    def _follow(self, exchange: Exchange, scope: Scope) -> Callable[[str, int], None]:
        """Follow a request for those who asked; return what is to be called with its route and status."""
        tracing, method, begin = self.tracing, scope["method"], perf_counter()
        span = tracing.begin(exchange, method) if tracing else None

        def end(route: str, status: int) -> None:
            if tracing:
                tracing.end(span, exchange, method, route, status)
            if self.logs_access:
                log_access(exchange, method, scope["path"], status, perf_counter() - begin)

        return end

    def _route(self, scope: Scope) -> str:
        """Return the template of the path that was taken, such as /v2/models/{name}."""
        path = getattr(scope.get("route"), "path", scope["path"])
        return path if path in self.counted_routes else "other"


def _lines(response: Response, exchange: Exchange) -> bytes:
    own = [b"%b: %b\r\n" % header for header in response.raw_headers]
    return b"".join((*own, security_headers.LINES_OF_DATA, exchange.lines()))


class _Request(Request):
    """A request whose headers are looked up, not searched for."""

    headers: SortedHeaders = None  # type: ignore[assignment]  # a property there, and asked for three times a request

    def __init__(self, scope: Scope, receive: Receive) -> None:
        super().__init__(scope, receive)
        self.headers = SortedHeaders(scope)
