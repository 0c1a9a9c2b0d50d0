"""Long lists of numbers within JSON, read a piece at a time. Pure: it knows neither tensors nor HTTP.

A reader of JSON makes an object of every number, and lets nothing else of the interpreter run until the last: in
whatever thread, a body of 20 MB holds everyone up for seconds. So the text of long lists is set aside before the rest
is read, of which little may be left, and each list read by itself, in pieces between which others have their turn.

Source: RFC 8259 (JSON).
"""

import math
import re
import secrets
from collections.abc import Iterator
from typing import Any, Final

import orjson

from service.errors import InvalidParameter
from service.repeats import refuse_repeated_keys

LONG: Final = 65_536
"""Bytes of JSON that take no longer to read than the way to another thread."""
_SHORT: Final = 1024
"""Bytes of a list that take no longer to be looked through for keys than to be set aside."""
_MOST_OTHERS: Final = 50_000
"""Values and lists that a message may hold beside its long lists: three knobs of 4,096 images are 12,288."""
_MOST_OTHER_BYTES: Final = 4_194_304
"""Likewise; a text of 20 MB would hold everyone up as numbers do."""
_MOST_NAMES: Final = 100
"""Inputs that are looked at; no model has so many."""

_NAME: Final = b'"data"'
_BEGIN: Final = re.compile(rb"\s*:\s*(?=\[)")
_NESTED: Final = re.compile(rb"\[\s*\[")
_KINDS: Final = bytes.maketrans(b"0123456789.eE+-", b"d" * 15)
_TOO_LONG: Final = b"d" * 400
"""Characters of one number: the largest takes 309 in full, and one of 18 MB would hold everyone up."""
_FLAT: Final = bytes.maketrans(b"[]", b"  ")
_SPACE: Final = b" \t\r\n"


class LongList:
    """The text of a list of numbers, flat or nested."""

    def __init__(self, text: bytes) -> None:
        self._text = text

    def pieces(self, shape: tuple[int, ...]) -> Iterator[list[Any]]:
        """Yield the numbers in order, some at a time.

        Args:
            shape: of the nested list; a flat one has as many numbers.

        Raises:
            ValueError: it has another shape, or is no JSON.
        """
        text, start = self._text, 0
        if text.count(b",") + 1 != math.prod(shape):  # before the structure is made, which is as long as it should be
            raise ValueError("the list has another length")
        structure, position = memoryview(_structure(shape, is_nested=_NESTED.match(text) is not None)), 0
        while start < len(text):
            end = text.find(b",", start + LONG) + 1 or len(text)
            piece = text[start:end]
            kinds = piece.translate(_KINDS, _SPACE)
            skeleton = kinds.translate(None, b"d")
            start, position = end, position + len(skeleton)
            if structure[position - len(skeleton) : position] != skeleton or b"d[" in kinds or b"]d" in kinds:
                raise ValueError("the list has another shape, or holds something else")
            if b"d" not in kinds:
                raise ValueError("a number is missing")
            if _TOO_LONG in kinds:
                raise ValueError("a number is too long")
            yield orjson.loads(b"[%b]" % piece.removesuffix(b",").translate(_FLAT))
        if position != len(structure):
            raise ValueError("the list ends early")


def _structure(shape: tuple[int, ...], *, is_nested: bool) -> bytes:
    """Return what is left of such a list without its numbers.

    >>> _structure((2, 3), is_nested=True), _structure((2, 3), is_nested=False)
    (b'[[,,],[,,]]', b'[,,,,,]')
    """
    *outer, last = shape
    if not is_nested:
        return b"[%b]" % (b"," * (math.prod(shape) - 1))
    text = b"[%b]" % (b"," * (last - 1))
    for length in reversed(outer):
        text = b"[%b]" % b",".join([text] * length)
    return text


def read_message(text: bytes) -> Any:  # noqa: ANN401 - whatever JSON may be
    """Return what JSON says, with each long list under the name `data` of an input as a `LongList`.

    Raises:
        ValueError: it is no JSON; says where, unless something was set aside.
        InvalidParameter: it holds too much beside them, or a key twice in one object.
        InvalidBody: it is nested too deep.

    >>> read_message(b'{"inputs": [{"data": [1]}]}')
    {'inputs': [{'data': [1]}]}
    """
    if len(text) <= LONG:
        message = orjson.loads(text)
        refuse_repeated_keys(_set_aside(text, _SHORT)[0])
        return message
    rest, lists = _set_aside(text, LONG)
    if max(rest.count(b","), rest.count(b"[")) > _MOST_OTHERS or len(rest) > _MOST_OTHER_BYTES:
        raise InvalidParameter(
            f"The request's JSON may hold at most {_MOST_OTHERS} values and {_MOST_OTHER_BYTES} bytes beside lists of "
            "numbers called data.",
            field="body",
            remedy="Send what the model takes; pixels as binary tensors are the shortest form.",
        )
    try:
        message = orjson.loads(rest)
    except orjson.JSONDecodeError as error:
        if not lists:
            raise
        raise ValueError(error.msg) from error  # its place is one in what is left
    refuse_repeated_keys(rest)
    inputs = message.get("inputs") if isinstance(message, dict) else None
    for tensor in inputs if isinstance(inputs, list) else ():
        if isinstance(tensor, dict) and isinstance(name := tensor.get("data"), str):
            tensor["data"] = lists.get(name, name)
    return message


def _set_aside(text: bytes, most: int) -> tuple[bytes, dict[str, LongList]]:
    """Return the JSON with a name that nobody can guess in the place of each list that is longer, and those by names.

    Quotes within a text are escaped, so that the name `data` with its own is a key.
    """
    parts: list[bytes] = []
    lists: dict[str, LongList] = {}
    copied = position = 0
    for _ in range(_MOST_NAMES):
        found = text.find(_NAME, position)
        if found < 0:
            break
        position = found + len(_NAME)
        begin = _BEGIN.match(text, position)
        if begin is None:
            continue
        end = _end(text, begin.end())
        if end - begin.end() > most:
            name = secrets.token_hex(16)
            lists[name] = LongList(text[begin.end() : end])
            parts += [text[copied : begin.end()], b'"%b"' % name.encode()]
            copied = position = end
    return b"".join((*parts, text[copied:])), lists


def _end(text: bytes, start: int) -> int:
    """Return where a list ends that holds neither texts nor objects; at most `start`: it is none.

    The next of those may lie within it: then the last bracket before is not its end, and more are open than closed.
    """
    stops = [at for at in (text.find(b'"', start), text.find(b"}", start)) if at >= 0]
    end = text.rfind(b"]", start, min(stops, default=len(text))) + 1
    return end if text.count(b"[", start, end) == text.count(b"]", start, end) else start
