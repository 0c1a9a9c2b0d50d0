"""`GET /changes`: who changed which client, when, from what to what. For the operator; entries outlive their client."""

import asyncio
from dataclasses import asdict

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.routes.access import admit_admin
from service.routes.context import PlainRoute, service_of
from service.routes.failures import documented
from service.schemas import ChangesResponse

router = APIRouter(route_class=PlainRoute)


@router.get(
    "/changes",
    summary="The newest changes of all clients or of one, removed ones too",
    response_model=ChangesResponse,
    responses=documented(401, 403, 503),
    openapi_extra={"parameters": [{"name": "client", "in": "query", "schema": {"type": "string"}}]},
)
async def changes(request: Request) -> Response:
    """Answer with the newest changes, the newest first."""
    service = service_of(request)
    admit_admin(request, service)
    policies, name = service.keeping.policies, request.query_params.get("client")
    found = await asyncio.get_running_loop().run_in_executor(service.keeping.executor, policies.changes, name)
    return Response(orjson.dumps({"changes": [asdict(each) for each in found]}), media_type="application/json")
