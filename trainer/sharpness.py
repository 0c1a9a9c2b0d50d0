"""Sharpness-aware minimisation: the gradient of the worst weights nearby, for whichever optimizer takes the step.

    e = rho * g / ||g||,    g = gradient of the batch's loss at w;    the optimizer then steps from w by the gradient
    at w + e.

Each step costs two passes. Norm and gradient are those of the whole batch, over all trained parameters and over all
processes, so several processes take the step of one. Nothing is kept from step to step: a resumed run needs no more.

What the momentum direction means then: momentum carries gradients that were made of features at w + e, while d and all
statistics are gathered from the first pass, at w itself, as it is w that is kept and served. Running statistics of
batch normalisation are those of w too. The two means differ by what a step of length rho moves the features.

Source: Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*, ICLR 2021, Algorithm 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def worst_nearby(model: nn.Module, rho: float) -> Iterator[None]:
    """Move the weights by ``rho * g / ||g||`` along their gradients, and put them back at the end of the block.

    Buffers, such as running statistics, go back to what they were too; gradients are cleared at the beginning, so that
    those of the block remain. Where all gradients are zero, nothing moves.

    Args:
        model: with gradients in the parameters that are trained.
        rho: how far to move, in the Euclidean norm of all weights together.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = layer.weight.copy_(torch.tensor([[1.0, 1.0]]))
        >>> layer.weight.grad = torch.tensor([[3.0, 4.0]])
        >>> with worst_nearby(layer, 0.5):
        ...     layer.weight.tolist()
        [[1.2999999523162842, 1.399999976158142]]
        >>> layer.weight.tolist()
        [[1.0, 1.0]]
    """
    weights: list[Tensor] = [parameter for parameter in model.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in weights if parameter.grad is not None]
    changed: list[Tensor] = [*weights, *model.buffers()]
    kept = [tensor.detach().clone() for tensor in changed]
    with torch.no_grad():
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        scale = torch.where(norm > 0, rho / norm, 0.0)
        torch._foreach_add_(weights, list(torch._foreach_mul(gradients, scale)))
    model.zero_grad(set_to_none=True)
    yield
    with torch.no_grad():
        torch._foreach_copy_(changed, kept)
