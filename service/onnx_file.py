"""An ONNX file without what leads to outputs that nobody asks for: ONNX Runtime runs a whole graph for any of them.

Of ONNX it knows a few field numbers (onnx.proto) and of protobuf how fields follow each other, and no operator: the
package onnx could do it, and the service goes without.
"""

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

_GRAPH = 7  # of a model
_NODE, _INPUT, _OUTPUT = 1, 11, 12  # of a graph
_NAME = 1  # of an input or output of a graph
_FROM, _TO, _ATTRIBUTE = 1, 2, 5  # of a node
_SUBGRAPHS = {6, 11}  # of an attribute
_VARINT, _EIGHT_BYTES, _DELIMITED, _FOUR_BYTES = 0, 1, 2, 5  # how long a field is


class NotReducible(ValueError):  # noqa: N818 - as all errors here
    """The file is no ONNX model, or one whose graph is not told by its nodes alone."""


@contextmanager
def reduced(file: Path, outputs: Collection[str]) -> Iterator[Path]:
    """Give a file for the time being that has these outputs alone; or the file as it is, where that cannot be made.

    What is no model is left to ONNX Runtime to refuse.
    """
    try:
        smaller = _written(reduced_model(file.read_bytes(), outputs))
    except (NotReducible, OSError):
        yield file
        return
    with smaller:
        yield Path(smaller.name)


def _written(parts: Sequence[bytes | memoryview]) -> IO[bytes]:
    """Write a file that goes when it is closed."""
    file = tempfile.NamedTemporaryFile(suffix=".onnx")  # noqa: SIM115 - the caller closes it
    file.writelines(parts)
    file.flush()
    return file


def reduced_model(model: bytes, outputs: Collection[str]) -> Sequence[bytes | memoryview]:
    """Return the model, in parts, with these outputs alone, and the nodes and inputs that lead to them.

    Constants that are needed no more stay: ONNX Runtime drops them.

    Raises:
        NotReducible: no model, one that lacks an output, or one with graphs within nodes, which use values that the
            nodes do not name.
    """
    fields = list(_fields(memoryview(model)))
    graphs = [field for field in fields if field.number == _GRAPH]
    if len(graphs) != 1:
        raise NotReducible(f"a model has one graph, and this file {len(graphs)}")
    whole = list(_fields(graphs[0].content))
    if missing := set(outputs).difference(*(field.text(_NAME) for field in whole if field.number == _OUTPUT)):
        raise NotReducible(f"the graph has no outputs {', '.join(sorted(missing))}")
    graph = [field.whole for field in _needed(whole, outputs)]
    head = bytes([_GRAPH << 3 | _DELIMITED]) + _varint_bytes(sum(map(len, graph)))
    return [*(field.whole for field in fields if field.number != _GRAPH), head, *graph]


class _Field(NamedTuple):
    number: int
    whole: memoryview
    content: memoryview

    def text(self, number: int) -> list[str]:
        """Return the strings of this number in the message that this field is."""
        return [_decoded(field.content) for field in _fields(self.content) if field.number == number]


def _needed(graph: Sequence[_Field], outputs: Collection[str]) -> list[_Field]:
    """Return the fields of a graph without outputs, nodes and inputs that lead to none of these outputs."""
    needed, kept = set(outputs), set()
    for position in reversed(range(len(graph))):  # a graph's nodes come in the order that they can run in
        node = graph[position]
        if node.number == _NODE and needed.intersection(node.text(_TO)):
            _refuse_subgraphs(node)
            needed.update(node.text(_FROM))
            kept.add(position)
    wanted = {_OUTPUT: set(outputs), _INPUT: needed}
    return [field for position, field in enumerate(graph) if position in kept or _is_wanted(field, wanted)]


def _is_wanted(field: _Field, wanted: Mapping[int, set[str]]) -> bool:
    """Say of a graph's field that is no node whether it stays: one that has a name here only if that is wanted."""
    if field.number in wanted:
        return not wanted[field.number].isdisjoint(field.text(_NAME))
    return field.number != _NODE


def _refuse_subgraphs(node: _Field) -> None:
    attributes = (field for field in _fields(node.content) if field.number == _ATTRIBUTE)
    if any(part.number in _SUBGRAPHS for attribute in attributes for part in _fields(attribute.content)):
        raise NotReducible("a node has a graph of its own")


def _fields(message: memoryview) -> Iterator[_Field]:
    position = 0
    while position < len(message):
        begin = position
        key, position = _varint(message, position)
        end = _end(message, key & 7, position)
        if key & 7 == _DELIMITED:
            position = _varint(message, position)[1]
        if end > len(message):
            raise NotReducible("a field reaches beyond the end")
        yield _Field(key >> 3, message[begin:end], message[position:end])
        position = end


def _end(message: memoryview, kind: int, position: int) -> int:
    """Return where a field of this kind ends that begins here."""
    if kind == _VARINT:
        return _varint(message, position)[1]
    if kind == _DELIMITED:
        length, begin = _varint(message, position)
        return begin + length
    if kind in (_EIGHT_BYTES, _FOUR_BYTES):
        return position + (8 if kind == _EIGHT_BYTES else 4)
    raise NotReducible(f"there are no fields of kind {kind}")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    for place in range(position, min(position + 10, len(message))):
        value |= (message[place] & 0x7F) << shift
        shift += 7
        if message[place] < 0x80:
            return value, place + 1
    raise NotReducible("a number does not end")


def _varint_bytes(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _decoded(text: memoryview) -> str:
    try:
        return str(text, "utf-8")
    except UnicodeDecodeError as error:
        raise NotReducible("a name is no text") from error
