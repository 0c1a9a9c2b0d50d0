"""`GET /changes`: who changed which client, when, from what to what. For the operator; entries outlive their client."""

import asyncio
import re
from dataclasses import asdict

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import InvalidParameter
from service.policy_store import CHANGES_SHOWN, MOST_CHANGES
from service.routes.access import admit_admin
from service.routes.context import PlainRoute, service_of
from service.routes.failures import documented
from service.routes.forms import query_parameters
from service.schemas import ChangesResponse

router = APIRouter(route_class=PlainRoute)


@router.get(
    "/changes",
    summary="The newest changes of all clients or of one, removed ones too",
    response_model=ChangesResponse,
    responses=documented(401, 403, 422, 503),
    openapi_extra={
        "parameters": [
            {"name": "client", "in": "query", "schema": {"type": "string"}},
            {
                "name": "limit",
                "in": "query",
                "schema": {"type": "integer", "minimum": 1, "maximum": MOST_CHANGES, "default": CHANGES_SHOWN},
            },
        ]
    },
)
async def changes(request: Request) -> Response:
    """Answer with the newest changes, the newest first."""
    service = service_of(request)
    admit_admin(request, service)
    given = query_parameters(request, "client", "limit")
    name, limit, policies = given.get("client"), _limit(given.get("limit")), service.keeping.policies
    found = await asyncio.get_running_loop().run_in_executor(service.keeping.executor, policies.changes, name, limit)
    return Response(orjson.dumps({"changes": [asdict(each) for each in found]}), media_type="application/json")


def _limit(text: str | None) -> int:
    if text is None:
        return CHANGES_SHOWN
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= MOST_CHANGES:
        raise InvalidParameter(
            f"limit must be a whole number from 1 to {MOST_CHANGES}.",
            field="limit",
            value=text,
            remedy="Send such a one.",
        )
    return int(text)
