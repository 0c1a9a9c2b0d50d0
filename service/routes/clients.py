"""`/clients`: who may ask, on what terms, with which keys. For the operator alone; a client may see its trade-off."""

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from service.clients import ClientName, ClientPolicy, fit
from service.errors import InvalidBody, InvalidParameter
from service.keys import hash_key, key_id
from service.policy_store import Client, read_policy
from service.routes.access import admit_admin
from service.routes.context import PlainRoute, Service, service_of
from service.routes.failures import documented
from service.routes.forms import read_body
from service.schemas import ClientDetails, ClientInfo, ClientsResponse, NewClient, NewKey

router = APIRouter(route_class=PlainRoute, prefix="/clients")

WHO = "http:admin"

Result = TypeVar("Result")

_NAME = {
    "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}],
}
_REFUSALS = documented(400, 403, 404, 409, 413, 422, 503)


def _takes(model: type[ClientPolicy]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


@router.get("", summary="All clients", response_model=ClientsResponse, responses=_REFUSALS)
async def clients(request: Request) -> Response:
    """Answer with every client, its policy, and what may be shown of its keys."""
    service = _as_admin(request)
    return _json({"clients": [_shown(client) for client in await _blocking(service, service.keeping.policies.clients)]})


@router.post(
    "",
    summary="Add a client and show its key, this once",
    status_code=201,
    response_model=NewKey,
    responses=_REFUSALS,
    openapi_extra=_takes(NewClient),
)
async def add(request: Request) -> Response:
    """Add a client whose policy fits the model that is served."""
    service = _as_admin(request)
    content = await _object(request, service)
    name = _name(content.pop("name", None))
    policy = _fitting(content, service)
    key = await _blocking(service, lambda: service.keeping.policies.add(name, policy, who=WHO))
    return _new_key(name, key)


@router.get(
    "/{name}",
    summary="One client, with its newest changes",
    response_model=ClientDetails,
    responses=_REFUSALS,
    openapi_extra=_NAME,
)
async def client(request: Request) -> Response:
    """Answer with the client and who changed what."""
    service, name = _as_admin(request), request.path_params["name"]
    policies = service.keeping.policies
    found = await _blocking(service, lambda: policies.client(name))
    changes = await _blocking(service, lambda: policies.changes(name))
    return _json(_shown(found) | {"changes": [asdict(change) for change in changes]})


@router.patch(
    "/{name}",
    summary="Change a client's policy; null gives a field back to the model",
    response_model=ClientInfo,
    responses=_REFUSALS,
    openapi_extra=_NAME | _takes(ClientPolicy),
)
async def change(request: Request) -> Response:
    """Change what the body names and leave the rest; what comes of it must fit the model that is served."""
    service, name = _as_admin(request), request.path_params["name"]
    changes, policies = await _object(request, service), service.keeping.policies
    before = await _blocking(service, lambda: policies.client(name))
    _fitting(before.policy.model_dump() | changes, service)
    await _blocking(service, lambda: policies.set(name, changes, who=WHO))
    return _json(_shown(await _blocking(service, lambda: policies.client(name))))


@router.delete(
    "/{name}",
    summary="Remove a client with its keys, kept predictions and labels",
    status_code=204,
    responses=_REFUSALS,
    openapi_extra=_NAME,
)
async def remove(request: Request) -> Response:
    """Remove the client; who changed what remains."""
    service, name = _as_admin(request), request.path_params["name"]
    await _blocking(service, lambda: service.keeping.policies.remove(name, who=WHO))
    return Response(status_code=204)


@router.post(
    "/{name}/keys",
    summary="Make a new key and show it, this once; the others stay valid until they are revoked",
    status_code=201,
    response_model=NewKey,
    responses=_REFUSALS,
    openapi_extra=_NAME,
)
async def make_key(request: Request) -> Response:
    """Make a key beside those that there are."""
    service, name = _as_admin(request), request.path_params["name"]
    return _new_key(name, await _blocking(service, lambda: service.keeping.policies.rotate(name, keep=True, who=WHO)))


@router.delete(
    "/{name}/keys/{key_id}",
    summary="Revoke a key by its id",
    status_code=204,
    responses=_REFUSALS,
    openapi_extra={
        "parameters": [
            *_NAME["parameters"],
            {"name": "key_id", "in": "path", "required": True, "schema": {"type": "string"}},
        ]
    },
)
async def revoke(request: Request) -> Response:
    """Revoke one key."""
    service, name = _as_admin(request), request.path_params["name"]
    identifier = request.path_params["key_id"]
    await _blocking(service, lambda: service.keeping.policies.revoke(name, identifier, who=WHO))
    return Response(status_code=204)


def _as_admin(request: Request) -> Service:
    service = service_of(request)
    admit_admin(request, service)
    return service


async def _blocking(service: Service, work: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(service.keeping.executor, work)


async def _object(request: Request, service: Service) -> dict[str, Any]:
    try:
        content = orjson.loads(await read_body(request, service.settings))
    except orjson.JSONDecodeError as error:
        raise InvalidBody(f"The body is not JSON: {error}.", field="body", remedy="Send a JSON object.") from error
    if not isinstance(content, dict):
        raise InvalidBody("The body is no JSON object.", field="body", remedy='Send one, such as {"alpha": 1.5}.')
    return content


_NAMES: TypeAdapter[str] = TypeAdapter(ClientName)


def _name(value: object) -> str:
    try:
        return _NAMES.validate_python(value)
    except ValidationError as error:
        raise InvalidParameter(
            "A client needs a name of up to 64 letters, digits, '.', '_' and '-', the first a letter or a digit.",
            field="name",
            value=value if isinstance(value, str) else None,
            remedy="Send another name.",
        ) from error


def _fitting(content: dict[str, Any], service: Service) -> ClientPolicy:
    policy = read_policy(content)
    fit(policy, service.model.manifest, service.settings.max_prior_strength)
    return policy


def _shown(client: Client) -> dict[str, Any]:
    return {
        "name": client.name,
        "policy": client.policy.model_dump(mode="json"),
        "created_at": client.created_at,
        "keys": [asdict(key) for key in client.keys],
    }


def _new_key(name: str, key: str) -> Response:
    return _json({"name": name, "key": key, "key_id": key_id(hash_key(key))}, 201)


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
