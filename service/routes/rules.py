"""What a request may ask of this model under these settings, and what it has asked once that is settled.

Values come as text or as numbers, and are refused with their name, the value and the remedy. It knows no form of
request: `service.routes.forms` reads those.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeVar

from pydantic import BaseModel

from service.bundle import Manifest
from service.clients import ClientPolicy, Terms, fit
from service.errors import InvalidParameter, TooManyImages, Value
from service.repeats import repeated
from service.schemas import PredictRequest
from service.scoring import Knobs
from service.settings import Settings

DEFAULT_TOP_K: Final = 5
Query = TypeVar("Query")
GivenImage = tuple[Any, ...]
"""A picture's bytes, what to call it in an error, and its own value of each knob (None: not said), or none at all."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SWITCH: Final = {"true": True, "1": True, "false": False, "0": False}


class ImageQuery(NamedTuple):
    """One picture, its knobs, who chose its alpha, and what to call it in an error."""

    data: bytes
    field: str
    knobs: Knobs
    alpha_source: str


class PredictQuery(NamedTuple):
    """A whole request."""

    images: list[ImageQuery]
    top_k: int
    breakpoints: bool
    lines: bool
    explain: bool


@dataclass(slots=True)
class Options:
    """What a request says of each option of either task; None where it says nothing."""

    alpha: float | None = None
    prior_strength: float | None = None
    top_k: int | None = None
    breakpoints: bool | None = None
    lines: bool | None = None
    explain: bool | None = None
    score_threshold: float | None = None
    masks: bool | None = None


class RequestRules(ABC, Generic[Query]):
    """Which options a prediction request takes, and what it asks once they are checked.

    Attributes:
        names: the options of a request.
        knobs: those that each picture may have of its own.
        switches: those that are true or false; `top_k` is a whole number, and the others are numbers.
        body: the schema of a request in JSON.
    """

    names: ClassVar[tuple[str, ...]]
    knobs: ClassVar[tuple[str, ...]]
    switches: ClassVar[tuple[str, ...]]
    body: ClassVar[type[BaseModel]]
    settings: Settings

    @abstractmethod
    def query(self, images: Sequence[GivenImage], options: Options) -> Query:
        """Return the query of pictures."""

    @abstractmethod
    def number(self, name: str, value: float, field: str) -> float:
        """Return the number of an option if it may be that."""

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

    def options(self, pairs: Sequence[tuple[str, str]], where: str) -> Options:
        """Return the options written as text, each at most once."""
        options = Options()
        for name, text in pairs:
            if name not in self.names:
                raise self.unknown(name, text, where)
            if getattr(options, name) is not None:
                raise repeated(name, text)
            setattr(options, name, self.option(name, text))
        return options

    def unknown(self, name: str, value: Value, where: str) -> InvalidParameter:
        """Return the refusal of an option that the model's task does not have."""
        return InvalidParameter(
            f"{name} is for another task than the model's: see `task` in GET /model."
            if name in Options.__slots__
            else f"The {where} takes no parameter called {name}.",
            field=name,
            value=value,
            remedy=f"Use {', '.join(self.names)}, or leave it out.",
        )

    def not_of_an_image(self, name: str, value: Value, field: str) -> InvalidParameter:
        """Return the refusal of an option, called so in some task, that stands within an image and may not."""
        if name in self.names:
            message, remedy = f"{name} is for the whole request.", "Send it beside images, not within."
        else:
            message, remedy = (
                self.unknown(name, value, "body").message,
                f"Use {', '.join(self.knobs)}, or leave it out.",
            )
        return InvalidParameter(message, field=field, value=value, remedy=remedy)

    def option(self, name: str, text: str) -> float | int | bool:
        """Return the value of an option written as text."""
        if name in self.switches:
            if text not in _SWITCH:
                raise InvalidParameter(
                    f"{name} must be true or false.", field=name, value=text, remedy="Send true or false."
                )
            return _SWITCH[text]
        if name == "top_k":
            if not (text.isascii() and text.isdigit() and len(text) < 19):
                raise InvalidParameter(
                    f"{name} must be a whole number.", field=name, value=text, remedy="Send digits only, such as 5."
                )
            return int(self.number(name, int(text), name))
        return self.number(name, _number(text, name), name)


class Rules(RequestRules[PredictQuery]):
    """What a request may ask of this model under these settings and on a client's terms; None: on anyone's."""

    names = ("alpha", "prior_strength", "top_k", "breakpoints", "lines", "explain")
    knobs = ("alpha", "prior_strength")
    switches = ("breakpoints", "lines", "explain")
    body = PredictRequest

    def __init__(self, manifest: Manifest, settings: Settings, terms: Terms | None = None) -> None:
        self.settings = settings
        self.terms = fit(ClientPolicy(), manifest, settings.max_prior_strength) if terms is None else terms
        self._classes = len(manifest.classes)
        self._usual = Knobs(self.terms.alpha, self.terms.prior_strength, self.terms.log_target)

    def query(self, images: Sequence[GivenImage], options: Options) -> PredictQuery:
        """Return the query of pictures."""
        self.refuse_too_many(len(images))
        return PredictQuery(
            [self._image(options, *image) for image in images],
            min(DEFAULT_TOP_K, self._classes) if options.top_k is None else options.top_k,
            bool(options.breakpoints),
            bool(options.lines),
            bool(options.explain),
        )

    def _image(
        self,
        options: Options,
        data: bytes,
        field: str,
        own_alpha: float | None = None,
        own_strength: float | None = None,
    ) -> ImageQuery:
        alpha = options.alpha if own_alpha is None else own_alpha
        strength = options.prior_strength if own_strength is None else own_strength
        return ImageQuery(
            data, field, self.chosen(alpha, strength), self.terms.alpha_source if alpha is None else "request"
        )

    def chosen(self, alpha: float | None, prior_strength: float | None) -> Knobs:
        """Return the knobs of a picture; None: the default."""
        usual = self._usual
        if alpha is None and prior_strength is None:
            return usual
        return Knobs(
            usual.alpha if alpha is None else alpha,
            usual.prior_strength if prior_strength is None else prior_strength,
            usual.log_target,
        )

    def knob(self, name: str, value: float, field: str) -> float:
        """Return an alpha if the model and the client's policy allow it, a prior_strength if the settings do too."""
        return in_range(value, field, *self.bounds(name)) + 0.0  # -0.0 is 0

    def bounds(self, name: str) -> tuple[float, float]:
        """Return the least and the largest value of a knob."""
        terms = self.terms
        return (terms.alpha_min, terms.alpha_max) if name == "alpha" else (0.0, terms.max_prior_strength)

    def top_k(self, value: int, field: str) -> int:
        """Return the number of classes to name if the model has so many."""
        return int(in_range(value, field, 1, self._classes))

    def number(self, name: str, value: float, field: str) -> float:
        """Return the number of an option if it may be that."""
        return self.top_k(int(value), field) if name == "top_k" else self.knob(name, value, field)


def _number(text: str, field: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise InvalidParameter(
            f"{field} must be a finite number.", field=field, value=text, remedy="Send one such as 0.5."
        )
    return float(text)


def in_range(value: float, field: str, low: float, high: float) -> float:
    """Return a number if it lies within its bounds."""
    if not low <= value <= high:  # false for NaN
        raise InvalidParameter(
            f"{field} must lie between {low:g} and {high:g}.",
            field=field,
            value=value if abs(value) < float("inf") else str(value),
            remedy=f"Send a number from {low:g} to {high:g}.",
        )
    return value
