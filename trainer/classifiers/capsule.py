"""The capsule classifier: weights of length one, and features squashed to a length below one."""

import torch
from jaxtyping import Float
from torch import Tensor

from trainer.classifiers.cosine import CosineClassifier


def squash(vector: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """Bring each vector of the last axis to a length below one: ``x / (1 + ||x||)``.

    Example:
        >>> squash(torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
        tensor([[0.7500, 0.0000],
                [0.0000, 0.0000]])
    """
    squashed: Tensor = vector / (1 + torch.linalg.vector_norm(vector, dim=-1, keepdim=True))
    return squashed


class CapsuleClassifier(CosineClassifier):
    """``logits[c] = tau / K * sum_k  unit(w_ck) . x_k / (1 + ||x_k||)``; no bias, and no gamma.

    The squashing of capsule networks keeps the length as a measure of presence (Sabour et al., NeurIPS 2017, with
    ||x||^2 / (1 + ||x||^2)); Tang et al. 2020, appendix B, use ||x|| / (1 + ||x||) as a normaliser of classifiers.
    """

    normalise = staticmethod(squash)
