"""The de-confounded classifier of the paper."""

from jaxtyping import Float
from torch import Tensor

from trainer.classifiers.interface import Classifier
from trainer.head import normalised_weight, unit


class DeconfoundedClassifier(Classifier):
    """``logits[c] = tau / K * sum_k  w_ck . unit(x_k) / (||w_ck|| + gamma)``; no bias.

    Source: Tang et al. 2020, Eq. 7.
    """

    normalise = staticmethod(unit)

    def class_weight(self) -> Float[Tensor, "classes heads slice"]:
        """Compute ``tau / K * w_ck / (||w_ck|| + gamma)``."""
        return self.tau / self.num_heads * normalised_weight(self.weight, self.num_heads, self.gamma)
