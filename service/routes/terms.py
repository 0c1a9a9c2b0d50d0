"""`GET /terms`: what the bearer of this key may ask of the model that is served. It changes nothing."""

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.routes.access import caller_of, rules_for
from service.routes.context import PlainRoute, service_of
from service.routes.failures import documented
from service.schemas import TermsResponse

router = APIRouter(route_class=PlainRoute)


@router.get(
    "/terms",
    summary="The defaults and bounds of both knobs for whoever asks",
    response_model=TermsResponse,
    responses=documented(401, 409, 503),
)
async def terms(request: Request) -> Response:
    """Answer a client with the terms that its requests meet, and others with anyone's."""
    service = service_of(request)
    found = rules_for(caller_of(request, service), service).terms
    content = {
        "alpha": {"minimum": found.alpha_min, "maximum": found.alpha_max, "default": found.alpha},
        "prior_strength": {"minimum": 0.0, "maximum": found.max_prior_strength, "default": found.prior_strength},
    }
    return Response(orjson.dumps(content), media_type="application/json")
