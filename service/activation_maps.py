"""Exact class activation maps: where in the picture a logit comes from, at any alpha, without gradients.

Where features are the average of a feature map over the picture, every logit is a sum over places, and its map is that
sum not yet taken. What it takes besides the feature map is the classifier, which a bundle brings as `classifier.npz`.
It knows nothing of ONNX Runtime, PyTorch or HTTP.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.arrays import read_arrays
from service.manifest import BundleError

CLASSIFIER_FILE = "classifier.npz"
"""What activation maps need; not needed to serve."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ActivationMaps:
    """A classifier over pooled features; C classes, D features in K slices.

    Attributes:
        class_weight: W, normalised and scaled, float32 [C, D]; de-confounded: `tau / K * w_ck / (||w_ck|| + gamma)`.
        unit_direction: the direction of the frequent classes, length one in each slice, float32 [K, D / K].
        divisor: (a, b), float32 [2]: features are divided by `a + b * ||x_k||`; de-confounded and cosine: (0, 1).
    """

    class_weight: NDArray[np.float32]
    unit_direction: NDArray[np.float32]
    divisor: NDArray[np.float32]

    def __post_init__(self) -> None:
        arrays = [getattr(self, field.name) for field in fields(self)]
        fit = self.class_weight.ndim == self.unit_direction.ndim == 2 and self.divisor.shape == (2,)
        if not fit or self.class_weight.shape[1] != self.unit_direction.size:
            raise ValueError(
                f"arrays [C, D], [K, D / K] and [2] are needed, got {[list(each.shape) for each in arrays]}"
            )
        if not all(each.dtype == np.float32 and np.isfinite(each).all() for each in arrays):
            raise ValueError("all arrays must be float32 and finite")

    def of(self, feature_map: NDArray[Any], alpha: float, classes: Sequence[int]) -> Floats:
        """Return the maps of some classes for one picture, [n, h, w].

        `map_c(p) = 1 / (h w) sum_k v_ck . F_k(p) / (a + b ||x_k||)` with `v_ck = (I - alpha d_k d_k^T) W_ck` and x the
        average of F over the picture. Its sum over all places p is `factual[c] - alpha * counterfactual[c]`, without
        what belongs to no place: a classifier's bias and the prior correction.

        Args:
            feature_map: F [D, h, w].
            alpha: as in the logits.
            classes: indices c.

        >>> one = np.ones((1, 2), np.float32)
        >>> maps = ActivationMaps(one, np.array([[1, 0]], np.float32), np.array([0, 1], np.float32))
        >>> features = np.array([[[6.0, 0.0]], [[0.0, 8.0]]])  # averages (3, 4), of length 5
        >>> maps.of(features, 0.0, [0]).round(6).tolist(), maps.of(features, 1.0, [0]).round(6).tolist()
        ([[[0.6, 0.8]]], [[[0.0, 0.8]]])

        Source: class activation maps (Zhou et al., CVPR 2016) of the logits of Tang et al. 2020, Eq. 8.
        """
        places = feature_map.astype(np.float64)
        slices = (len(self.unit_direction), -1)
        pooled = places.mean(axis=(1, 2)).reshape(slices)
        offset, slope = self.divisor.astype(np.float64)
        divisor = offset + slope * np.linalg.norm(pooled, axis=1)
        scale = np.divide(1, divisor, out=np.zeros_like(divisor), where=divisor > 0)
        direction = self.unit_direction.astype(np.float64)
        weight = self.class_weight[list(classes)].astype(np.float64).reshape(len(classes), *direction.shape)
        along = np.einsum("ckd,kd->ck", weight, direction)
        turned = (weight - alpha * along[..., None] * direction) * scale[:, None]
        maps: Floats = np.tensordot(turned.reshape(len(classes), -1), places, axes=1) / places[0].size
        return maps

    def to_bytes(self) -> bytes:
        """Return the content of `classifier.npz`."""
        buffer = io.BytesIO()
        np.savez(buffer, **{field.name: getattr(self, field.name) for field in fields(self)})
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path) -> "ActivationMaps":
        """Read `classifier.npz` without unpickling anything.

        Raises:
            BundleError: it is no such file.
        """
        try:
            return cls(**read_arrays(path, [field.name for field in fields(cls)]))
        except ValueError as error:
            raise BundleError(f"{path} does not hold a classifier: {error}; export the bundle again") from error


def area_at_half_energy(activation_map: NDArray[Any]) -> float | None:
    """Return the smallest share of the places that holds half of the evidence for the class, its positive part.

    None where there is no evidence for it at all.

    >>> area_at_half_energy(np.array([[3.0, 1.0], [-9.0, 1.0]])), area_at_half_energy(np.array([[-1.0]]))
    (0.25, None)
    """
    evidence = np.sort(np.maximum(activation_map, 0), axis=None)[::-1]
    total = evidence.sum()
    if not total > 0:
        return None
    return float((evidence.cumsum().searchsorted(total / 2) + 1) / evidence.size)
