"""Where every request comes in: the shortest way to the busiest route, and a count of every answer.

`POST /predict` is a route like any other, documented and listed by FastAPI; yet what lies between the server and its
endpoint there (matching, exit stacks, handlers of exceptions, one within the other) costs more than all the work of a
small model. So it is called from here at once, and its errors become answers by the same table.
"""

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from service.errors import ServiceError
from service.routes.context import service_of
from service.routes.failures import failure, unexpected
from service.routes.predict import predict

PREDICT = "/predict"


class FrontDoor(FastAPI):
    """The app. `counted_routes` are the paths that metrics tell apart; any other path counts as 'other'."""

    counted_routes: frozenset[str] = frozenset()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        request = Request(scope, receive)
        count, path = service_of(request).metrics.count_request, scope["path"]
        if path == PREDICT and scope["method"] == "POST":
            response = await _predict(request)
            count(path, response.status_code)
            await response(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(self._route(scope), message["status"])
            await send(message)

        await super().__call__(scope, receive, counted)

    def _route(self, scope: Scope) -> str:
        """Return the template of the path that was taken, such as /v2/models/{name}."""
        path = getattr(scope.get("route"), "path", scope["path"])
        return path if path in self.counted_routes else "other"


async def _predict(request: Request) -> Response:
    try:
        return await predict(request)
    except ServiceError as error:
        return failure(error, request)
    except Exception as error:
        return unexpected(request, error)
