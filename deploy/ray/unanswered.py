"""What Ray's proxy leaves unanswered, because the replica died with it, gets 503: the sign to ask again.

Ray itself would end such a request with a bare 500, which says nothing of whether asking again helps. Predictions may
be asked for again without harm. For the environment of every node, before `ray start`:
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deploy.ray.unanswered.middlewares
"""

import json

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY = {
    "code": "replica_lost",
    "message": "The replica that had this request is gone.",
    "field": None,
    "value": None,
    "remedy": "Send the request again.",
}


def middlewares() -> list[Middleware]:
    """Return what Ray's proxy wraps around itself."""
    return [Middleware(Unanswered)]


class Unanswered:
    """Answers 503 where the app within raises or returns without having begun an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if begun:
                raise
        if not begun:
            headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps(BODY).encode()})
