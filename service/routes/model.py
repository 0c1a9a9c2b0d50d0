"""`GET /model`: what is served, and which knobs it has. `GET /model/evaluation`: how good it was on test pictures."""

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.routes.context import PlainRoute, service_of
from service.schemas import EvaluationResponse, ModelResponse

router = APIRouter(route_class=PlainRoute)

_PUBLIC = {"name", "version", "task", "classes", "input", "tde", "alpha", "calibration", "detection"}


@router.get("/model", summary="The model, its classes and its range of alpha", response_model=ModelResponse)
async def model(request: Request) -> Response:
    """Answer with the manifest's public part: no provenance, no files."""
    service = service_of(request)
    content = service.model.manifest.model_dump(mode="json", include=_PUBLIC)
    content["max_prior_strength"] = service.rules.terms.max_prior_strength
    content |= {"provider": service.model.provider, "precision": service.model.precision}
    return Response(orjson.dumps(content), media_type="application/json")


@router.get(
    "/model/evaluation",
    summary="The model's accuracy, or a detector's average precision, over alpha",
    response_model=EvaluationResponse,
)
async def evaluation(request: Request) -> Response:
    """Answer with the curves that the bundle brings; with nulls where it brings none."""
    exhibits = service_of(request).exhibits
    accuracy = exhibits.accuracy and exhibits.accuracy.model_dump(exclude_none=True)
    precision = exhibits.average_precision and exhibits.average_precision.model_dump()
    content = {"test_images": exhibits.test_images, "accuracy": accuracy, "average_precision": precision}
    return Response(orjson.dumps(content), media_type="application/json")
