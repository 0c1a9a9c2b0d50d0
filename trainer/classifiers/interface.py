"""What every classifier is: a weight, the momentum direction that belongs to it, and two normalisers.

It knows neither backbones nor training loops.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trainer.head import FoldedHead, fold_weight


class Classifier(nn.Module, ABC):
    """Features [N, D] to logits [N, C], with the momentum direction that belongs to these very weights.

    ``forward`` gives the factual logits that training uses; ``fold`` gives what inference needs for both branches:

        logits[c] = sum_k  W_ck . f(x_k) + bias[c],    W = class_weight(), f = normalise

    Args:
        num_features: D.
        num_classes: C.
        num_heads: K, the number of slices; divides D.
        tau: scale of the logits.
        gamma: added to each class weight's norm.

    Raises:
        ValueError: ``num_heads`` does not divide the features.
    """

    weight: Tensor
    momentum_direction: Tensor
    bias: Tensor | None

    def __init__(
        self, num_features: int, num_classes: int, *, num_heads: int = 1, tau: float = 1.0, gamma: float = 0.0
    ) -> None:
        super().__init__()
        if num_features % num_heads:
            raise ValueError(f"num_heads must divide the backbone's {num_features} features, got {num_heads}")
        self.num_heads, self.tau, self.gamma = num_heads, tau, gamma
        bound = num_features**-0.5
        self.weight = nn.Parameter(torch.empty(num_classes, num_features).uniform_(-bound, bound))
        self.register_parameter("bias", None)
        self.register_buffer("momentum_direction", torch.zeros(num_features))

    @staticmethod
    @abstractmethod
    def normalise(slices: Float[Tensor, "*batch slice"], /) -> Float[Tensor, "*batch slice"]:
        """Normalise each slice of the features: it may change their length, never their direction."""

    @abstractmethod
    def class_weight(self) -> Float[Tensor, "classes heads slice"]:
        """Compute the weight that features meet: normalised, and scaled by tau / K."""

    def forward(self, features: Float[Tensor, "n dim"]) -> Float[Tensor, "n classes"]:
        """Compute the factual logits."""
        normalised = self.normalise(features.unflatten(-1, (self.num_heads, -1)))
        logits: Tensor = normalised.flatten(-2) @ self.class_weight().flatten(-2).T
        return logits if self.bias is None else logits + self.bias

    def fold(self, direction: Float[Tensor, " dim"] | None = None) -> FoldedHead:
        """Compute all that inference needs; with another direction in place of the momentum direction, if given."""
        direction = self.momentum_direction if direction is None else direction
        return fold_weight(self.class_weight(), direction, bias=self.bias, normalise=self.normalise)

    @torch.no_grad()
    def update_direction(self, features: Float[Tensor, "n dim"], *, momentum_decay: float) -> None:
        """Gather the moving average of features: ``d <- mu * d + mean over the batch of x``."""
        self.momentum_direction.mul_(momentum_decay).add_(features.detach().float().mean(dim=0))
