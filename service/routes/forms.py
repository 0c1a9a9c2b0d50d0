"""From a prediction request in any of its forms to one query, of whichever task its rules are.

Three forms: the raw bytes of a picture, multipart/form-data with several, JSON with base64. Options come in the
query string in every form. Nothing is guessed: an unknown, repeated, malformed or out-of-range value is refused
with its name, the value and the remedy. It knows nothing of decoding pictures or of the model's run.
"""

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from time import monotonic
from typing import Any, Final
from urllib.parse import parse_qsl

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.body_in_place import BodyInPlace
from service.errors import (
    BodyTooLarge,
    BodyTooSlow,
    ClientLeft,
    DeadlineExceeded,
    InvalidBody,
    InvalidParameter,
    UnsupportedMediaType,
)
from service.repeats import refuse_repeated_keys, repeated
from service.routes.context import service_of
from service.routes.long_bodies import read_aside
from service.routes.rules import GivenImage, Options, Query, RequestRules
from service.settings import MOST_IMAGES, Settings

RAW_TYPES: Final = ("image/jpeg", "image/png", "image/webp")
WHOLE_BODY = "evenkeel.whole_body"
"""Extension of a scope by which a server hands over a body that is there already: `f()` returns it, or None.

Waiting for it with a timer, as for one that is still to come, takes 10 us.
"""
BODY_IN_PLACE = "evenkeel.body_in_place"
"""Extension of a scope by which a server reads a large body in place: `f()` returns a `BodyInPlace`, or None.

It is for who has taken no part of the body yet.
"""
_MAX_PARAMETERS: Final = 20
_SLICE: Final = 65_536
_MOST_OPTIONS: Final = 100
"""Of a form or of JSON, beside what it says of each picture."""
_NO_OPTIONS: Final = Options()


async def read_query(request: Request, rules: RequestRules[Query], deadline: float) -> Query:
    """Read and check a whole prediction request.

    Args:
        request: whose body it is.
        rules: what it may ask.
        deadline: the moment, by `time.monotonic`, after which a form is read no further, and long JSON not begun.

    Raises:
        UnsupportedMediaType, BodyTooLarge, BodyTooSlow, InvalidBody, InvalidParameter, TooManyImages, ClientLeft,
        DeadlineExceeded, QueueFull, ShuttingDown
    """
    raw_options = request.scope["query_string"]
    content_type = request.headers.get("content-type", "")
    if content_type in RAW_TYPES and not raw_options:  # the usual request is found out first
        return rules.query([(await read_body(request, rules.settings), "body")], _NO_OPTIONS)
    options = _query_string(raw_options, rules)
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in RAW_TYPES:
        return rules.query([(await read_body(request, rules.settings), "body")], options)
    if media_type == "multipart/form-data":
        return await _multipart(request, await read_body(request, rules.settings), options, rules, deadline)
    if media_type == "application/json":
        body = await read_body(request, rules.settings)
        if len(body) <= _SLICE:
            return _json(body, options, rules)
        return await read_aside(partial(_json, body, options, rules), request, service_of(request), deadline)
    raise UnsupportedMediaType(
        "The body must be a picture, multipart/form-data or JSON, and the Content-Type must say which.",
        field="Content-Type",
        value=content_type or None,
        remedy=f"Send {', '.join(RAW_TYPES)}, multipart/form-data or application/json. "
        "With curl: -H 'Content-Type: image/png' --data-binary @picture.png",
    )


def query_parameters(request: Request, *names: str) -> dict[str, str]:
    """Return what the query string says of these parameters.

    Raises:
        InvalidParameter: it names another, or one of them twice.
    """
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names:
            raise InvalidParameter(
                f"There is no parameter {name} here.",
                field=name,
                value=value,
                remedy=f"This address takes {', '.join(names) or 'none'}.",
            )
        if name in given:
            raise repeated(name, value)
        given[name] = value
    return given


async def read_body(request: Request, settings: Settings) -> bytes:
    """Read the body, as long as it stays within its limits of bytes and time.

    Raises:
        UnsupportedMediaType: it is compressed.
        BodyTooLarge, BodyTooSlow, ClientLeft
    """
    body = await read_buffer(request, settings)
    return body if isinstance(body, bytes) else body.tobytes()


async def read_buffer(request: Request, settings: Settings) -> bytes | memoryview:
    """Read the body as `read_body` does, and leave a large one where the server has read it to."""
    _refuse_compressed(request.headers.get("content-encoding"))
    limit = settings.max_body_bytes
    extensions = request.scope.get("extensions") or {}
    whole = extensions.get(WHOLE_BODY)
    body: bytes | None = whole() if whole else None
    if body is None:
        _refuse_declared_size(request.headers.get("content-length"), limit)
        in_place: BodyInPlace | None = extensions[BODY_IN_PLACE]() if BODY_IN_PLACE in extensions else None
        if in_place is not None:
            return await _awaited_in_place(in_place, settings.request_timeout)
        return await _awaited_body(request, settings.request_timeout, limit)
    if len(body) > limit:
        raise _too_large(limit, None)
    return body


