"""The de-confounded classifier: its two logit branches and the momentum direction.

The pure functions carry the mathematics; ``DeconfoundedHead`` only holds the weight and the direction.
This module knows neither backbones nor training loops.

Source: Tang, Huang and Zhang, *Long-Tailed Classification by Keeping the Good and Removing the Bad Momentum Causal
Effect*, NeurIPS 2020 (arXiv 2009.12991).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


def unit(vector: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """Scale each vector of the last axis to length one: ``v / ||v||``; the zero vector stays zero.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    # Dividing by the largest entry first keeps the squares from under- or overflowing. The result does not depend
    # on that scale, hence no gradient needs to flow through it.
    scale = vector.detach().abs().amax(dim=-1, keepdim=True)
    scaled = vector / torch.where(scale > 0, scale, 1)
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / torch.where(norm > 0, norm, 1)


def branch_logits(
    features: Float[Tensor, "n dim"],
    weight: Float[Tensor, "classes dim"],
    direction: Float[Tensor, " dim"],
    *,
    num_heads: int,
    tau: float,
    gamma: float,
) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n classes"]]:
    """Compute the de-confounded logits and what the confounder alone would have said.

    With features, weight and direction cut into K equal slices,

        factual[c]        = tau / K * sum_k  w_ck . unit(x_k)               / (||w_ck|| + gamma)
        counterfactual[c] = tau / K * sum_k  cos(x_k, d_k) w_ck . unit(d_k) / (||w_ck|| + gamma)

    Args:
        features: x, one row per image [N, D].
        weight: w, one row per class [C, D].
        direction: d, the momentum direction [D]; only the direction of each slice matters.
        num_heads: K, the number of slices; divides D.
        tau: scale of the logits (no unit; the paper uses 16).
        gamma: added to each class weight's norm (the paper uses 1/32).

    Returns:
        ``(factual, counterfactual)``, both [N, C]. A slice that is all zero contributes zero.

    Raises:
        ValueError: shapes that do not fit each other or ``num_heads``.

    Example:
        >>> x, w, d = torch.tensor([[3.0, 4.0]]), torch.eye(2), torch.tensor([1.0, 0.0])
        >>> factual, counterfactual = branch_logits(x, w, d, num_heads=1, tau=10.0, gamma=0.0)
        >>> factual.tolist(), counterfactual.tolist()
        ([[6.0, 8.0]], [[6.0, 0.0]])

    Source: Tang et al. 2020, Eq. 7 (factual) and the subtrahend of Eq. 8 (counterfactual).
    """
    _check_shapes(features, weight, direction, num_heads)
    return folded_branches(features, fold(weight, direction, num_heads=num_heads, tau=tau, gamma=gamma))[:2]


class FoldedHead(NamedTuple):
    """All of the classifier that does not depend on the picture, computed once for inference."""

    class_weight: Float[Tensor, "classes dim"]
    """``tau / K * w_ck / (||w_ck|| + gamma)``."""
    unit_direction: Float[Tensor, "heads slice"]
    """``unit(d_k)``."""
    direction_scores: Float[Tensor, "heads classes"]
    """``tau / K * w_ck . unit(d_k) / (||w_ck|| + gamma)``."""


def fold(
    weight: Float[Tensor, "classes dim"],
    direction: Float[Tensor, " dim"],
    *,
    num_heads: int,
    tau: float,
    gamma: float,
) -> FoldedHead:
    """Compute what ``branch_logits`` needs of weight and direction; arguments as there."""
    class_weight = tau / num_heads * _normalised_weight(weight, num_heads, gamma)
    unit_direction = unit(direction.unflatten(-1, (num_heads, -1)))
    return FoldedHead(
        class_weight.flatten(-2), unit_direction, torch.einsum("ckd,kd->kc", class_weight, unit_direction)
    )


def folded_branches(
    features: Float[Tensor, "n dim"], head: FoldedHead
) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n classes"], Float[Tensor, "n heads"]]:
    """Compute factual and counterfactual logits [N, C] and the confounder cosine ``cos(x_k, d_k)`` [N, K].

    Beside a plain linear classifier the counterfactual branch costs K * (D / K + C) multiplications per image.
    """
    unit_features = unit(features.unflatten(-1, head.unit_direction.shape))
    cosine = (unit_features * head.unit_direction).sum(dim=-1)
    return unit_features.flatten(-2) @ head.class_weight.T, cosine @ head.direction_scores, cosine


def tde_logits(
    features: Float[Tensor, "n dim"],
    weight: Float[Tensor, "classes dim"],
    direction: Float[Tensor, " dim"],
    alpha: float | Float[Tensor, " n"] | Float[Tensor, ""],
    *,
    num_heads: int,
    tau: float,
    gamma: float,
) -> Float[Tensor, "n classes"]:
    """Compute the total direct effect: ``factual - alpha * counterfactual``.

    Args:
        features: [N, D].
        weight: [C, D].
        direction: [D].
        alpha: how much of the confounder's part is taken away: one number, or one per row [N]. 0 is the plain
            de-confounded model.
        num_heads: K.
        tau: scale of the logits.
        gamma: added to each class weight's norm.

    Returns:
        Logits [N, C], linear in alpha.

    Raises:
        ValueError: shapes that do not fit each other or ``num_heads``.

    Example:
        >>> x, w, d = torch.tensor([[3.0, 4.0]]), torch.eye(2), torch.tensor([1.0, 0.0])
        >>> tde_logits(x, w, d, 0.5, num_heads=1, tau=10.0, gamma=0.0).tolist()
        [[3.0, 8.0]]

    Source: Tang et al. 2020, Eq. 8.
    """
    factual, counterfactual = branch_logits(features, weight, direction, num_heads=num_heads, tau=tau, gamma=gamma)
    return combine(factual, counterfactual, alpha)


