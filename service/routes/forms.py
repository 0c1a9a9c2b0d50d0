"""From a prediction request in any of its forms to one `PredictQuery`.

Three forms: the raw bytes of a picture, multipart/form-data with several, JSON with base64. Options come in the
query string in every form. Nothing is guessed: an unknown, repeated, malformed or out-of-range value is refused
with its name, the value and the remedy. It knows nothing of decoding pictures or of the model's run.
"""

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from service.bundle import Manifest
from service.errors import (
    BodyTooLarge,
    BodyTooSlow,
    ClientLeft,
    InvalidBody,
    InvalidParameter,
    TooManyImages,
    UnsupportedMediaType,
)
from service.schemas import PredictRequest
from service.scoring import Knobs
from service.settings import Settings

RAW_TYPES: Final = ("image/jpeg", "image/png", "image/webp")
OPTIONS: Final = ("alpha", "prior_strength", "top_k", "breakpoints")
DEFAULT_TOP_K: Final = 5

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SWITCH: Final = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class ImageQuery:
    """One picture, its knobs, who chose its alpha, and what to call it in an error."""

    data: bytes
    field: str
    knobs: Knobs
    alpha_source: str


@dataclass(frozen=True, slots=True)
class PredictQuery:
    """A whole request."""

    images: list[ImageQuery]
    top_k: int
    breakpoints: bool


@dataclass(slots=True)
class _Options:
    """What a request says of each option; None where it says nothing."""

    alpha: float | None = None
    prior_strength: float | None = None
    top_k: int | None = None
    breakpoints: bool | None = None


class Rules:
    """What a request may ask of this model under these settings."""

    def __init__(self, manifest: Manifest, settings: Settings) -> None:
        self.settings = settings
        self._alpha = manifest.alpha
        self._classes = len(manifest.classes)

    def query(self, images: Sequence[tuple[bytes, str, float | None, float | None]], options: _Options) -> PredictQuery:
        """Return the query of pictures given as (bytes, field, own alpha, own prior_strength)."""
        self.refuse_too_many(len(images))
        return PredictQuery(
            [self._image(*image, options) for image in images],
            min(DEFAULT_TOP_K, self._classes) if options.top_k is None else options.top_k,
            bool(options.breakpoints),
        )

    def _image(
        self, data: bytes, field: str, own_alpha: float | None, own_strength: float | None, options: _Options
    ) -> ImageQuery:
        alpha = options.alpha if own_alpha is None else own_alpha
        strength = options.prior_strength if own_strength is None else own_strength
        knobs = Knobs(self._alpha.default if alpha is None else alpha, 0.0 if strength is None else strength)
        return ImageQuery(data, field, knobs, "model" if alpha is None else "request")

    def alpha(self, value: float, field: str) -> float:
        """Return the alpha if the model allows it."""
        return _in_range(value, field, self._alpha.minimum, self._alpha.maximum)

    def prior_strength(self, value: float, field: str) -> float:
        """Return the prior_strength if the settings allow it."""
        return _in_range(value, field, 0.0, self.settings.max_prior_strength)

    def top_k(self, value: int, field: str) -> int:
        """Return the number of classes to name if the model has so many."""
        return int(_in_range(value, field, 1, self._classes))

    def refuse_too_many(self, count: int) -> None:
        """Refuse more images than a request may hold."""
        limit = self.settings.max_images_per_request
        if count > limit:
            raise TooManyImages(
                f"A request may hold at most {limit} images.",
                field="images",
                value=count,
                remedy="Split it into several requests.",
            )

    def options(self, pairs: Sequence[tuple[str, str]], where: str) -> _Options:
        """Return the options written as text, each at most once."""
        options = _Options()
        for name, text in pairs:
            if name not in OPTIONS:
                raise InvalidParameter(
                    f"The {where} takes no parameter called {name}.",
                    field=name,
                    value=text,
                    remedy=f"Use {', '.join(OPTIONS)}, or leave it out.",
                )
            if getattr(options, name) is not None:
                raise _repeated(name, text)
            setattr(options, name, self.option(name, text))
        return options

    def option(self, name: str, text: str) -> float | int | bool:
        """Return the value of an option written as text."""
        if name == "breakpoints":
            if text not in _SWITCH:
                raise InvalidParameter(
                    f"{name} must be true or false.", field=name, value=text, remedy="Send true or false."
                )
            return _SWITCH[text]
        if name == "top_k":
            if not (text.isascii() and text.isdigit() and len(text) < 10):
                raise InvalidParameter(
                    f"{name} must be a whole number.", field=name, value=text, remedy="Send digits only, such as 5."
                )
            return self.top_k(int(text), name)
        return (
            self.alpha(_number(text, name), name) if name == "alpha" else self.prior_strength(_number(text, name), name)
        )