async def _awaited_in_place(body: BodyInPlace, patience: float) -> memoryview:
    try:
        async with asyncio.timeout(patience):
            whole = await body.whole
    except TimeoutError as error:
        raise _too_slow(patience, body.count) from error
    if whole is None:
        raise _left()
    return whole


async def _awaited_body(request: Request, patience: float, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(patience):
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise _left()
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit, None)
                chunks.append(chunk)
                more = message.get("more_body", False)
    except TimeoutError as error:
        raise _too_slow(patience, size) from error
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _refuse_compressed(encoding: str | None) -> None:
    if encoding and encoding.lower() != "identity":
        raise UnsupportedMediaType(
            "The body must not be compressed.",
            field="Content-Encoding",
            value=encoding,
            remedy="Send it as it is; pixels as binary tensors are the shortest form but for JPEG, PNG and WebP.",
        )


def _left() -> ClientLeft:
    return ClientLeft("The client closed the connection before the body was whole.")


def _too_slow(patience: float, size: int) -> BodyTooSlow:
    return BodyTooSlow(
        f"The body did not arrive within {patience:g} seconds.",
        field="body",
        value=size,
        remedy="Send it faster, or a smaller one.",
    )


def _refuse_declared_size(declared: str | None, limit: int) -> None:
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit, int(declared))


def _too_large(limit: int, size: int | None) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body may have at most {limit} bytes.",
        field="Content-Length" if size else "body",
        value=size,
        remedy="Send smaller pictures, or fewer in one request.",
    )


def _query_string(raw: bytes, rules: RequestRules[Any]) -> Options:
    if not raw:
        return Options()
    try:
        pairs = _pairs(raw.decode("ascii"))
    except ValueError as error:
        raise InvalidParameter(
            "The query string cannot be read.",
            field="query",
            value=raw.decode("ascii", "replace"),
            remedy="Send at most 20 parameters as name=value, percent-encoded UTF-8, joined by '&'.",
        ) from error
    return rules.options(pairs, "query string")


def _pairs(text: str) -> list[tuple[str, str]]:
    """Return names and values; where nothing is encoded, without `parse_qsl`, which takes 6 us to find that out."""
    if "%" in text or "+" in text or text.count("&") >= _MAX_PARAMETERS:
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS)
    parts = [pair.partition("=") for pair in text.split("&") if pair]
    return [(name, value) for name, _, value in parts]


def _json(body: bytes, options: Options, rules: RequestRules[Query]) -> Query:
    # Base64 has none of these; to find out by reading them holds everyone up for seconds, in whatever thread.
    most = rules.settings.max_images_per_request
    rules.refuse_too_many(body.count(b"{") - 1)
    if max(body.count(b","), body.count(b"[")) > 4 * most + _MOST_OPTIONS:
        raise InvalidParameter(
            f"body: it may hold at most {4 * most + _MOST_OPTIONS} values.",
            field="body",
            remedy=f"Send at most {most} images in a request, and a JSON object as GET /openapi.json shows.",
        )
    try:
        content: Any = rules.body.model_validate_json(body)
    except ValidationError as error:
        first = first_problem(error)
        refusal, place = off_the_schema(first), first["loc"]
        if first["type"] == "extra_forbidden" and len(place) == 1:
            raise rules.unknown(str(place[0]), refusal.value, "body") from error
        if first["type"] == "extra_forbidden" and place[-1] in Options.__slots__:
            raise rules.not_of_an_image(str(place[-1]), refusal.value, str(refusal.field)) from error
        raise refusal from error
    refuse_repeated_keys(body)
    rules.refuse_too_many(len(content.images))
    for name in rules.names:
        value = getattr(content, name)
        if value is not None and getattr(options, name) is not None:
            raise repeated(name, str(value))
        if value is not None:
            setattr(options, name, value if name in rules.switches else rules.number(name, value, name))
    images: list[GivenImage] = []
    for position, image in enumerate(content.images):
        field = f"images[{position}]"
        own = ((name, getattr(image, name)) for name in rules.knobs)
        knobs = [None if value is None else rules.number(name, value, f"{field}.{name}") for name, value in own]
        images.append((_base64(image.data, f"{field}.data"), f"{field}.data", *knobs))
    return rules.query(images, options)


def _base64(text: str, field: str) -> bytes:
    """Decode in slices: in another thread, whoever waits for the interpreter has a turn after each."""
    slices = [text[start : start + _SLICE] for start in range(0, len(text), _SLICE)]
    try:
        if any(each.endswith("=") for each in slices[:-1]):
            raise ValueError("padding within")  # which each slice by itself could end with
        return b"".join([base64.b64decode(each, validate=True) for each in slices])
    except (binascii.Error, ValueError) as error:
        raise InvalidParameter(
            f"{field} is not base64.",
            field=field,
            value=text[:40],
            remedy="Send the file's bytes in standard base64 with padding, without a data: prefix or line breaks.",
        ) from error


