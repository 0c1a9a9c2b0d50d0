"""What OpenAPI says of the Open Inference Protocol's paths: path parameters and the request. No behaviour."""

from typing import Any

from service.inference_schemas import InferRequest
from service.routes.patience import PARAMETER


def _in_path(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "description": description}


_NAME = _in_path("name", "the model's name, as GET /model says it")
MODEL: dict[str, Any] = {"parameters": [_NAME]}
VERSION: dict[str, Any] = {"parameters": [_NAME, _in_path("version", "the model's version, as GET /model says it")]}


def _schema_in_one_piece() -> dict[str, Any]:
    """Return the request's schema without references, which would point outside of where it stands."""
    schema = InferRequest.model_json_schema()
    definitions = schema.pop("$defs")

    def resolved(part: object) -> object:
        if isinstance(part, list):
            return [resolved(each) for each in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return resolved(definitions[part["$ref"].rpartition("/")[2]])
        return {key: resolved(value) for key, value in part.items()}

    return {key: resolved(value) for key, value in schema.items()}


INFER_MODEL: dict[str, Any] = {"parameters": [*MODEL["parameters"], PARAMETER]}
INFER_VERSION: dict[str, Any] = {"parameters": [*VERSION["parameters"], PARAMETER]}
INFER: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The protocol's JSON. With the header Inference-Header-Content-Length, which says how many "
        "bytes of the body are JSON, the bytes of binary tensors follow.",
        "content": {
            "application/json": {"schema": _schema_in_one_piece()},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
}
