"""What a bundle shows of its model besides answers: pictures to try it with, its accuracy over alpha as measured, and
what activation maps take.

Read once, at the start. None is needed to serve: what is missing or cannot be read is left out, and the log says
so. It knows nothing of HTTP.
"""

import json
import logging
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.arrays import read_arrays
from service.bundle import CLASSIFIER_FILE, EVALUATION_FILE, SAMPLES_FILE, ActivationMaps, Bundle, BundleError

logger = logging.getLogger(__name__)

Shares = list[Annotated[float, Field(ge=0, le=1)]]

_MEASURED_DIRECTION = "ema"
"""The direction that the curve of an evaluation is measured with; a model of another has another curve."""


class AccuracyOverAlpha(BaseModel):
    """Accuracy at ascending alphas, without prior correction: of all test pictures, balanced, and by shot group."""

    model_config = ConfigDict(extra="ignore")

    alpha: list[float] = Field(min_length=2)
    overall: Shares
    balanced: Shares
    many: Shares | None = None
    medium: Shares | None = None
    few: Shares | None = None

    @model_validator(mode="after")
    def _one_value_for_each_alpha(self) -> Self:
        lengths = {name: len(values) for name, values in self if values is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the curve needs one value for each alpha, got {lengths}")
        if self.alpha != sorted(self.alpha):
            raise ValueError("the curve's alphas must ascend")
        return self


Precisions = dict[str, list[Annotated[float, Field(ge=0, le=1)] | None]]


class PrecisionOverAlpha(BaseModel):
    """A detector's average precision at ascending alphas, by what COCO and LVIS call it: AP, AP50, APr and so on.

    None where there was nothing to measure.
    """

    model_config = ConfigDict(extra="ignore")

    alpha: list[float] = Field(min_length=1)
    box: Precisions
    mask: Precisions

    @model_validator(mode="after")
    def _one_value_for_each_alpha(self) -> Self:
        curves = {
            f"{kind} {name}": len(curve) for kind in ("box", "mask") for name, curve in getattr(self, kind).items()
        }
        if set(curves.values()) - {len(self.alpha)}:
            raise ValueError(f"a curve needs one value for each of {len(self.alpha)} alphas, got {curves}")
        if self.alpha != sorted(self.alpha):
            raise ValueError("the curves' alphas must ascend")
        return self


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture as the model sees it, as a PNG file, and the index of its true class where that is known."""

    png: bytes
    truth: int | None = None


@dataclass(frozen=True, slots=True)
class Exhibits:
    """All that is shown; nothing by default."""

    samples: tuple[Sample, ...] = ()
    test_images: int | None = None
    accuracy: AccuracyOverAlpha | None = None
    activation_maps: ActivationMaps | None = None
    average_precision: PrecisionOverAlpha | None = None

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """Read what a verified bundle has to show."""
        if bundle.manifest.task == "detection":
            pictures, precision = _evaluation_of_a_detector(bundle)
            return cls(_samples_of_a_detector(bundle), pictures, average_precision=precision)
        return cls(_samples(bundle), *_evaluation(bundle), _activation_maps(bundle))


def _activation_maps(bundle: Bundle) -> ActivationMaps | None:
    if CLASSIFIER_FILE not in bundle.manifest.hashes():
        return None
    try:
        maps = ActivationMaps.load(bundle.path / CLASSIFIER_FILE)
        if len(maps.class_weight) != len(bundle.manifest.classes):
            raise BundleError(f"{CLASSIFIER_FILE} has {len(maps.class_weight)} classes; export the bundle again")
    except BundleError as error:
        logger.warning("%s: there are no activation maps: %s", bundle.path, error)
        return None
    return maps


def _samples(bundle: Bundle) -> tuple[Sample, ...]:
    """Return the samples of the bundle, or else its parity samples, which have no true class."""
    try:
        images, labels = _labelled(bundle) if SAMPLES_FILE in bundle.manifest.hashes() else (_unlabelled(bundle), None)
    except (ValueError, BundleError) as error:
        logger.warning("%s: there are no pictures to try: %s", bundle.path, error)
        return ()
    truths: list[int | None] = [None] * len(images) if labels is None else labels.tolist()
    return tuple(Sample(_png(image), truth) for image, truth in zip(images, truths, strict=True))


def _labelled(bundle: Bundle) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = read_arrays(bundle.path / SAMPLES_FILE, ("images", "labels")).values()
    fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] == 3 and labels.shape == (len(images),)
    if not (fits and labels.dtype.kind in "iu" and set(labels.tolist()) <= set(range(len(bundle.manifest.classes)))):
        raise ValueError(
            f"{SAMPLES_FILE} needs images uint8 [N, H, W, 3] with a class for each, got {images.dtype} "
            f"{list(images.shape)} and labels {labels.dtype} {list(labels.shape)}"
        )
    return images, labels


def _unlabelled(bundle: Bundle) -> NDArray[np.uint8]:
    return bundle.parity().images


def _samples_of_a_detector(bundle: Bundle) -> tuple[Sample, ...]:
    """Return the samples of the bundle, or else its parity samples, without what is beyond the picture."""
    try:
        images, sizes = _with_sizes(bundle) if SAMPLES_FILE in bundle.manifest.hashes() else _of_parity(bundle)
    except (ValueError, BundleError) as error:
        logger.warning("%s: there are no pictures to try: %s", bundle.path, error)
        return ()
    parts = sizes.astype(int).tolist()
    return tuple(Sample(_png(image[:height, :width])) for image, (height, width) in zip(images, parts, strict=True))


def _with_sizes(bundle: Bundle) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    images, sizes = read_arrays(bundle.path / SAMPLES_FILE, ("images", "sizes")).values()
    fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] == 3 and sizes.shape == (len(images), 2)
    if not (fits and (sizes >= 1).all() and (sizes <= images.shape[1:3]).all()):
        raise ValueError(
            f"{SAMPLES_FILE} needs images uint8 [N, H, W, 3] with a size within for each, got {images.dtype} "
            f"{list(images.shape)} and sizes {sizes.dtype} {list(sizes.shape)}"
        )
    return images, sizes


def _of_parity(bundle: Bundle) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    parity = bundle.detection_parity()
    return parity.images, parity.image_size


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _evaluation_of_a_detector(bundle: Bundle) -> tuple[int | None, PrecisionOverAlpha | None]:
    if EVALUATION_FILE not in bundle.manifest.hashes():
        return None, None
    try:
        report: dict[str, Any] = json.loads((bundle.path / EVALUATION_FILE).read_bytes())
        return int(report["pictures"]), PrecisionOverAlpha.model_validate(report["curve"])
    except (OSError, ValueError, TypeError, KeyError, ValidationError) as error:
        logger.warning("%s: %s holds no average precision over alpha: %s", bundle.path, EVALUATION_FILE, error)
        return None, None


def _evaluation(bundle: Bundle) -> tuple[int | None, AccuracyOverAlpha | None]:
    if EVALUATION_FILE not in bundle.manifest.hashes() or bundle.manifest.tde.direction != _MEASURED_DIRECTION:
        return None, None
    try:
        report: dict[str, Any] = json.loads((bundle.path / EVALUATION_FILE).read_bytes())
        return int(report["test_images"]), AccuracyOverAlpha.model_validate(report["curve"])
    except (OSError, ValueError, TypeError, KeyError, ValidationError) as error:
        logger.warning("%s: %s holds no accuracy over alpha: %s", bundle.path, EVALUATION_FILE, error)
        return None, None