def first_problem(error: ValidationError) -> ErrorDetails:
    """Return what is wrong first; all that is takes 2 us each, and is made for this."""
    return error.errors(include_url=False, include_context=False)[0]


def off_the_schema(first: ErrorDetails) -> InvalidBody | InvalidParameter:
    """Return the refusal of JSON that is not as its schema says: its first problem, by name."""
    if first["type"] == "json_invalid":
        return InvalidBody(
            f"The body is not JSON: {first['msg']}.",
            field="body",
            remedy="Send a JSON object as GET /openapi.json shows.",
        )
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".") or "body"
    value = first["input"] if isinstance(first["input"], str | int | float | bool) else None
    return InvalidParameter(
        f"{field}: {first['msg']}.", field=field, value=value, remedy="Send a JSON object as GET /openapi.json shows."
    )


class _InMemoryParser(MultiPartParser):
    """Keeps every part in memory: the body is there already, and its size was checked.

    Attributes:
        has_ended: whether the boundary that closes the form has come.
    """

    spool_max_size = 1 << 62
    has_ended = False

    def on_end(self) -> None:
        """Note the end."""
        self.has_ended = True


async def _multipart(
    request: Request, body: bytes, options: Options, rules: RequestRules[Query], deadline: float
) -> Query:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body[:_SLICE]
        for start in range(_SLICE, len(body), _SLICE):
            await asyncio.sleep(0)  # some bytes take the parser a thousand times as long as others
            if deadline <= monotonic():
                raise DeadlineExceeded
            if await request.is_disconnected():
                raise ClientLeft("The client closed the connection while its form was read.")
            yield body[start : start + _SLICE]
        if not parser.has_ended:  # a knob or a picture that was cut off would be missing in silence
            raise MultiPartException("it ends before its closing boundary")

    fields = _MOST_OPTIONS + 2 * rules.settings.max_images_per_request  # and both knobs of each picture
    parser = _InMemoryParser(request.headers, stream(), max_fields=fields, max_files=MOST_IMAGES, max_part_size=1024)
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError, UnicodeError, LookupError) as error:
        raise InvalidBody(
            f"The multipart body cannot be read: {str(error).rstrip('.')}.",
            field="body",
            remedy="Let your HTTP library write it, pictures as file parts; with curl: -F image=@a.png -F alpha=1.5",
        ) from error
    files: list[bytes] = []
    texts: dict[str, list[str]] = {name: [] for name in rules.names}
    try:
        for name, part in form.multi_items():
            if name == "image" and isinstance(part, UploadFile):
                files.append(part.file.read())
            elif name in texts and isinstance(part, str):
                texts[name].append(part)
            else:
                raise _unknown_part(name, part, rules)
    finally:
        await form.close()
    return _from_parts(files, texts, options, rules)


def _from_parts(files: list[bytes], texts: dict[str, list[str]], options: Options, rules: RequestRules[Query]) -> Query:
    if not files:
        raise InvalidBody(
            "The form holds no picture.",
            field="image",
            remedy="Send one or more file parts called image; with curl: -F image=@a.png",
        )
    rules.refuse_too_many(len(files))
    knobs = [_one_each(name, texts[name], len(files), options, rules) for name in rules.knobs]
    for name in rules.names:
        for text in texts[name] if name not in rules.knobs else ():
            if getattr(options, name) is not None:
                raise repeated(name, text)
            setattr(options, name, rules.option(name, text))
    fields = [f"image[{position}]" for position in range(len(files))]
    return rules.query(list(zip(files, fields, *knobs, strict=True)), options)


def _one_each(
    name: str, texts: list[str], count: int, options: Options, rules: RequestRules[Any]
) -> Sequence[float | None]:
    """Return a knob for each picture: none given, one for all, or one for each in order."""
    if texts and getattr(options, name) is not None:
        raise repeated(name, texts[0])
    if len(texts) not in {0, 1, count}:
        raise InvalidParameter(
            f"The form holds {len(texts)} times {name} for {count} images.",
            field=name,
            value=len(texts),
            remedy="Send none, one for all, or one for each image in order.",
        )
    values = [rules.option(name, text) for text in texts]
    return values * count if len(values) == 1 else values or [None] * count


def _unknown_part(name: str, part: UploadFile | str, rules: RequestRules[Any]) -> InvalidParameter:
    if name in Options.__slots__ and isinstance(part, str):
        return rules.unknown(name, part, "form")
    is_file = isinstance(part, UploadFile)
    if name == "image" and not is_file:
        return InvalidParameter(
            "The part called image has no file name, so that it is text.",
            field=name,
            remedy="Send each picture with a filename, as curl -F image=@FILE does.",
        )
    return InvalidParameter(
        f"The form takes no {'file' if is_file else 'text'} part called {name}.",
        field=name,
        value=part.filename if isinstance(part, UploadFile) else part,
        remedy=f"Send pictures as file parts called image, and {', '.join(rules.names)} as text parts.",
    )