async def read_query(request: Request, rules: Rules) -> PredictQuery:
    """Read and check a whole prediction request.

    Raises:
        UnsupportedMediaType, BodyTooLarge, BodyTooSlow, InvalidBody, InvalidParameter, TooManyImages, ClientLeft
    """
    options = _query_string(request.scope["query_string"], rules)
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in RAW_TYPES:
        return rules.query([(await read_body(request, rules.settings), "body", None, None)], options)
    if media_type == "multipart/form-data":
        return await _multipart(request, await read_body(request, rules.settings), options, rules)
    if media_type == "application/json":
        return _json(await read_body(request, rules.settings), options, rules)
    raise UnsupportedMediaType(
        "The body must be a picture, multipart/form-data or JSON, and the Content-Type must say which.",
        field="Content-Type",
        value=content_type or None,
        remedy=f"Send {', '.join(RAW_TYPES)}, multipart/form-data or application/json. "
        "With curl: -H 'Content-Type: image/png' --data-binary @picture.png",
    )


async def read_body(request: Request, settings: Settings) -> bytes:
    """Read the body, as long as it stays within its limits of bytes and time."""
    limit = settings.max_body_bytes
    _refuse_declared_size(request.headers.get("content-length"), limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.request_timeout):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit, None)
                chunks.append(chunk)
    except TimeoutError as error:
        raise BodyTooSlow(
            f"The body did not arrive within {settings.request_timeout:g} seconds.",
            field="body",
            value=size,
            remedy="Send it faster, or a smaller one.",
        ) from error
    except ClientDisconnect as error:
        raise ClientLeft("The client closed the connection before the body was whole.") from error
    return chunks[0] if len(chunks) == 2 else b"".join(chunks)


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


def _query_string(raw: bytes, rules: Rules) -> _Options:
    if not raw:
        return _Options()
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=20)
    except ValueError as error:
        raise InvalidParameter(
            "The query string cannot be read.",
            field="query",
            value=raw.decode("ascii", "replace"),
            remedy="Send at most 20 parameters as name=value, percent-encoded UTF-8, joined by '&'.",
        ) from error
    return rules.options(pairs, "query string")


def _json(body: bytes, options: _Options, rules: Rules) -> PredictQuery:
    try:
        content = PredictRequest.model_validate_json(body)
    except ValidationError as error:
        raise _off_the_schema(error) from error
    rules.refuse_too_many(len(content.images))
    for name in OPTIONS:
        value = getattr(content, name)
        if value is not None and getattr(options, name) is not None:
            raise _repeated(name, str(value))
        if value is not None:
            setattr(options, name, value if name == "breakpoints" else getattr(rules, name)(value, name))
    images = []
    for position, image in enumerate(content.images):
        field = f"images[{position}]"
        alpha = None if image.alpha is None else rules.alpha(image.alpha, f"{field}.alpha")
        strength = (
            None
            if image.prior_strength is None
            else rules.prior_strength(image.prior_strength, f"{field}.prior_strength")
        )
        images.append((_base64(image.data, f"{field}.data"), f"{field}.data", alpha, strength))
    return rules.query(images, options)


