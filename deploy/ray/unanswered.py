"""What Ray's proxy leaves unanswered, because the replica died with it, gets 503: the sign to ask again.

Ray itself would end such a request with a bare 500, which says nothing of whether asking again helps. Predictions may
be asked for and labels sent again without harm; what may have made a client or a key is to be looked at first. The
reason is in the proxy's log. For the environment of every node, before `ray start`:
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deploy.ray.unanswered.middlewares
"""

import json
import logging

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

BODY = {
    "code": "replica_lost",
    "message": "The replica that had this request is gone.",
    "field": None,
    "value": None,
    "remedy": "Send the request again.",
}
LOOK_FIRST = BODY | {"remedy": "It may have been done: look at GET /clients before you send it again."}

_REPEATABLE = ("/predict", "/infer", "/feedback")
"""How the paths end whose POST may come twice; any other makes something each time."""


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

        reason: Exception | None = None
        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if begun:
                raise
            reason = error
        if not begun:
            logger.error("%s %s was left unanswered", scope["method"], scope["path"], exc_info=reason)
            await _tell(scope, send)


async def _tell(scope: Scope, send: Send) -> None:
    body, headers = LOOK_FIRST, [(b"content-type", b"application/json")]
    if scope["method"] != "POST" or scope["path"].endswith(_REPEATABLE):
        body, headers = BODY, [*headers, (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
