"""The parity samples of a bundle: pictures with the numbers that PyTorch gave for them.

Whoever loads the model, here or in another runtime, can tell by them whether it is the model that was trained.
It knows nothing of PyTorch or ONNX Runtime: numbers in, gaps out.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from service.arrays import read_arrays
from service.manifest import BundleError, Precision

PARITY_TOLERANCE: dict[Precision, float] = {"fp32": 5e-4, "fp16": 2e-2}
"""The largest gap of an output, relative to its largest expected value (at least 1)."""

COMPARED_OUTPUTS = ("logits", "factual_logits", "counterfactual_logits", "confounder_cosine")


@dataclass(frozen=True, eq=False)
class ParityFile:
    """What every kind of parity samples shares: the file of its arrays, one for each field of the dataclass."""

    def to_bytes(self) -> bytes:
        """Return the content of `parity.npz`."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read `parity.npz` without unpickling anything.

        Raises:
            BundleError: it is no such file, or an array is missing, or has another type or shape.
        """
        try:
            return cls(**read_arrays(path, [field.name for field in fields(cls)]))
        except ValueError as error:
            raise BundleError(f"{path} does not hold parity samples: {error}; export the bundle again") from error


@dataclass(frozen=True, eq=False)
class Parity(ParityFile):
    """Sample inputs and the outputs expected for them; N samples, C classes, K slices.

    Attributes:
        images: uint8 [N, H, W, 3], already resized and cropped.
        alpha, prior_strength: float32 [N], the two knobs; mixed on purpose.
        logits, factual_logits, counterfactual_logits: float32 [N, C].
        confounder_cosine: float32 [N, K].
    """

    images: NDArray[np.uint8]
    alpha: NDArray[np.float32]
    prior_strength: NDArray[np.float32]
    logits: NDArray[np.float32]
    factual_logits: NDArray[np.float32]
    counterfactual_logits: NDArray[np.float32]
    confounder_cosine: NDArray[np.float32]

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_array(field.name, getattr(self, field.name), len(self.images))

    def gaps(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """Return for each output the largest difference, relative to its largest expected value (at least 1).

        An output of another shape, or with a NaN, has an infinite gap.
        """
        return {name: _gap(np.asarray(outputs[name]), getattr(self, name)) for name in COMPARED_OUTPUTS}


def _gap(actual: NDArray[Any], expected: NDArray[np.float32]) -> float:
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    difference = np.abs(actual.astype(np.float64) - expected)
    return float(difference.max() / max(1.0, np.abs(expected).max()))


_DIMENSIONS = {"images": 4, "alpha": 1, "prior_strength": 1}


def _check_array(name: str, array: NDArray[Any], count: int) -> None:
    expected_type = np.uint8 if name == "images" else np.float32
    dimensions = _DIMENSIONS.get(name, 2)
    if array.dtype != expected_type or array.ndim != dimensions or len(array) != count or count == 0:
        raise ValueError(
            f"{name} must be {np.dtype(expected_type)} with {dimensions} dimensions, the first of them one row per "
            f"image and at least one, got {array.dtype} {list(array.shape)} for {count} images"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got a NaN or an infinity")
