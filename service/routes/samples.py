"""`GET /samples`: pictures to try the model with; `GET /samples/{number}.png`: one of them."""

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import NotFound
from service.routes.context import PlainRoute, service_of
from service.routes.failures import documented
from service.routes.files import ASK_FIRST, file
from service.schemas import SamplesResponse

router = APIRouter(route_class=PlainRoute)


@router.get("/samples", summary="Pictures to try the model with", response_model=SamplesResponse)
async def samples(request: Request) -> Response:
    """Answer with the samples' paths, and their true classes where the bundle says them."""
    service = service_of(request)
    content = [
        {
            "path": f"samples/{number}.png",
            "truth": None if sample.truth is None else service.answers.reference(sample.truth),
        }
        for number, sample in enumerate(service.exhibits.samples)
    ]
    return Response(orjson.dumps({"samples": content}), media_type="application/json")


@router.get(
    "/samples/{number}.png",
    summary="One of them, as the model sees it",
    response_class=Response,
    responses={200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}, **documented(404)},
    openapi_extra={
        "parameters": [{"name": "number", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}]
    },
)
async def sample(request: Request) -> Response:
    """Answer with the picture's file."""
    number, pictures = request.path_params["number"], service_of(request).exhibits.samples
    if not (number.isascii() and number.isdigit() and len(number) < 10 and int(number) < len(pictures)):
        raise NotFound(
            "There is no such sample.",
            field="number",
            value=number,
            remedy=f"There are {len(pictures)} samples, counted from 0; GET /samples lists them.",
        )
    return file(request, pictures[int(number)].png, "image/png", keep=ASK_FIRST)
