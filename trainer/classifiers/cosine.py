"""The cosine classifier: neither the length of the features nor that of the weights counts."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from trainer.classifiers.interface import Classifier
from trainer.head import unit


class CosineClassifier(Classifier):
    """``logits[c] = tau / K * sum_k  unit(w_ck) . unit(x_k)``; no bias, and no gamma: one that is given is not used.

    Source: Gidaris and Komodakis, CVPR 2018; with slices as in Tang et al. 2020.
    """

    normalise = staticmethod(unit)

    def __init__(self, num_features: int, num_classes: int, *, gamma: float = 0.0, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(num_features, num_classes, **settings)

    def class_weight(self) -> Float[Tensor, "classes heads slice"]:
        """Compute ``tau / K * unit(w_ck)``."""
        return self.tau / self.num_heads * unit(self.weight.unflatten(-1, (self.num_heads, -1)))
