"""What OpenAPI says of the Open Inference Protocol's paths: path parameters and the request. No behaviour."""

from typing import Any

from service.inference_schemas import InferRequest
from service.routes.patience import PARAMETER


def _in_path(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "description": description}


BINARY: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
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


_HEADER_LENGTH: dict[str, Any] = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "required": False,
    "schema": {"type": "integer", "minimum": 1},
    "description": "bytes of the body that are JSON, where those of binary tensors follow",
}
INFER_MODEL: dict[str, Any] = {"parameters": [*MODEL["parameters"], PARAMETER, _HEADER_LENGTH]}
INFER_VERSION: dict[str, Any] = {"parameters": [*VERSION["parameters"], PARAMETER, _HEADER_LENGTH]}
INFER: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The protocol's JSON; the bytes of binary tensors follow where Inference-Header-Content-Length "
        "says that it ends before the body.",
        "content": {
            "application/json": {"schema": _schema_in_one_piece()},
            **BINARY,
        },
    },
}
