"""The Open Inference Protocol, version 2: `/v2`, for clients that speak it already.

One model with one version, that of the bundle; JSON and the binary tensor extension, rankings (`classification`), and
this model's knobs as tensors or as parameters. The same queue, limits and errors as `/predict`, which knows pictures
where this knows pixels.

Source: KServe, *Open Inference Protocol*; NVIDIA, Triton's extensions for binary data and classification.
"""

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from time import monotonic, perf_counter
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.detection_predictor import DetectionPredictor, DetectionWork
from service.errors import NotFound, NotReady
from service.images import Sized
from service.inference_schemas import (
    InferResponse,
    LiveResponse,
    ModelMetadataResponse,
    ModelReadyResponse,
    ProtocolError,
    ReadyResponse,
    ServerMetadataResponse,
)
from service.long_lists import LONG
from service.predictor import AnyWork, Wants, Work
from service.routes.access import caller_of, rules_for, take
from service.routes.client_watch import ClientWatch
from service.routes.context import PlainRoute, Service, service_of
from service.routes.failures import documented
from service.routes.forms import query_parameters, read_buffer
from service.routes.infer_answer import HEADER_LENGTH, answer
from service.routes.infer_contract import Tensor, contract_of
from service.routes.infer_request import InferQuery, read_infer
from service.routes.inference_docs import BINARY, INFER, INFER_MODEL, INFER_VERSION, MODEL, VERSION
from service.routes.long_bodies import read_aside
from service.routes.patience import patience
from service.routes.rules import Rules
from service.telemetry import Times, note_times
from service.tensors import json_length

router = APIRouter(prefix="/v2", route_class=PlainRoute, tags=["Open Inference Protocol"])


@router.get("", summary="The server and its extensions", response_model=ServerMetadataResponse)
async def server_metadata(request: Request) -> Response:
    """Answer with what is understood of the protocol."""
    is_classifier = service_of(request).model.manifest.task == "classification"
    extensions = ["binary_tensor_data", *(["classification"] if is_classifier else []), "parameters"]
    return _json({"name": "evenkeel", "version": version("evenkeel"), "extensions": extensions})


@router.get("/health/live", summary="Is the process alive?", response_model=LiveResponse)
async def live(request: Request) -> Response:
    """Answer as long as the event loop turns."""
    return _json({"live": True})


@router.get(
    "/health/ready",
    summary="Are requests welcome?",
    response_model=ReadyResponse,
    responses=documented(503, model=ProtocolError),
)
async def ready(request: Request) -> Response:
    """Answer 200 while requests are welcome."""
    _refuse_unless_ready(service_of(request))
    return _json({"ready": True})


@router.get(
    "/models/{name}",
    summary="The model's inputs and outputs",
    response_model=ModelMetadataResponse,
    responses=documented(404, model=ProtocolError),
    openapi_extra=MODEL,
)
@router.get(
    "/models/{name}/versions/{version}",
    summary="The inputs and outputs of a version of the model",
    response_model=ModelMetadataResponse,
    responses=documented(404, model=ProtocolError),
    openapi_extra=VERSION,
)
async def model_metadata(request: Request) -> Response:
    """Answer with names, types and shapes; -1 is a length that is free."""
    service = _model(request)
    manifest, contract = service.model.manifest, contract_of(service.predictor)
    return _json(
        {
            "name": manifest.name,
            "versions": [manifest.version],
            "platform": "onnxruntime_onnx",
            "inputs": [_described(name, tensor) for name, tensor in contract.inputs.items()],
            "outputs": [_described(name, tensor) for name, tensor in contract.outputs.items()],
        }
    )


@router.get(
    "/models/{name}/ready",
    summary="Are requests to this model welcome?",
    response_model=ModelReadyResponse,
    responses=documented(404, 503, model=ProtocolError),
    openapi_extra=MODEL,
)
@router.get(
    "/models/{name}/versions/{version}/ready",
    summary="Are requests to this version of the model welcome?",
    response_model=ModelReadyResponse,
    responses=documented(404, 503, model=ProtocolError),
    openapi_extra=VERSION,
)
async def model_ready(request: Request) -> Response:
    """Answer 200 while requests are welcome."""
    service = _model(request)
    _refuse_unless_ready(service)
    return _json({"name": service.model.manifest.name, "ready": True})


