"""What OpenAPI says of `POST /predict`: its three forms, its parameters, and an example of each. No behaviour."""

from typing import Any

from pydantic import BaseModel

from service.detection_schemas import DetectRequest
from service.routes.detection_rules import DEFAULT_DETECTIONS, DEFAULT_SCORE_THRESHOLD
from service.routes.forms import RAW_TYPES
from service.routes.patience import PARAMETER
from service.routes.rules import DEFAULT_TOP_K
from service.schemas import PredictRequest

DESCRIPTION = """\
Send a picture as the raw body, several as `multipart/form-data`, or base64 in JSON.

`alpha` chooses how far the answer leans away from the classes that were frequent in training: 0 is the plain
model, more favours rare classes; each picture may have its own. `prior_strength` subtracts as many times the
logarithm of each class's share of the training samples: 0 is none. Whatever is left out is the model's default
(`GET /model`), and the answer says so.

Which options there are and what the answer holds follow from the task of the model that is served (`task` in
`GET /model`); an option of the other task is refused.
"""

_NUMBER = {"type": "number"}


def _parameter(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def _switch(name: str, default: bool, description: str) -> dict[str, Any]:
    return _parameter(name, {"type": "boolean", "default": default}, description)


_PARAMETERS = [
    _parameter(
        "alpha", _NUMBER, "head-to-tail trade-off, within the client's range; default: the client's, else the model's"
    ),
    _parameter(
        "top_k",
        {"type": "integer", "minimum": 1},
        f"how many classes to name; default: {DEFAULT_TOP_K}. Of a detector: how many detections at most; default: "
        f"{DEFAULT_DETECTIONS}",
    ),
    _parameter(
        "prior_strength", _NUMBER | {"minimum": 0, "default": 0}, "classification: strength of the prior correction"
    ),
    _switch("breakpoints", False, "classification: list every alpha at which the winner changes"),
    _switch("lines", False, "classification: give both branch logits of every class"),
    _switch("explain", False, "classification: say where in the picture the logits come from"),
    _parameter(
        "score_threshold",
        _NUMBER | {"minimum": 0, "maximum": 1, "default": DEFAULT_SCORE_THRESHOLD},
        "detection: the lowest score that is answered",
    ),
    _switch("masks", True, "detection: give the pixels of each object; 413 where there would be too much of them"),
]

_PICTURE = {"schema": {"type": "string", "format": "binary"}}

_FORM = {
    "schema": {
        "type": "object",
        "required": ["image"],
        "properties": {
            "image": {
                "type": "array",
                "items": {"type": "string", "format": "binary"},
                "description": "one or more file parts",
            },
            "alpha": {"type": "array", "items": _NUMBER, "description": "none, one for all, or one for each image"},
            "prior_strength": {"type": "array", "items": _NUMBER, "description": "likewise"},
            "top_k": {"type": "integer"},
            "breakpoints": {"type": "boolean"},
            "lines": {"type": "boolean"},
            "explain": {"type": "boolean"},
            "score_threshold": _NUMBER,
            "masks": {"type": "boolean"},
        },
    },
    "encoding": {"image": {"contentType": ", ".join(RAW_TYPES)}},
    "examples": {
        "two pictures": {
            "summary": "curl -F image=@a.png -F image=@b.jpg -F alpha=0 -F alpha=1.5 URL/predict",
            "value": {"image": ["(the bytes of a.png)", "(the bytes of b.jpg)"], "alpha": [0, 1.5]},
        }
    },
}

_SMALLEST_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


def _schema_in_one_piece(body: type[BaseModel]) -> dict[str, Any]:
    """Return a JSON request's schema without references, which would point outside of where it stands."""
    schema = body.model_json_schema()
    (schema["properties"]["images"]["items"],) = schema.pop("$defs").values()
    return schema


_JSON = {
    "schema": {"anyOf": [_schema_in_one_piece(PredictRequest), _schema_in_one_piece(DetectRequest)]},
    "examples": {
        "one picture at two alphas": {
            "value": {
                "images": [{"data": _SMALLEST_PNG, "alpha": 0}, {"data": _SMALLEST_PNG, "alpha": 1.5}],
                "top_k": 3,
            }
        }
    },
}

OPENAPI: dict[str, Any] = {
    "parameters": [*_PARAMETERS, PARAMETER],
    "requestBody": {
        "required": True,
        "content": {
            **dict.fromkeys(RAW_TYPES, _PICTURE),
            "multipart/form-data": _FORM,
            "application/json": _JSON,
        },
    },
}
