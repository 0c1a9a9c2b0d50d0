"""Tensors of the Open Inference Protocol (version 2) as JSON and as bytes. Pure: it knows neither a model nor HTTP.

A message is a JSON object, after which the bytes of its binary tensors follow in the order in which the object names
them: little-endian, row-major, without padding. A BYTES element is its length (4 bytes, little-endian) and its bytes.

Source: KServe, *Open Inference Protocol*, and its *Binary Tensor Data Extension*.
"""

import struct
from collections.abc import Sequence
from math import prod
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from service.errors import InvalidBody, InvalidParameter
from service.long_lists import LongList, read_message

Shape = tuple[int, ...]
JsonObject = dict[str, Any]
Values = NDArray[np.float32] | NDArray[np.int64] | list[list[str]]
"""What an output holds: numbers, or rows of texts."""

_TYPES: Final[dict[str, np.dtype[Any]]] = {
    "UINT8": np.dtype(np.uint8),
    "FP32": np.dtype("<f4"),
    "INT64": np.dtype("<i8"),
}
_AMONG_THEM: Final = {"f": "numbers with a point, or too large", "U": "texts", "O": "null or an object"}
"""What is not a number, or not a whole one, by numpy's kind of all values together."""
_DOCS: Final = "See the Open Inference Protocol, version 2, and GET /openapi.json."


def split_message(body: bytes | memoryview, header_length: str | None) -> tuple[JsonObject, memoryview]:
    """Return a message's JSON object and the bytes that follow it.

    Args:
        body: the whole body.
        header_length: the length of the JSON as `Inference-Header-Content-Length` states it; None: all of it is JSON.

    Raises:
        InvalidBody: the length is none, or the part is no JSON object.
        InvalidParameter: it holds too much.

    >>> message, rest = split_message(b'{"id": "a"}\\x01\\x02', "11")
    >>> message, bytes(rest)
    ({'id': 'a'}, b'\\x01\\x02')
    """
    length = json_length(body, header_length)
    try:
        message = read_message(bytes(body[:length]))
    except ValueError as error:
        raise InvalidBody(
            f"The request's JSON cannot be read: {error}.",
            field="body",
            remedy="Send one JSON object; where binary tensors follow, state its length in the header for it.",
        ) from error
    if not isinstance(message, dict):
        raise InvalidBody("The request must be a JSON object.", field="body", remedy=_DOCS)
    return message, memoryview(body)[length:]


def json_length(body: bytes | memoryview, header_length: str | None) -> int:
    """Return how many bytes of a message are JSON; arguments and errors are those of `split_message`."""
    return len(body) if header_length is None else _length(header_length, len(body))


def _length(text: str, size: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12 and 0 < int(text) <= size):
        raise InvalidBody(
            f"Inference-Header-Content-Length must be the length of the body's JSON, at most its {size} bytes.",
            field="Inference-Header-Content-Length",
            value=text,
            remedy="State how many bytes of the body are JSON, or leave the header out where all of them are.",
        )
    return int(text)


