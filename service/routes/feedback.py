"""`POST /feedback`: the true classes of predictions, late and repeatedly. Answers once they are durable."""

from functools import partial
from operator import itemgetter
from time import monotonic
from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from service.errors import InvalidBody, InvalidParameter
from service.feedback import Label
from service.repeats import refuse_repeated_keys
from service.routes.access import caller_of, is_admin
from service.routes.context import PlainRoute, service_of
from service.routes.failures import documented
from service.routes.forms import first_problem, off_the_schema, query_parameters, read_body
from service.routes.long_bodies import read_aside
from service.schemas import LONGEST_LABEL, FeedbackItem, FeedbackResponse

router = APIRouter(route_class=PlainRoute)

MOST_LABELS = 1000
_MOST_MARKS = MOST_LABELS * (LONGEST_LABEL + 4)
"""Commas, or brackets of a kind, in so many labels, be there nothing else in their names."""
_MOST_QUOTES = MOST_LABELS * 8
"""Around names and values; those within a text are escaped."""
_MOST_BYTES = MOST_LABELS * (12 * (LONGEST_LABEL + 64) + 100)
"""Of so many, be every character of them escaped."""
_SHORT = 65_536
"""Bytes that take no longer to read than the way to another thread."""

_ITEM = TypeAdapter(FeedbackItem)
_OF_A_DETECTOR = " The model that is served is a detector, whose answers take no feedback."

_DESCRIPTION = f"""\
Send one object or a list of up to {MOST_LABELS}. `label` is the class by name or by index; a later label of the same
prediction replaces the earlier, in one request too: `accepted` counts both, the last is kept. Labels that are not
accepted are named one by one, those of another form (`malformed`) too unless all are; the others are kept. The answer
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
    responses=documented(400, 401, 408, 413, 415, 422, 429, 503),
    openapi_extra=_BODY,
)
async def feedback(request: Request) -> Response:
    """Keep the labels and answer which."""
    service = service_of(request)
    client = None if is_admin(request, service) else caller_of(request, service).name
    query_parameters(request)
    body = await read_body(request, service.settings)
    if len(body) <= _SHORT:
        labels, malformed = _read(body)
    else:
        deadline = monotonic() + service.settings.request_timeout
        labels, malformed = await read_aside(partial(_read, body), request, service, deadline)
    positions = list(labels)
    receipt = await service.keeping.feedback.accept(list(labels.values()), client)
    hint = _OF_A_DETECTOR if service.model.manifest.task == "detection" else ""
    refused = malformed + [
        {
            "position": positions[each.position],
            "prediction_id": each.label.prediction,
            "label": each.label.label,
            "code": each.code,
            "message": each.message + hint * (each.code == "unknown_prediction"),
        }
        for each in receipt.refused
    ]
    refused.sort(key=itemgetter("position"))
    return Response(orjson.dumps({"accepted": receipt.accepted, "refused": refused}), media_type="application/json")


def _read(body: bytes) -> tuple[dict[int, Label], list[dict[str, Any]]]:
    """Return the labels by their position, and the refusals of those that are of another form.

    Raises:
        InvalidBody: it is no JSON, or holds none or too many.
        InvalidParameter: not one of them is a label, or a key comes twice.
    """
    # To find out by reading them holds everyone up.
    quotes = body.count(b'"') - body.count(b'\\"')
    if max(map(body.count, (b",", b"[", b"{"))) > _MOST_MARKS or quotes > _MOST_QUOTES or len(body) > _MOST_BYTES:
        raise InvalidBody(
            f"The body holds more than {MOST_LABELS} labels can.",
            field="body",
            remedy="Send at most so many, and of each its prediction_id and label alone.",
        )
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidBody(f"The body is not JSON: {error}.", field="body", remedy="Send what the docs show.") from error
    items = content if isinstance(content, list) else [content]
    if not 1 <= len(items) <= MOST_LABELS:
        raise _wrong_number(len(items))
    refuse_repeated_keys(body)
    labels, malformed = {}, []
    for position, item in enumerate(items):
        try:
            read = _ITEM.validate_python(item)
            labels[position] = Label(read.prediction_id, read.label)
        except ValidationError as error:
            reason = _reason(error)
            if len(items) == 1:
                raise reason from error
            malformed.append(_malformed(position, item, reason.message))
    if not labels:
        raise InvalidParameter(
            "Not one of these is a label.",
            field="body",
            remedy=f"The first: {malformed[0]['message']} Send what the docs show.",
        )
    return labels, malformed


def _wrong_number(count: int) -> InvalidBody:
    return InvalidBody(
        f"The body must hold from 1 to {MOST_LABELS} labels.",
        field="body",
        value=count,
        remedy="Send a label, or a list of some; more than that in several requests.",
    )


def _reason(error: ValidationError) -> InvalidBody | InvalidParameter:
    first = first_problem(error)
    if first["loc"][:1] != ("label",) or first["type"] == "missing":
        return off_the_schema(first)
    return InvalidParameter(
        f"label must be a class's name of at most {LONGEST_LABEL} characters or its index, a whole number.",
        field="label",
        value=first["input"] if isinstance(first["input"], str | int | float | bool) else None,
        remedy="Send one of the names that GET /model lists, or its place there, from 0.",
    )


def _malformed(position: int, item: object, message: str) -> dict[str, Any]:
    """Return the refusal of one that is no label, with what can be shown of it."""
    given = item if isinstance(item, dict) else {}
    prediction, label = given.get("prediction_id"), given.get("label")
    return {
        "position": position,
        "prediction_id": prediction[:64] if isinstance(prediction, str) else None,
        "label": label[:LONGEST_LABEL] if isinstance(label, str) else label if type(label) is int else None,
        "code": "malformed",
        "message": message,
    }
