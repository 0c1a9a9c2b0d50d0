"""OnnxDetector: a bundle's detector in ONNX Runtime, on the provider asked for, warm and checked, or not at all.

Alpha goes into the graph, where it changes scores and with them what is suppressed and what is kept; one picture per
run. It knows nothing of queues or HTTP.
"""

import logging
from collections.abc import Iterator
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.bundle import PARITY_TOLERANCE, Bundle, BundleError
from service.detection_parity import DETECTION_OUTPUTS, DetectionParity
from service.model import Served
from service.session import Asked, OnnxSession, start_on

logger = logging.getLogger(__name__)

_INPUTS = {"image", "image_size", "alpha"}

Outputs = dict[str, NDArray[Any]]
"""What the graph gives for one picture: boxes [M, 4] in input pixels, scores [M], falling, labels [M], masks [M, m, m],
and count []: from there on rows are zero."""


class Detector(Served, Protocol):
    """What the app needs of a detector."""

    def detect(self, image: NDArray[np.uint8], size: tuple[int, int], alpha: float) -> Outputs:
        """Return the detections of one picture.

        Args:
            image: uint8 [H, W, 3].
            size: height and width of the picture in it.
            alpha: how far scores lean away from the frequent classes.
        """


class OnnxDetector:
    """A detector in one session on one device.

    Args:
        bundle: a verified bundle.
        provider: `cuda` refuses to start without it; `auto` takes it where the model runs there, and says in the log
            why it does not.
        threads: threads within an operator; None: the cores that this process may really use.

    Raises:
        ProviderUnavailable: CUDA was asked for and does not run the model.
        BundleError: the file is no such model, or fails the parity check.
    """

    def __init__(self, bundle: Bundle, *, provider: Asked, threads: int | None = None) -> None:
        self.manifest = bundle.manifest
        start_on(provider, lambda asked: self._start(bundle, asked, threads))

    def _start(self, bundle: Bundle, asked: Asked, threads: int | None) -> None:
        begin = perf_counter()
        self._session = OnnxSession(bundle, asked, threads)
        self.provider, self.precision = self._session.provider, self._session.precision
        self._check_contract()
        loaded = perf_counter()
        with self._session.trial():
            self._warm_up()
            warm = perf_counter()
            self._check_parity(bundle.detection_parity())
        logger.info(
            "%s %s runs on %s in %s: loaded in %.2f s, warm in %.2f s, parity checked in %.2f s",
            *(self.manifest.name, self.manifest.version, self.provider, self.precision),
            *(loaded - begin, warm - loaded, perf_counter() - warm),
        )

    def detect(self, image: NDArray[np.uint8], size: tuple[int, int], alpha: float) -> Outputs:
        """Return the detections of one picture."""
        outputs = self._session.run(DETECTION_OUTPUTS, _inputs(image, size, alpha))
        return {name: output[0] for name, output in zip(DETECTION_OUTPUTS, outputs, strict=True)}

    def _check_contract(self) -> None:
        self._session.refuse_without(_INPUTS, set(DETECTION_OUTPUTS))
        spec, detection = self.manifest.input, self.manifest.detection
        assert detection is not None, "every detector says what it does"
        rows, side = detection.max_detections, detection.mask_size
        expected = {
            "image": [1, spec.height, spec.width, 3],
            "boxes": [1, rows, 4],
            "scores": [1, rows],
            "labels": [1, rows],
            "masks": [1, rows, side, side],
        }
        values = self._session.inputs | self._session.outputs
        for name, shape in expected.items():
            found = values[name]
            stated = [length if isinstance(length, int) else shape[at] for at, length in enumerate(found[: len(shape)])]
            if len(found) != len(shape) or stated != shape:
                raise BundleError(
                    f"{self._session.path} has {name} {found}, and the manifest says {shape}; export the bundle again"
                )

    def _warm_up(self) -> None:
        spec, alpha = self.manifest.input, self.manifest.alpha.default
        image = np.zeros((spec.height, spec.width, 3), np.uint8)
        self._session.first_run(DETECTION_OUTPUTS, _inputs(image, (spec.height, spec.width), alpha))

    def _check_parity(self, parity: DetectionParity) -> None:
        assert self.manifest.detection is not None, "every detector says what it does"
        each = list(self._detected(parity))
        outputs = {name: np.stack([one[name] for one in each]) for name in DETECTION_OUTPUTS}
        gaps = parity.gaps(outputs, self.manifest.detection)
        self._session.refuse_gaps(gaps, PARITY_TOLERANCE[self.precision])

    def _detected(self, parity: DetectionParity) -> Iterator[Outputs]:
        for image, (height, width), alpha in zip(parity.images, parity.image_size, parity.alpha, strict=True):
            yield self.detect(image, (height, width), float(alpha))


def _inputs(image: NDArray[np.uint8], size: tuple[int, int], alpha: float) -> dict[str, NDArray[Any]]:
    return {
        "image": np.ascontiguousarray(image[None]),
        "image_size": np.array([size], np.float32),
        "alpha": np.array([alpha], np.float32),
    }
