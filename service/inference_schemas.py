"""The bodies of the Open Inference Protocol, version 2, as pydantic models: documentation of what is read and written.

Requests are read by `service.routes.infer_request`, whose refusals say more; the tests hold every answer against
these models.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.schemas import ErrorResponse


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class BinarySize(_Closed):
    """Says that a tensor's values follow the JSON as bytes."""

    binary_data_size: int = Field(ge=0, description="how many bytes")


class InferInput(_Closed):
    """An input tensor; its values in `data`, flat or nested, or as bytes after the JSON."""

    name: Literal["image", "alpha", "prior_strength", "image_size"]
    datatype: Literal["UINT8", "FP32"]
    shape: list[Annotated[int, Field(ge=1)]] = Field(
        description="image [N, height, width, 3]; the knobs [N] or [N, 1]; image_size, of a detector, [N, 2]"
    )
    data: list[Any] | None = None
    parameters: BinarySize | None = None


class OutputParameters(_Closed):
    """How an output is sent."""

    binary_data: bool | None = Field(None, description="as bytes after the JSON")
    classification: int | None = Field(None, ge=1, description="so many classes, as value:index:label")


class InferOutput(_Closed):
    """An output that is wanted."""

    name: str
    parameters: OutputParameters | None = None


class RequestParameters(_Closed):
    """What holds for the whole request."""

    alpha: float | None = None
    prior_strength: float | None = None
    binary_data_output: bool = Field(False, description="send outputs that do not say otherwise as bytes")
    timeout: int | None = Field(None, ge=1, description="microseconds that the client waits at most")


class InferRequest(_Closed):
    """An inference request; without `outputs` all are sent but the feature map."""

    id: str | None = None
    parameters: RequestParameters | None = None
    inputs: list[InferInput] = Field(min_length=1)
    outputs: list[InferOutput] | None = None


class OutputTensor(_Closed):
    """An output tensor; its values in `data`, flat, or as bytes after the JSON."""

    name: str
    datatype: Literal["FP32", "INT64", "BYTES"]
    shape: list[int]
    data: list[float] | list[str] | None = None
    parameters: BinarySize | None = None


class InferResponse(_Closed):
    """The answer to an inference request."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class TensorDescription(_Closed):
    """A tensor of the model; -1 is a length that is free."""

    name: str
    datatype: Literal["UINT8", "FP32", "INT64", "BYTES"]
    shape: list[int]


class ModelMetadataResponse(_Closed):
    """What goes into the model and what comes out."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorDescription]
    outputs: list[TensorDescription]


class ServerMetadataResponse(_Closed):
    """What is understood of the protocol."""

    name: str
    version: str
    extensions: list[str]


class LiveResponse(_Closed):
    """The process is alive."""

    live: Literal[True]


class ReadyResponse(_Closed):
    """Requests are welcome."""

    ready: Literal[True]


class ModelReadyResponse(ReadyResponse):
    """Requests to this model are welcome."""

    name: str


class ProtocolError(ErrorResponse):
    """The protocol's form of an error, and ours beside it."""

    error: str = Field(description="the message once more, where the protocol has it")