def _base64(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidParameter(
            f"{field} is not base64.",
            field=field,
            value=text[:40],
            remedy="Send the file's bytes in standard base64 with padding, without a data: prefix or line breaks.",
        ) from error


def _off_the_schema(error: ValidationError) -> InvalidBody | InvalidParameter:
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return InvalidBody(
            f"The body is not JSON: {first['msg']}.", field="body", remedy="Send a JSON object as the docs show."
        )
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".") or "body"
    value = first["input"] if isinstance(first["input"], str | int | float | bool) else None
    return InvalidParameter(
        f"{field}: {first['msg']}.", field=field, value=value, remedy="Send a JSON object as the docs show."
    )


class _InMemoryParser(MultiPartParser):
    """Keeps every part in memory: the body is there already, and its size was checked."""

    spool_max_size = 1 << 62


async def _multipart(request: Request, body: bytes, options: _Options, rules: Rules) -> PredictQuery:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await _InMemoryParser(request.headers, stream(), max_fields=100, max_part_size=1024).parse()
    except (MultiPartException, FormParserError) as error:
        raise InvalidBody(
            f"The multipart body cannot be read: {str(error).rstrip('.')}.",
            field="body",
            remedy="Let your HTTP library write it; with curl: -F image=@a.png -F alpha=1.5",
        ) from error
    files: list[bytes] = []
    texts: dict[str, list[str]] = {name: [] for name in OPTIONS}
    try:
        for name, part in form.multi_items():
            if name == "image" and isinstance(part, UploadFile):
                files.append(part.file.read())
            elif name in texts and isinstance(part, str):
                texts[name].append(part)
            else:
                raise _unknown_part(name, part)
    finally:
        await form.close()
    return _from_parts(files, texts, options, rules)


def _from_parts(files: list[bytes], texts: dict[str, list[str]], options: _Options, rules: Rules) -> PredictQuery:
    if not files:
        raise InvalidBody(
            "The form holds no picture.",
            field="image",
            remedy="Send one or more file parts called image; with curl: -F image=@a.png",
        )
    rules.refuse_too_many(len(files))
    alphas, strengths = (
        _one_each(name, texts[name], len(files), options, rules) for name in ("alpha", "prior_strength")
    )
    for name in ("top_k", "breakpoints"):
        for text in texts[name]:
            if getattr(options, name) is not None:
                raise _repeated(name, text)
            setattr(options, name, rules.option(name, text))
    fields = [f"image[{position}]" for position in range(len(files))]
    return rules.query(list(zip(files, fields, alphas, strengths, strict=True)), options)


def _one_each(name: str, texts: list[str], count: int, options: _Options, rules: Rules) -> Sequence[float | None]:
    """Return a knob for each picture: none given, one for all, or one for each in order."""
    if texts and getattr(options, name) is not None:
        raise _repeated(name, texts[0])
    if len(texts) not in {0, 1, count}:
        raise InvalidParameter(
            f"The form holds {len(texts)} times {name} for {count} images.",
            field=name,
            value=len(texts),
            remedy="Send none, one for all, or one for each image in order.",
        )
    values = [rules.option(name, text) for text in texts]
    return values * count if len(values) == 1 else values or [None] * count


def _unknown_part(name: str, part: UploadFile | str) -> InvalidParameter:
    is_file = isinstance(part, UploadFile)
    return InvalidParameter(
        f"The form takes no {'file' if is_file else 'text'} part called {name}.",
        field=name,
        value=part.filename if isinstance(part, UploadFile) else part,
        remedy=f"Send pictures as file parts called image, and {', '.join(OPTIONS)} as text parts.",
    )


def _repeated(name: str, text: str) -> InvalidParameter:
    return InvalidParameter(
        f"{name} is given more than once.", field=name, value=text, remedy="Give it once, in one place."
    )


def _number(text: str, field: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise InvalidParameter(
            f"{field} must be a finite number.", field=field, value=text, remedy="Send one such as 1.5."
        )
    return float(text)


def _in_range(value: float, field: str, low: float, high: float) -> float:
    if not low <= value <= high:  # false for NaN
        raise InvalidParameter(
            f"{field} must lie between {low:g} and {high:g}.",
            field=field,
            value=value if abs(value) < float("inf") else str(value),
            remedy=f"Send a number from {low:g} to {high:g}.",
        )
    return value