_INFER: dict[str, Any] = {
    "response_model": InferResponse,
    "responses": {
        200: {"content": BINARY},
        **documented(400, 401, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504, model=ProtocolError),
    },
}


@router.post("/models/{name}/infer", summary="Run the model", openapi_extra=INFER_MODEL | INFER, **_INFER)
@router.post(
    "/models/{name}/versions/{version}/infer",
    summary="Run this version of the model",
    openapi_extra=INFER_VERSION | INFER,
    **_INFER,
)
async def infer(request: Request) -> Response:
    """Answer an inference request, in JSON or with binary tensors."""
    begin, arrived = perf_counter(), monotonic()
    service = _model(request)
    longest = patience(request, service.settings)
    caller = caller_of(request, service)
    rules = rules_for(caller, service)
    query_parameters(request)
    body = await read_buffer(request, service.settings)
    decoding = perf_counter()
    query = await _read(request, body, service, rules, arrived + longest)
    decoded = perf_counter()
    deadline = arrived + min(query.timeout or longest, longest)
    with service.batcher.admit(len(query.images), deadline=deadline) as admission:
        take(caller, len(query.images), service)
        watch = ClientWatch(request, admission)
        try:
            rows = await admission.run(_works(query, service), when_long=watch.begin)
        finally:
            watch.end()
    response = await answer(query, rows, service, caller, rules)
    times = Times(decoded - decoding, *admission.seconds, perf_counter() - begin)
    service.metrics.decode_seconds.observe(times.decode)
    service.metrics.total_seconds.observe(times.total)
    note_times(times)
    return response


async def _read(
    request: Request, body: bytes | memoryview, service: Service, rules: Rules, deadline: float
) -> InferQuery:
    length = request.headers.get(HEADER_LENGTH)
    read = partial(read_infer, body, length, rules=rules, contract=contract_of(service.predictor))
    is_long = json_length(body, length) > LONG
    return await read_aside(read, request, service, deadline) if is_long else read()


def _works(query: InferQuery, service: Service) -> Sequence[AnyWork]:
    by = service.predictor
    if isinstance(by, DetectionPredictor):
        return _detection_works(query, by)
    with_map = any(output.name == "feature_map" for output in query.outputs)
    wants: Wants = "feature_map" if with_map else "tensors"
    return [Work(by, pixels, knobs, wants) for pixels, knobs in zip(query.images, query.knobs, strict=True)]


def _detection_works(query: InferQuery, by: DetectionPredictor) -> list[DetectionWork]:
    count, height, width, _ = query.images.shape
    sizes = [[height, width]] * count if query.sizes is None else query.sizes.astype(int).tolist()
    parts = [(across, down) for down, across in sizes]
    pictures = [Sized(pixels, part, part) for pixels, part in zip(query.images, parts, strict=True)]
    return [DetectionWork(by, picture, knobs.alpha, None) for picture, knobs in zip(pictures, query.knobs, strict=True)]


def _described(name: str, tensor: Tensor) -> dict[str, Any]:
    return {"name": name, "datatype": tensor.datatype, "shape": [-1, *tensor.row]}


def _model(request: Request) -> Service:
    """Return the service if the path names its model, and its version where it names one."""
    service, named = service_of(request), request.path_params
    manifest = service.model.manifest
    for field, there in (("name", manifest.name), ("version", manifest.version)):
        if named.get(field, there) != there:
            raise NotFound(
                f"The model served is {manifest.name}, version {manifest.version}.",
                field=field,
                value=named[field],
                remedy=f"Ask for {there}.",
            )
    return service


def _refuse_unless_ready(service: Service) -> None:
    if service.readiness.reason is not None:
        raise NotReady(service.readiness.reason, remedy="Send requests to another instance, or come back later.")


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
