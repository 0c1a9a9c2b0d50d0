"""How long a client waits: the header `X-Request-Timeout`, in seconds, within what the settings allow."""

import re
from typing import Any

from starlette.requests import Request

from service.errors import InvalidParameter
from service.settings import Settings

HEADER = "X-Request-Timeout"
PARAMETER: dict[str, Any] = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "number", "exclusiveMinimum": 0},
    "description": "seconds until the answer is no longer wanted; work not begun by then is dropped",
}
"""What OpenAPI says of it."""

_SECONDS = re.compile(r"(\d{1,9}\.?\d{0,9}|\.\d{1,9})", re.ASCII)


def patience(request: Request, settings: Settings) -> float:
    """Return for how many seconds an answer is worth having.

    Raises:
        InvalidParameter: the header is no number of seconds above 0.
    """
    text = request.headers.get(HEADER)
    if text is None:
        return settings.request_timeout
    if not _SECONDS.fullmatch(text) or not float(text) > 0:
        raise InvalidParameter(
            f"{HEADER} must be a number of seconds above 0.", field=HEADER, value=text, remedy="Send one such as 0.5."
        )
    return min(float(text), settings.request_timeout)