def combine(
    factual: Float[Tensor, "n classes"],
    counterfactual: Float[Tensor, "n classes"],
    alpha: float | Float[Tensor, " n"] | Float[Tensor, ""],
) -> Float[Tensor, "n classes"]:
    """Subtract the counterfactual branch, alpha times: ``factual - alpha * counterfactual`` (Eq. 8).

    Raises:
        ValueError: an alpha that is neither one number nor one per row.
    """
    if isinstance(alpha, Tensor) and alpha.ndim > 0:
        if alpha.shape != factual.shape[:1]:
            raise ValueError(f"alpha must be one number or one per row [{len(factual)}], got {list(alpha.shape)}")
        alpha = alpha.unsqueeze(-1)
    return factual - alpha * counterfactual


def background_exempted_probabilities(
    factual_logits: Float[Tensor, "n classes"], logits: Float[Tensor, "n classes"], *, background: int
) -> Float[Tensor, "n classes"]:
    """Keep the background's factual probability and share the rest out by TDE.

    With p = softmax(factual_logits), q = softmax(logits) and b the background,

        result[b] = p[b],    result[i] = (1 - p[b]) * q[i] / (1 - q[b])   for every foreground class i.

    Args:
        factual_logits: [N, C].
        logits: TDE logits [N, C].
        background: index b of the background class, 0 <= b < C.

    Returns:
        Probabilities [N, C]; each row sums to one.

    Raises:
        ValueError: a background index outside the classes, or no foreground class.

    Example:
        >>> background_exempted_probabilities(torch.zeros(1, 4), torch.tensor([[9.0, 1.0, 1.0, 1.0]]), background=0)
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])

    Source: Tang et al. 2020, Eq. 9.
    """
    classes = factual_logits.shape[-1]
    if not 0 <= background < classes or classes < 2:
        raise ValueError(f"background must be an index below {classes} of at least 2 classes, got {background}")
    is_background = torch.arange(classes, device=logits.device) == background
    # q[i] / (1 - q[b]) is the softmax over the foreground alone: no division by a vanishing 1 - q[b].
    foreground_share = logits.masked_fill(is_background, -math.inf).softmax(dim=-1)
    factual = factual_logits.softmax(dim=-1)
    foreground_mass = factual.masked_fill(is_background, 0).sum(dim=-1, keepdim=True)
    return torch.where(is_background, factual, foreground_mass * foreground_share)


def _normalised_weight(
    weight: Float[Tensor, "classes dim"], num_heads: int, gamma: float
) -> Float[Tensor, "classes heads slice"]:
    slices = weight.unflatten(-1, (num_heads, -1))
    norm = torch.linalg.vector_norm(slices, dim=-1, keepdim=True) + gamma
    normalised: Tensor = slices / torch.where(norm > 0, norm, 1)
    return normalised


def _check_shapes(features: Tensor, weight: Tensor, direction: Tensor, num_heads: int) -> None:
    dim = features.shape[-1]
    if weight.shape[-1] != dim or direction.shape != (dim,):
        raise ValueError(
            f"features, weight and direction must share their last axis, got {list(features.shape)}, "
            f"{list(weight.shape)} and {list(direction.shape)}"
        )
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads must divide the feature size {dim}, got {num_heads}")


class DeconfoundedHead(nn.Module):
    """The classifier of Eq. 7 with the momentum direction that belongs to its very weights.

    ``forward`` gives the factual logits that training uses; ``branches`` gives both branches for inference.

    Args:
        num_features: D.
        num_classes: C.
        num_heads: K; divides D.
        tau: scale of the logits.
        gamma: added to each class weight's norm.
    """

    weight: Tensor
    momentum_direction: Tensor

    def __init__(self, num_features: int, num_classes: int, *, num_heads: int, tau: float, gamma: float) -> None:
        super().__init__()
        if num_features % num_heads:
            raise ValueError(f"num_heads must divide the backbone's {num_features} features, got {num_heads}")
        self.num_heads, self.tau, self.gamma = num_heads, tau, gamma
        bound = num_features**-0.5
        self.weight = nn.Parameter(torch.empty(num_classes, num_features).uniform_(-bound, bound))
        self.register_buffer("momentum_direction", torch.zeros(num_features))

    def forward(self, features: Float[Tensor, "n dim"]) -> Float[Tensor, "n classes"]:
        """Compute the factual logits (Eq. 7)."""
        class_weight = self.tau / self.num_heads * _normalised_weight(self.weight, self.num_heads, self.gamma)
        unit_features = unit(features.unflatten(-1, (self.num_heads, -1)))
        logits: Tensor = unit_features.flatten(-2) @ class_weight.flatten(-2).T
        return logits

    def fold(self, direction: Float[Tensor, " dim"] | None = None) -> FoldedHead:
        """Compute all that inference needs; with another direction in place of the momentum direction, if given."""
        direction = self.momentum_direction if direction is None else direction
        return fold(self.weight, direction, num_heads=self.num_heads, tau=self.tau, gamma=self.gamma)

    @torch.no_grad()
    def update_direction(self, features: Float[Tensor, "n dim"], *, momentum_decay: float) -> None:
        """Gather the moving average of features: ``d <- mu * d + mean over the batch of x``."""
        self.momentum_direction.mul_(momentum_decay).add_(features.detach().float().mean(dim=0))
