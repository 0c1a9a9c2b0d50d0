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

from service.bundle import Task
from service.errors import NotFound
from service.routes.context import PlainRoute, service_of
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
_INDEXES: Final[dict[Task, str]] = {"classification": "index.html", "detection": "detection.html"}
_FOLDER: Final = b"STATIC"
"""What they write for the folder of their files."""


@dataclass(frozen=True)
class Page:
    """The page of each task, and the files of both by name."""

    indexes: dict[Task, bytes]
    version: str
    files: dict[str, bytes]


@cache
def page() -> Page:
    """Read the page from the package."""
    entries = sorted((entry for entry in files("service").joinpath("static").iterdir()), key=lambda entry: entry.name)
    content = {entry.name: entry.read_bytes() for entry in entries if _suffix(entry.name) in _MEDIA_TYPES}
    version = sha256(b"".join(name.encode() + data for name, data in content.items())).hexdigest()[:12]
    folder = f"static/{version}".encode()
    indexes = {task: content.pop(name).replace(_FOLDER, folder) for task, name in _INDEXES.items()}
    return Page(indexes, version, content)


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def index(request: Request) -> Response:
    """Answer with the page of the task of the model that is served."""
    policy = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
    index = page().indexes[service_of(request).model.manifest.task]
    return file(request, index, _MEDIA_TYPES[".html"], keep=ASK_FIRST, **policy)


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
