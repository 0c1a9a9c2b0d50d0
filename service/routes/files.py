"""Files out of memory, with what a browser needs to keep them. It knows no file."""

from hashlib import sha256

from starlette.requests import Request
from starlette.responses import Response

FOREVER = "public, max-age=31536000, immutable"
"""For an address that will never mean anything else."""
ASK_FIRST = "no-cache"
"""For one that may: keep it, and ask whether it is still the same."""


def file(request: Request, content: bytes, media_type: str, *, keep: str, **headers: str) -> Response:
    """Return a file, or 304 where the client has it already."""
    tag = f'"{sha256(content).hexdigest()[:20]}"'
    common = {"ETag": tag, "Cache-Control": keep, "X-Content-Type-Options": "nosniff"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    known = {each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")}
    if tag in known:
        return Response(status_code=304, headers=common)
    return Response(content, headers=common, media_type=media_type)
