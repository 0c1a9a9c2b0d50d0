"""From an inference request of the Open Inference Protocol to one `InferQuery`.

Inputs and outputs are the bundle's contract: `image`, and where wanted its knobs, which may also be parameters of the
whole request. Nothing is guessed: what is unknown, repeated, malformed or out of range is
refused with its name, the value and the remedy. It knows neither the queue nor the answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidParameter, Value
from service.repeats import repeated
from service.routes.infer_contract import SIZES, InferContract
from service.routes.rules import Rules
from service.scoring import Knobs
from service.tensors import BinaryParts, JsonObject, Shape, as_json, read_tensor, split_message

_REQUEST_KEYS: Final = {"id", "inputs", "outputs", "parameters"}
_PARAMETERS: Final = {"binary_data_output", "timeout"}
_REMEDY: Final = "See the model's metadata and GET /openapi.json."
_LARGEST_JSON: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output to send; `classes` is the length of its ranking, 0 for the numbers themselves."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class InferQuery:
    """A whole request: N images uint8 [N, H, W, 3] with their knobs, and what to send back.

    Attributes:
        sizes: of a detector, height and width of the picture in each image, [N, 2]; None: not said.
        timeout: seconds that the client waits at most; None: as long as the settings say.
    """

    id: str | None
    images: NDArray[np.uint8]
    sizes: NDArray[np.float32] | None
    knobs: list[Knobs]
    outputs: list[RequestedOutput]
    timeout: float | None


def read_infer(
    body: bytes | memoryview, header_length: str | None, *, rules: Rules, contract: InferContract
) -> InferQuery:
    """Read and check a whole inference request.

    Args:
        body: the request's body.
        header_length: the header `Inference-Header-Content-Length`, None where there is none.
        rules: what a request may ask.
        contract: the model's tensors.

    Raises:
        InvalidBody, InvalidParameter, TooManyImages
    """
    message, rest = split_message(body, header_length)
    _refuse_unknown(message, _REQUEST_KEYS, "request")
    identity = message.get("id")
    if identity is not None and not isinstance(identity, str):
        raise _wrong("id", "must be a string")
    parameters = _options(message, "parameters")
    _refuse_unknown(parameters, {*contract.knobs, *_PARAMETERS}, "parameters")
    parts = BinaryParts(rest)
    tensors = _inputs(message.get("inputs"), parts, rules, contract)
    parts.refuse_rest()
    images: NDArray[np.uint8] = tensors["image"]
    alphas, strengths = (_knob(name, tensors, parameters, len(images), rules) for name in ("alpha", "prior_strength"))
    requested = _outputs(message.get("outputs"), parameters, contract, rules)
    _refuse_long_json(requested, contract, len(images))
    knobs = [rules.chosen(*pair) for pair in zip(alphas, strengths, strict=True)]
    sizes = tensors.get(SIZES)
    _refuse_sizes_beyond(sizes, images)
    return InferQuery(identity, images, sizes, knobs, requested, _timeout(parameters))


def _refuse_sizes_beyond(sizes: NDArray[np.float32] | None, images: NDArray[np.uint8]) -> None:
    if sizes is None:
        return
    largest = images.shape[1:3]
    for position, size in enumerate(sizes.tolist()):
        if not all(1 <= number <= most and number == int(number) for number, most in zip(size, largest, strict=True)):
            field = f"{SIZES}[{position}]"
            raise _wrong(field, f"must be whole numbers from 1 to {largest[0]} and {largest[1]}", str(size))


def _inputs(inputs: object, parts: BinaryParts, rules: Rules, contract: InferContract) -> dict[str, NDArray[Any]]:
    names = ", ".join(contract.inputs)
    if not isinstance(inputs, list) or not inputs:
        raise _wrong("inputs", f"must be a list of the tensors wanted of {names}, image among them")
    tensors: dict[str, NDArray[Any]] = {}
    count: int | None = None
    for position, each in enumerate(inputs):
        tensor = _object(each, f"inputs[{position}]")
        name = tensor.get("name")
        if not isinstance(name, str) or name not in contract.inputs:
            raise _wrong(f"inputs[{position}].name", f"must be one of {names}", name)
        if name in tensors:
            raise repeated(name, "a tensor")
        _refuse_unknown(tensor, {"name", "datatype", "shape", "data", "parameters"}, f"inputs[{position}]")
        datatype, row = contract.inputs[name]
        if tensor.get("datatype") != datatype:
            raise _wrong(f"{name}.datatype", f"must be {datatype}", tensor.get("datatype"))
        shape = _shape(tensor.get("shape"), row, name, rules)
        if count not in {None, shape[0]}:
            raise _wrong(f"{name}.shape", f"must begin with {count}, as the inputs before it", shape[0])
        count = shape[0]
        tensors[name] = read_tensor(tensor, parts, datatype=datatype, shape=shape, field=name)
    if "image" not in tensors:
        raise _wrong("inputs", "lacks image")
    return tensors


def _shape(shape: object, row: Shape, name: str, rules: Rules) -> Shape:
    """Return the shape if it is that of N rows; a knob may also come as [N, 1], as Triton has it."""
    allowed = [row] if row else [(), (1,)]
    whole = isinstance(shape, list) and all(type(length) is int for length in shape) and shape and shape[0] > 0
    if not whole or tuple(shape[1:]) not in allowed:  # type: ignore[index]
        expected = ["N", *row]
        raise _wrong(f"{name}.shape", f"must be [{', '.join(map(str, expected))}] with N of at least 1", shape)
    rules.refuse_too_many(shape[0])  # type: ignore[index]
    return tuple(shape)  # type: ignore[arg-type]


def _knob(
    name: str, tensors: Mapping[str, NDArray[Any]], parameters: JsonObject, count: int, rules: Rules
) -> list[float | None]:
    """Return a knob for each picture: its tensor's, the request's parameter, or None."""
    check, value = partial(rules.knob, name), parameters.get(name)
    if name in tensors and value is not None:
        raise repeated(name, str(value))
    if name in tensors:
        values = tensors[name].reshape(-1).tolist()
        # A client that sends its bound, 0.1 say, sends the next FP32 to it, which may lie beyond.
        bounds = {float(np.float32(bound)): bound for bound in rules.bounds(name)}
        return [check(bounds.get(value, value), f"{name}[{position}]") for position, value in enumerate(values)]
    if value is None:
        return [None] * count
    if type(value) not in {int, float}:
        raise _wrong(f"parameters.{name}", "must be a number", value)
    return [check(float(value), f"parameters.{name}")] * count


def _outputs(requested: object, parameters: JsonObject, contract: InferContract, rules: Rules) -> list[RequestedOutput]:
    outputs = contract.outputs
    binary = _switch(parameters, "binary_data_output", "parameters", default=False)
    if requested is None or requested == []:
        return [RequestedOutput(name, binary) for name in outputs if name not in contract.on_request]
    if not isinstance(requested, list):
        raise _wrong("outputs", "must be a list")
    chosen: list[RequestedOutput] = []
    for position, each in enumerate(requested):
        output = _object(each, f"outputs[{position}]")
        _refuse_unknown(output, {"name", "parameters"}, f"outputs[{position}]")
        name = output.get("name")
        if not isinstance(name, str) or name not in outputs:
            raise _wrong(f"outputs[{position}].name", f"must be one of {', '.join(outputs)}", name)
        if any(name == other.name for other in chosen):
            raise repeated(name, "an output")
        options = _options(output, f"{name}.parameters")
        _refuse_unknown(options, {"binary_data", "classification"}, f"{name}.parameters")
        as_bytes = _switch(options, "binary_data", f"{name}.parameters", default=binary)
        chosen.append(RequestedOutput(name, as_bytes, _classes(options, name, contract, rules)))
    return chosen


def _classes(options: JsonObject, name: str, contract: InferContract, rules: Rules) -> int:
    wanted = options.get("classification")
    if wanted is None:
        return 0
    field = f"{name}.parameters.classification"
    if name not in contract.ranked:
        raise _wrong(field, f"is only had of {', '.join(contract.ranked) or 'a classifier'}", wanted)
    if type(wanted) is not int:
        raise _wrong(field, "must be a whole number", wanted)
    return rules.top_k(wanted, field)


def _refuse_long_json(requested: list[RequestedOutput], contract: InferContract, count: int) -> None:
    """Refuse to write as text what would keep everyone else waiting."""
    for output in requested:
        numbers = count * abs(int(np.prod(contract.outputs[output.name].row)))
        if not (output.binary or output.classes) and numbers > _LARGEST_JSON:
            raise _wrong(output.name, f"for {count} images has more than {_LARGEST_JSON} numbers: too long for JSON")


def _timeout(parameters: JsonObject) -> float | None:
    """Return the protocol's timeout, which is in microseconds, in seconds."""
    value = parameters.get("timeout")
    if value is None:
        return None
    if type(value) is not int or not 0 < value < 2**63:
        raise _wrong("parameters.timeout", "must be a whole number of microseconds above 0", value)
    return value / 1e6


def _switch(options: JsonObject, name: str, field: str, *, default: bool) -> bool:
    value = options.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _wrong(f"{field}.{name}", "must be true or false", value)
    return value


def _options(of: JsonObject, field: str) -> JsonObject:
    """Return the object's parameters; null is none, as clients write what they have not set."""
    parameters = of.get("parameters")
    return {} if parameters is None else _object(parameters, field)


def _object(value: object, field: str) -> JsonObject:
    if not isinstance(value, dict):
        raise _wrong(field, "must be a JSON object", value)
    return value


def _refuse_unknown(given: JsonObject, known: set[str], field: str) -> None:
    if unknown := sorted(given.keys() - known):
        raise _wrong(
            f"{field}.{unknown[0]}", f"is unknown; {field} takes {', '.join(sorted(known))}", given[unknown[0]]
        )


def _wrong(field: str, what: str, value: object = None) -> InvalidParameter:
    shown: Value = value if isinstance(value, str | int | float | bool | None) else as_json(value)
    return InvalidParameter(f"{field} {what}.", field=field, value=shown, remedy=_REMEDY)
