"""`GET /`: the page to try the model with, and the files that it is made of.

The files are package data, read once. The page names them under a hash of them all, so that a browser may keep them
for ever and never mixes two releases. The page loads nothing from elsewhere and may not, by its policy.
"""

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import NotFound
from service.routes.context import PlainRoute
from service.routes.files import ASK_FIRST, FOREVER, file

router = APIRouter(route_class=PlainRoute)

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

_MEDIA_TYPES: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
_INDEX: Final = "index.html"
_FOLDER: Final = b"STATIC"
"""What index.html writes for the folder of its files."""


@dataclass(frozen=True)
class Page:
    """The page, and its files by name."""

    index: bytes
    version: str
    files: dict[str, bytes]


@cache
def page() -> Page:
    """Read the page from the package."""
    entries = sorted((entry for entry in files("service").joinpath("static").iterdir()), key=lambda entry: entry.name)
    content = {entry.name: entry.read_bytes() for entry in entries if _suffix(entry.name) in _MEDIA_TYPES}
    version = sha256(b"".join(name.encode() + data for name, data in content.items())).hexdigest()[:12]
    index = content.pop(_INDEX).replace(_FOLDER, f"static/{version}".encode())
    return Page(index, version, content)


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def index(request: Request) -> Response:
    """Answer with the page."""
    policy = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
    return file(request, page().index, _MEDIA_TYPES[".html"], keep=ASK_FIRST, **policy)


@router.api_route("/static/{version}/{name}", methods=["GET", "HEAD"], include_in_schema=False)
async def static(request: Request) -> Response:
    """Answer with a file of the page."""
    version, name = request.path_params["version"], request.path_params["name"]
    if version != page().version or name not in page().files:
        raise NotFound(
            "The page has no such file.",
            field="path",
            value=request.url.path,
            remedy="Load the page again: it names its files.",
        )
    return file(request, page().files[name], _MEDIA_TYPES[_suffix(name)], keep=FOREVER)


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2]
