"""`POST /feedback`: the true classes of predictions, late and repeatedly. Answers once they are durable."""

from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from service.errors import InvalidBody
from service.feedback import Label
from service.routes.access import caller_of, is_admin
from service.routes.context import PlainRoute, service_of
from service.routes.failures import documented
from service.routes.forms import off_the_schema, read_body
from service.schemas import FeedbackItem, FeedbackResponse

router = APIRouter(route_class=PlainRoute)

MOST_LABELS = 1000

_ITEMS = TypeAdapter(list[FeedbackItem])

_DESCRIPTION = f"""\
Send one object or a list of up to {MOST_LABELS}. `label` is the class by name or by index; a later label of the same
prediction replaces the earlier. Labels that are not accepted are named one by one; the others are kept. The answer
comes once they are durable: 503 means that none of them was kept.
"""

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        FeedbackItem.model_json_schema(),
                        {
                            "type": "array",
                            "items": FeedbackItem.model_json_schema(),
                            "minItems": 1,
                            "maxItems": MOST_LABELS,
                        },
                    ]
                },
                "example": [{"prediction_id": "0198f2d1c5a3b1946c3e52f1a7", "label": "class name"}],
            }
        },
    }
}


@router.post(
    "/feedback",
    summary="Say what predictions should have been",
    description=_DESCRIPTION,
    response_model=FeedbackResponse,
    responses=documented(400, 401, 408, 413, 422, 429, 503),
    openapi_extra=_BODY,
)
async def feedback(request: Request) -> Response:
    """Keep the labels and answer which."""
    service = service_of(request)
    client = None if is_admin(request, service) else caller_of(request, service).name
    labels = _read(await read_body(request, service.settings))
    receipt = await service.keeping.feedback.accept(labels, client)
    refused = [
        {
            "position": each.position,
            "prediction_id": each.label.prediction,
            "label": each.label.label,
            "code": each.code,
            "message": each.message,
        }
        for each in receipt.refused
    ]
    return Response(orjson.dumps({"accepted": receipt.accepted, "refused": refused}), media_type="application/json")


def _read(body: bytes) -> list[Label]:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidBody(f"The body is not JSON: {error}.", field="body", remedy="Send what the docs show.") from error
    try:
        items = _ITEMS.validate_python(content if isinstance(content, list) else [content])
    except ValidationError as error:
        raise off_the_schema(error) from error
    if not 1 <= len(items) <= MOST_LABELS:
        raise InvalidBody(
            f"The body must hold from 1 to {MOST_LABELS} labels.",
            field="body",
            value=len(items),
            remedy="Send them in several requests.",
        )
    return [Label(item.prediction_id, item.label) for item in items]
