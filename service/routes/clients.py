"""`/clients`: who may ask, on what terms, with which keys. For the operator alone; a client may see its trade-off."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
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
from service.objectives import parse_objective
from service.policy_store import Client, read_policy
from service.repeats import refuse_repeated_keys
from service.routes.access import admit_admin, bearer, caller_of, is_admin
from service.routes.context import PlainRoute, Service, service_of
from service.routes.failures import documented
from service.routes.forms import query_parameters, read_body
from service.schemas import ClientDetails, ClientInfo, ClientsResponse, NewClient, NewKey, TradeoffResponse
from service.scoring import Knobs
from service.tune import Which
from service.tuning import Study

router = APIRouter(route_class=PlainRoute, prefix="/clients")

WHO = "http:admin"
CHANGED_BY = "X-Changed-By"
"""The header in which whoever has the operator's key may say who they are; it is taken at its word."""

_LONGEST_WHO = 100

_WHICH: dict[str, Which] = {"alpha": "alpha", "both": "both"}

Result = TypeVar("Result")

_NAME = {
    "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}],
}
_REFUSALS = documented(400, 401, 403, 404, 409, 413, 415, 422, 503)


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
    key = await _blocking(service, lambda: service.keeping.policies.add(name, policy, who=_who(request)))
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
    await _blocking(service, lambda: policies.set(name, changes, who=_who(request)))
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
    await _blocking(service, lambda: service.keeping.policies.remove(name, who=_who(request)))
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
    return _new_key(
        name, await _blocking(service, lambda: service.keeping.policies.rotate(name, keep=True, who=_who(request)))
    )


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
    await _blocking(service, lambda: service.keeping.policies.revoke(name, identifier, who=_who(request)))
    return Response(status_code=204)


@router.get(
    "/{name}/tradeoff",
    summary="What a client's labels say of its knobs",
    response_model=TradeoffResponse,
    responses=documented(401, 403, 404, 409, 422, 429, 503),
    openapi_extra={
        "parameters": [
            *_NAME["parameters"],
            {
                "name": "objective",
                "in": "query",
                "schema": {"type": "string", "default": "balanced"},
                "description": "overall, balanced, many=1,medium=1,few=2, or few>=0.4 then overall",
            },
            {"name": "knobs", "in": "query", "schema": {"enum": ["alpha", "both"], "default": "alpha"}},
        ]
    },
)
async def tradeoff(request: Request) -> Response:
    """Answer the operator, or the client itself, with the exact accuracy over alpha and the best knobs."""
    service, name = service_of(request), request.path_params["name"]
    if bearer(request) is None or is_admin(request, service) or caller_of(request, service).name != name:
        admit_admin(request, service)
    given = query_parameters(request, "objective", "knobs")
    objective = parse_objective(given.get("objective", "balanced"))
    which = _which(given.get("knobs", "alpha"))
    found = await service.keeping.studies.of(name, objective, which, service.model.manifest.version)
    return _json(_study(found, objective.text))


def _which(text: str) -> Which:
    if text not in _WHICH:
        raise InvalidParameter("knobs must be alpha or both.", field="knobs", value=text, remedy="Send one of them.")
    return _WHICH[text]


def _study(found: Study, objective: str) -> dict[str, Any]:
    content = {
        "client": found.client,
        "model_version": found.model,
        "objective": objective,
        "labels": found.labels,
        "keep": found.keep,
        "current": None if found.current is None else _knobs(found.current),
    }
    if found.tuning is None:
        return content
    tuning, curve = found.tuning, found.tuning.curve
    groups = {name: steps.tolist() for name, steps in curve.by_group.items()}
    return content | {
        "labels_by_group": tuning.by_group,
        "best": _knobs(tuning.best),
        "before": tuning.before,
        "after": tuning.after,
        "floors": {
            name: asdict(floor) | {"met_before": floor.met_before, "met_after": floor.met_after}
            for name, floor in tuning.floors.items()
        },
        "alpha_interval": tuning.alpha_interval,
        "prior_strength_interval": tuning.strength_interval,
        "gain": tuning.gain,
        "gain_interval": tuning.gain_interval,
        "expected_gain": tuning.expected_gain,
        "curve": {
            "minimum": curve.low,
            "maximum": curve.high,
            "breakpoints": curve.breakpoints.tolist(),
            "overall": curve.overall.tolist(),
            "balanced": curve.balanced.tolist(),
            **groups,
        },
    }


def _knobs(knobs: Knobs) -> dict[str, float]:
    return {"alpha": knobs.alpha, "prior_strength": knobs.prior_strength}


def _as_admin(request: Request) -> Service:
    service = service_of(request)
    admit_admin(request, service)
    return service


def _who(request: Request) -> str:
    who = request.headers.get(CHANGED_BY)
    if who is None:
        return WHO
    with suppress(UnicodeError):  # headers are read as Latin-1; terminals send UTF-8
        who = who.encode("latin-1").decode("utf-8")
    if not 0 < len(who) <= _LONGEST_WHO or not who.isprintable():
        raise InvalidParameter(
            f"{CHANGED_BY} takes from 1 to {_LONGEST_WHO} printable characters.",
            field=CHANGED_BY,
            value=who[:_LONGEST_WHO],
            remedy="Send the name of whoever makes the change, or leave the header out.",
        )
    return f"{WHO}:{who}"


async def _blocking(service: Service, work: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(service.keeping.executor, work)


async def _object(request: Request, service: Service) -> dict[str, Any]:
    try:
        content = orjson.loads(body := await read_body(request, service.settings))
    except orjson.JSONDecodeError as error:
        raise InvalidBody(f"The body is not JSON: {error}.", field="body", remedy="Send a JSON object.") from error
    if not isinstance(content, dict):
        raise InvalidBody("The body is no JSON object.", field="body", remedy='Send one, such as {"alpha": 1.5}.')
    refuse_repeated_keys(body)
    return content


_NAMES: TypeAdapter[str] = TypeAdapter(ClientName)


def _name(value: object) -> str:
    try:
        return _NAMES.validate_python(value)
    except ValidationError as error:
        raise InvalidParameter(
            "A client needs a name of up to 64 letters, digits, '.', '_' and '-', the first a letter or a digit; "
            "'anonymous' and 'other' stand for others in the metrics.",
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