class BinaryParts:
    """The bytes after the JSON, handed out in order."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def take(self, size: int, field: str) -> memoryview:
        """Return the next bytes.

        Raises:
            InvalidBody: fewer are left.
        """
        if size > len(self._data):
            raise InvalidBody(
                f"{field} states {size} bytes, and {len(self._data)} are left in the body.",
                field=field,
                value=size,
                remedy="Send the binary tensors whole, in the order of the inputs.",
            )
        part, self._data = self._data[:size], self._data[size:]
        return part

    def refuse_rest(self) -> None:
        """Refuse bytes that no tensor has claimed.

        Raises:
            InvalidBody: there are some.
        """
        if self._data:
            raise InvalidBody(
                f"{len(self._data)} bytes follow that belong to no input.",
                field="body",
                value=len(self._data),
                remedy="State binary_data_size for each binary input, and the JSON's length in "
                "Inference-Header-Content-Length.",
            )


def read_tensor(tensor: JsonObject, parts: BinaryParts, *, datatype: str, shape: Shape, field: str) -> NDArray[Any]:
    """Return an input's values, from its JSON or from the bytes after it.

    Args:
        tensor: the input's object, with `data` or the parameter `binary_data_size`.
        parts: the bytes after the JSON.
        datatype: UINT8 or FP32, checked by the caller.
        shape: the shape stated, checked by the caller.
        field: what to call it in an error.

    Raises:
        InvalidParameter: the values do not fit the datatype and the shape.
        InvalidBody: the bytes are not there.
    """
    size = binary_size(tensor, field)
    if size is None:
        return _from_json(tensor.get("data"), datatype, shape, f"{field}.data")
    if tensor.get("data") is not None:
        raise InvalidParameter(
            f"{field} has both data and binary_data_size.", field=field, remedy="Send its values in one place."
        )
    kind = _TYPES[datatype]
    expected = prod(shape) * kind.itemsize
    if size != expected:
        raise InvalidParameter(
            f"{field} of shape {list(shape)} in {datatype} has {expected} bytes.",
            field=f"{field}.parameters.binary_data_size",
            value=size,
            remedy="Make size, shape and datatype agree.",
        )
    return np.frombuffer(parts.take(size, field), kind).reshape(shape)


def binary_size(tensor: JsonObject, field: str) -> int | None:
    """Return the number of bytes of a binary tensor, or None for one in JSON.

    Raises:
        InvalidParameter: the parameter is no such number, or another parameter is there.
    """
    parameters = tensor.get("parameters")
    if parameters is None:
        return None
    if not isinstance(parameters, dict) or parameters.keys() - {"binary_data_size"}:
        raise InvalidParameter(
            f"{field} takes the parameter binary_data_size alone.",
            field=f"{field}.parameters",
            value=as_json(parameters),
            remedy="Send its values in the body; shared memory is not served.",
        )
    size = parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise InvalidParameter(
            "binary_data_size must be a number of bytes.",
            field=f"{field}.parameters.binary_data_size",
            value=as_json(size),
            remedy=_DOCS,
        )
    return size


def _from_json(data: object, datatype: str, shape: Shape, field: str) -> NDArray[Any]:
    if isinstance(data, LongList):
        return _from_long(data, datatype, shape, field)
    expected = f"a list of {prod(shape)} values, flat or nested"
    if not isinstance(data, list):
        raise _off(field, expected, None if data is None else as_json(data))
    if data and not isinstance(data[0], list) and len(data) != prod(shape):
        raise _off(field, expected, f"{len(data)} values")
    written = as_json(data)
    if "true" in written or "false" in written:  # which would become numbers beside numbers
        raise _off(field, "numbers alone", "texts" if '"' in written else "true or false")
    try:
        values = np.array(data)
    except (ValueError, OverflowError) as error:  # ragged, or a number that no machine holds
        raise _off(field, f"numbers in the shape {list(shape)}", written) from error
    if values.size != prod(shape) or (values.ndim > 1 and values.shape != shape):
        raise _off(field, f"{prod(shape)} values in the shape {list(shape)}", str(list(values.shape)))
    return _typed(values, datatype, field).reshape(shape)


def _from_long(data: LongList, datatype: str, shape: Shape, field: str) -> NDArray[Any]:
    values, count = np.empty(prod(shape), _TYPES[datatype]), 0
    try:
        for piece in data.pieces(shape):
            values[count : count + len(piece)] = _typed(np.array(piece), datatype, field)
            count += len(piece)
    except (ValueError, OverflowError) as error:
        why = None if isinstance(error, orjson.JSONDecodeError) else str(error)
        raise _off(field, f"{len(values)} numbers in the shape {list(shape)}, or flat", why) from error
    return values.reshape(shape)


def _typed(values: NDArray[Any], datatype: str, field: str) -> NDArray[Any]:
    allowed = "iu" if datatype == "UINT8" else "iuf"
    if values.dtype.kind not in allowed and values.size:
        what = "whole numbers from 0 to 255" if datatype == "UINT8" else "numbers"
        raise _off(field, what, _AMONG_THEM.get(values.dtype.kind))
    if datatype == "UINT8" and values.size and not (values.min() >= 0 and values.max() <= 255):
        raise _off(field, "whole numbers from 0 to 255", f"{values.min()} to {values.max()}")
    with np.errstate(over="ignore"):  # beyond float32 is infinity, which the caller's range refuses
        return values.astype(_TYPES[datatype])


def as_json(value: object) -> str:
    """Return what was read from JSON as JSON, as an error shows it; what is nested too deep to be written, as it says.

    >>> as_json({"binary_data_size": 8})
    '{"binary_data_size":8}'
    """
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        return "nested too deep"


def _off(field: str, expected: str, value: str | None) -> InvalidParameter:
    return InvalidParameter(f"{field} must hold {expected}.", field=field, value=value, remedy=_DOCS)


def write_tensor(name: str, values: Values, *, binary: bool) -> tuple[JsonObject, bytes]:
    """Return an output's object and the bytes that follow the JSON (none where its values lie in it).

    Args:
        name: the output's name.
        values: numbers, which go out as FP32 or, whole ones, as INT64, or rows of texts, which go out as BYTES.
        binary: as bytes after the JSON rather than in it.

    >>> write_tensor("logits", np.zeros((1, 2), np.float32), binary=True)[0]
    {'name': 'logits', 'datatype': 'FP32', 'shape': [1, 2], 'parameters': {'binary_data_size': 8}}
    """
    if isinstance(values, list):
        shape, datatype = [len(values), len(values[0])], "BYTES"
        data: Any = [text for row in values for text in row]
        raw = b"".join(map(_bytes_element, data)) if binary else b""
    else:
        datatype = "INT64" if values.dtype.kind == "i" else "FP32"
        numbers = np.ascontiguousarray(values, _TYPES[datatype])
        shape = list(numbers.shape)
        data = numbers.reshape(-1)
        raw = numbers.tobytes() if binary else b""
    tensor: JsonObject = {"name": name, "datatype": datatype, "shape": shape}
    if binary:
        return tensor | {"parameters": {"binary_data_size": len(raw)}}, raw
    return tensor | {"data": data}, b""


def _bytes_element(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<I", len(encoded)) + encoded


def join_message(message: JsonObject, parts: Sequence[bytes]) -> tuple[bytes, int | None]:
    """Return the body, and the length of its JSON where bytes follow it.

    >>> join_message({"id": "a"}, [b"", b"12"])
    (b'{"id":"a"}12', 10)
    """
    head = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    if not any(parts):
        return head, None
    return b"".join((head, *parts)), len(head)
