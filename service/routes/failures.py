"""Every failure becomes JSON in one form, with the status that the one table says."""

import logging
from time import perf_counter
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from service.errors import (
    STATUS,
    DeadlineExceeded,
    InternalError,
    InvalidBody,
    InvalidKey,
    MethodNotAllowed,
    NotFound,
    ServiceError,
    StoreUnavailable,
)
from service.keys import without_keys
from service.routes.context import service_of
from service.schemas import ErrorResponse
from service.telemetry import current

logger = logging.getLogger(__name__)

PROTOCOL_PREFIX = "/v2"
"""Below it errors carry `error` too, as the Open Inference Protocol has it."""


def install(app: FastAPI) -> None:
    """Have the app answer all its errors in this form."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)


def documented(*statuses: int, model: type[ErrorResponse] = ErrorResponse) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of these statuses, from the table."""
    return {
        status: {
            "model": model,
            "description": " ".join(kind.__doc__ or "" for kind, its in STATUS.items() if its == status),
        }
        for status in statuses
    }


def failure(error: ServiceError, request: Request) -> Response:
    """Return the answer to an error, which counts.

    What the error came through, with the request and its pictures, goes now and not when garbage is looked for.
    """
    _forget_frames(error)
    metrics, exchange = service_of(request).metrics, current()
    metrics.errors.labels(error.code).inc()
    if isinstance(error, DeadlineExceeded) and exchange is not None:
        # An answer would have taken longer: left out, the more were too late the faster the rest would look.
        metrics.total_seconds.observe(perf_counter() - exchange.begun)
    if isinstance(error, StoreUnavailable) and error.reason is not None:
        logger.warning("%s", error)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if isinstance(error, InvalidKey):
        headers["WWW-Authenticate"] = "Bearer"
    body = error.body()
    if request.scope["path"].startswith(PROTOCOL_PREFIX):
        body["error"] = error.message
    return Response(orjson.dumps(body), STATUS[type(error)], headers, media_type="application/json")


def _forget_frames(error: BaseException | None) -> None:
    """Let go of the frames that an error and those behind it came through: one of them may hold the error itself."""
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return failure(error, request)


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer what the framework refuses by itself."""
    assert isinstance(error, HTTPException)
    response = failure(_translated(request, error), request)
    response.headers.update(error.headers or {})
    if error.status_code == 405:
        response.headers["Allow"] = ", ".join(_methods_here(request))
    return response


def _methods_here(request: Request) -> list[str]:
    """Return what the path takes; the framework names the methods of the first route alone."""

    def is_taken(method: str) -> bool:
        scope = {**request.scope, "method": method if method != "HEAD" else "GET"}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT") if is_taken(method)]


def _translated(request: Request, error: HTTPException) -> ServiceError:
    path = request.url.path
    if error.status_code == 404:
        return NotFound("There is nothing here.", field="path", value=path, remedy="GET /openapi.json lists what is.")
    if error.status_code == 405:
        return MethodNotAllowed(
            f"This path does not take {request.method}.",
            field="method",
            value=request.method,
            remedy="See the Allow header.",
        )
    if error.status_code < 500:
        return InvalidBody(f"{error.detail}.", remedy="See GET /openapi.json.")
    return InternalError(f"{error.detail}.")


async def _unexpected(request: Request, error: Exception) -> Response:
    return unexpected(request, error)


def unexpected(request: Request, error: Exception) -> Response:
    """Return the answer to a fault of ours: the log says all, the answer nothing."""
    logger.error("%s %s failed", request.method, without_keys(request.url.path), exc_info=error)
    return failure(
        InternalError("Something went wrong in the service.", remedy="Try again; the service's log says more."), request
    )
