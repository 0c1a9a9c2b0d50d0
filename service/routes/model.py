"""`GET /model`: what is served, and which knobs it has. `GET /`: where everything is."""

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.routes.context import PlainRoute, service_of
from service.schemas import ModelResponse

router = APIRouter(route_class=PlainRoute)

_PUBLIC = {"name", "version", "task", "classes", "input", "tde", "alpha"}


@router.get("/model", summary="The model, its classes and its range of alpha", response_model=ModelResponse)
async def model(request: Request) -> Response:
    """Answer with the manifest's public part: no provenance, no files."""
    service = service_of(request)
    content = service.model.manifest.model_dump(mode="json", include=_PUBLIC)
    content["max_prior_strength"] = service.settings.max_prior_strength
    content |= {"provider": service.model.provider, "precision": service.model.precision}
    return Response(orjson.dumps(content), media_type="application/json")


@router.get("/", include_in_schema=False)
async def index(request: Request) -> Response:
    """Answer with the way to everything else."""
    paths = {"predict": "/predict", "model": "/model", "metrics": "/metrics", "openapi": "/openapi.json"}
    return JSONResponse({"service": "evenkeel", **paths, "docs": "/docs"})
