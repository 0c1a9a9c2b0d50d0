"""The linear classifier: what most networks end with, and where the paper's story starts."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trainer.classifiers.interface import Classifier


def as_it_is(vector: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """Leave the features as they are."""
    return vector


class LinearClassifier(Classifier):
    """``logits[c] = w_c . x + bias[c]``.

    Scale and gamma have no meaning here: those given are not used (``tau / K`` is 1). ``num_heads`` changes no factual
    logit; it says into how many slices the counterfactual cuts features and direction.
    """

    normalise = staticmethod(as_it_is)

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        num_heads: int = 1,
        tau: float = 1.0,
        gamma: float = 0.0,
    ) -> None:
        super().__init__(num_features, num_classes, num_heads=num_heads, tau=float(num_heads))
        bound = num_features**-0.5
        self.bias = nn.Parameter(torch.empty(num_classes).uniform_(-bound, bound))

    def class_weight(self) -> Float[Tensor, "classes heads slice"]:
        """Give the weight itself, in slices."""
        slices: Tensor = self.weight.unflatten(-1, (self.num_heads, -1))
        return slices
