"""Who asks: the client that a key belongs to, or the operator. It knows no route."""

from typing import Any

from starlette.requests import Request

from service.callers import Caller
from service.errors import AdminOnly, InvalidKey, RateLimited, StoreUnavailable
from service.keys import matches
from service.routes.context import Service
from service.routes.rules import Rules

SECURITY: dict[str, Any] = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "a client's key, which `service clients add` or `rotate` has shown; for /clients and /changes "
        "the operator's. Without one predictions are anonymous, unless EVENKEEL_AUTHENTICATION is on.",
    }
}
"""What OpenAPI says of keys."""
_REMEDY = "Send the header Authorization: Bearer KEY, with a key that `service clients add` or `rotate` has shown."


def caller_of(request: Request, service: Service) -> Caller:
    """Return whose key the request bears; without one, the anonymous client, where there may be one.

    Raises:
        InvalidKey: there is no key where one is needed, it is unknown or revoked, or the header is of another form.
        StoreUnavailable: no keys were ever read.
    """
    key = bearer(request)
    if key is None:
        if service.settings.authentication:
            raise InvalidKey("A key is needed.", field="Authorization", remedy=_REMEDY)
        return service.keeping.callers.anonymous
    caller = service.keeping.callers.of_key(key)
    if caller is None and not service.keeping.callers.loaded:
        raise StoreUnavailable(
            "The clients' keys could not be read yet.", remedy="Try again in some seconds.", retry_after=2
        )
    if caller is None:
        raise InvalidKey("The key is unknown or was revoked.", field="Authorization", remedy=_REMEDY)
    return caller


def rules_for(caller: Caller, service: Service) -> Rules:
    """Return what the caller may ask of the model that is served.

    Raises:
        PolicyMismatch: the caller's policy does not fit the model.
    """
    if caller is service.keeping.callers.anonymous:
        return service.rules
    manifest, settings = service.model.manifest, service.settings
    return Rules(manifest, settings, caller.terms(manifest, settings.max_prior_strength))


def take(caller: Caller, images: int, service: Service) -> None:
    """Take so many images out of what the caller may send.

    Raises:
        RateLimited: it has sent as many as it may.
    """
    try:
        caller.take(images)
    except RateLimited:
        service.metrics.rejected_images.labels("rate_limited").inc(images)
        raise


def is_admin(request: Request, service: Service) -> bool:
    """Return whether the request bears the operator's key.

    Raises:
        InvalidKey: its Authorization is of another form.
    """
    key, expected = bearer(request), service.settings.admin_key
    return key is not None and expected is not None and matches(key, expected.get_secret_value())


def admit_admin(request: Request, service: Service) -> None:
    """Let the operator pass.

    Raises:
        AdminOnly: it is someone else, or there is no operator's key.
        InvalidKey: the request's Authorization is of another form.
    """
    if service.settings.admin_key is None:
        raise AdminOnly(
            "Clients cannot be managed over HTTP, as the service has no admin key.",
            remedy="Set EVENKEEL_ADMIN_KEY and start the service again, or use `service clients` on its machine.",
        )
    if not is_admin(request, service):
        raise AdminOnly(
            "Only the admin key opens this.",
            field="Authorization",
            remedy="Send the header Authorization: Bearer KEY, with the key that EVENKEEL_ADMIN_KEY says.",
        )


def bearer(request: Request) -> str | None:
    """Return the bearer token of the request; None: it has no Authorization at all.

    Raises:
        InvalidKey: it has one of another form, whose sender would take itself for known.
    """
    header = request.headers.get("authorization")
    if header is None:
        return None
    scheme, _, token = header.strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise InvalidKey("The header Authorization holds no bearer token.", field="Authorization", remedy=_REMEDY)
    return token.strip()
