"""What a request may ask of a detector. It knows no form of request: `service.routes.forms` reads those."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.bundle import DetectionSpec
from service.detection_predictor import Limits
from service.detection_schemas import DetectRequest
from service.routes.rules import GivenImage, Options, RequestRules, Rules, in_range

DEFAULT_SCORE_THRESHOLD: Final = 0.05
DEFAULT_DETECTIONS: Final = 100
MOST_MASK_STEPS: Final = 8_000_000
"""Of all masks of one request, in equal shares for its pictures: 0.6 seconds at most, and about 20 MB of counts."""


@dataclass(frozen=True, slots=True)
class DetectionImageQuery:
    """One picture, its alpha, who chose that, and what to call the picture in an error."""

    data: bytes
    field: str
    alpha: float
    alpha_source: str


@dataclass(frozen=True, slots=True)
class DetectionQuery:
    """A whole request to a detector."""

    images: list[DetectionImageQuery]
    limits: Limits


class DetectionRules(RequestRules[DetectionQuery]):
    """What a request may ask of a detector.

    Args:
        rules: the bounds of alpha, on the client's terms, and of images.
        detection: what the detector does.
    """

    names = ("alpha", "score_threshold", "top_k", "masks")
    knobs = ("alpha",)
    switches = ("masks",)
    body = DetectRequest

    def __init__(self, rules: Rules, detection: DetectionSpec) -> None:
        self.settings = rules.settings
        self._rules, self._most = rules, detection.max_detections

    def query(self, images: Sequence[GivenImage], options: Options) -> DetectionQuery:
        """Return the query of pictures."""
        self.refuse_too_many(len(images))
        limits = Limits(
            DEFAULT_SCORE_THRESHOLD if options.score_threshold is None else options.score_threshold,
            min(DEFAULT_DETECTIONS, self._most) if options.top_k is None else options.top_k,
            0 if options.masks is False else MOST_MASK_STEPS // len(images),
        )
        return DetectionQuery([self._image(options, *image) for image in images], limits)

    def number(self, name: str, value: float, field: str) -> float:
        """Return the number of an option if it may be that."""
        if name == "alpha":
            return self._rules.knob(name, value, field)
        return in_range(value, field, 1, self._most) if name == "top_k" else in_range(value, field, 0, 1)

    def _image(self, options: Options, data: bytes, field: str, own_alpha: float | None = None) -> DetectionImageQuery:
        alpha, terms = options.alpha if own_alpha is None else own_alpha, self._rules.terms
        if alpha is None:
            return DetectionImageQuery(data, field, terms.alpha, terms.alpha_source)
        return DetectionImageQuery(data, field, alpha, "request")
