import json
import random
import secrets
import tracemalloc
from typing import Any

import numpy as np
import orjson
import pytest

from service import long_lists
from service.errors import InvalidParameter
from service.long_lists import LongList, read_message

SHAPE = (2, 2, 3)
NESTED = [[[0, 10, 200], [3, 44, 5]], [[60, 7, 8], [9, 123, 11]]]


def numbers(text: bytes, shape: tuple[int, ...] = SHAPE) -> list[int] | None:
    """What is read of a list; None: it is refused."""
    try:
        return [number for piece in LongList(text).pieces(shape) for number in piece]
    except ValueError:
        return None


def expected(text: bytes) -> list[int] | None:
    """What a reader of JSON and numpy make of it, nested in the shape or flat."""
    try:
        values = np.array(orjson.loads(text))
    except ValueError:
        return None
    return values.ravel().tolist() if values.shape in {SHAPE, (12,)} and values.dtype.kind in "iuf" else None


def test_a_list_is_read_as_a_reader_of_json_does_and_refused_where_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    chance, accepted, sizes = random.Random(0), 0, (1, 2, 7, 1000)
    originals = [json.dumps(NESTED), json.dumps(NESTED, indent=1), json.dumps(np.array(NESTED).ravel().tolist())]
    for number in range(20_000):
        monkeypatch.setattr(long_lists, "LONG", sizes[number % len(sizes)])
        text = bytearray(chance.choice(originals).encode())
        for _ in range(chance.choice((0, 1, 1, 2, 3))):
            start = chance.randrange(1, len(text) - 1)
            text[start : start + chance.randrange(3)] = bytes(chance.choices(b"0123[],, .-e\n", k=chance.randrange(3)))
        found = numbers(bytes(text))
        assert found == expected(bytes(text)), text
        accepted += found is not None
    assert 2_000 < accepted < 18_000


@pytest.mark.parametrize("around", [b"[%b]", b"[[[[%b]]]]"])
def test_a_list_that_is_too_short_costs_no_more_than_its_own_length(around: bytes) -> None:
    text = around % b",".join([b"1"] * 40_000)
    tracemalloc.start()
    try:
        assert numbers(text, (32, 800, 1333, 3)) is None
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_long_lists_of_a_message_are_set_aside_and_nothing_else() -> None:
    data = list(range(30_000))
    message = {
        "id": 'a "data": [1, 2] within a text',
        "inputs": [{"name": "image", "data": data}, {"data": [1, 2]}, {"data": "text"}, {"name": "x", "data": data}],
        "outputs": [{"data": data}],
    }
    for indent in (None, 1):
        read = read_message(json.dumps(message, indent=indent).encode())
        first, *others, last = read["inputs"]
        for found in (first["data"], last["data"]):
            assert isinstance(found, LongList)
            assert numbers(found._text, (30_000,)) == data
        assert others == message["inputs"][1:3]
        assert read["id"] == message["id"]
        assert isinstance(read["outputs"][0]["data"], str)


@pytest.mark.parametrize(
    "text", [b'{"inputs": [%b1]}' % (b"[]," * 60_000), b'{"x": {"data": [%b"a"]}}' % (b"1," * 60_000)]
)
def test_what_is_long_and_no_such_list_is_refused_unread(text: bytes) -> None:
    with pytest.raises(InvalidParameter, match="at most 50000 values and 4194304 bytes beside"):
        read_message(text)


def test_the_name_of_a_list_cannot_be_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(["first", "second"])
    monkeypatch.setattr(secrets, "token_hex", lambda _: next(names))
    text = b'{"inputs": [{"data": [%b1]}, {"data": "second"}]}' % (b"1," * 60_000)
    assert read_message(text)["inputs"][1] == {"data": "second"}


def same(read: Any, whole: Any) -> bool:
    """Whether a message was read as `orjson` read it: lists that were set aside are as good as their numbers."""
    if isinstance(read, LongList):
        return numbers(read._text) == expected(orjson.dumps(whole))
    if isinstance(whole, dict):
        return read.keys() == whole.keys() and all(same(read[name], whole[name]) for name in whole)
    if isinstance(read, list) and isinstance(whole, list):
        return len(read) == len(whole) and all(map(same, read, whole))
    return bool(read == whole) or is_name(read)


def is_name(read: Any) -> bool:
    """Whether this stands for a list that was set aside and that no input holds."""
    return isinstance(read, str) and len(read) == 32


def is_refused_later(read: Any) -> bool:
    """Whether something in a message was set aside that will be refused."""
    if isinstance(read, LongList):
        return numbers(read._text) is None
    parts = read.values() if isinstance(read, dict) else read if isinstance(read, list) else ()
    return is_name(read) or any(map(is_refused_later, parts))


def test_a_message_is_read_as_a_reader_of_json_does_and_refused_where_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    chance, accepted, sizes = random.Random(0), 0, (1, 8, 30, 1000)
    strange = [[*NESTED, ["a"]], [[1, 2, 3], {"data": NESTED}], [[[1], "]"], 2], [[], {}], [[1, 2], None, [3, 4]]]
    messages = [{"inputs": [{"data": NESTED, "name": "a"}, {"name": "]", "data": data}]} for data in strange]
    originals = [json.dumps(message, indent=indent) for message in messages for indent in (None, 1)]
    for number in range(20_000):
        monkeypatch.setattr(long_lists, "LONG", sizes[number % len(sizes)])
        text = bytearray(chance.choice(originals).encode())
        for _ in range(chance.choice((0, 1, 1, 2, 3))):
            start = chance.randrange(1, len(text) - 1)
            text[start : start + chance.randrange(3)] = bytes(
                chance.choices(b'0123[],, "{}:a\n', k=chance.randrange(3))
            )
        try:
            read = read_message(bytes(text))
        except ValueError:
            read = None
        try:
            whole = orjson.loads(text)
        except ValueError:
            assert read is None or is_refused_later(read), text
            continue
        assert same(read, whole), text
        accepted += 1
    assert 4_000 < accepted < 18_000


@pytest.mark.parametrize(("digits", "is_read"), [(300, True), (18_000_000, False)])
def test_a_number_that_is_too_long_is_refused_unread(digits: int, is_read: bool) -> None:
    assert (numbers(b"[0." + b"1" * digits + b"]", (1,)) is not None) == is_read
