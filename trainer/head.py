"""The two logit branches and how they combine: pure functions.

``branch_logits``, ``fold`` and ``tde_logits`` are the paper's Eq. 7 and 8 from weights alone: the reference that tests
hold the de-confounded classifier to. Production takes a ``FoldedHead`` of any classifier from ``Classifier.fold``
(``trainer.classifiers``); ``folded_branches`` and ``combine`` serve both. This module knows neither backbones nor
training loops.

Source: Tang, Huang and Zhang, *Long-Tailed Classification by Keeping the Good and Removing the Bad Momentum Causal
Effect*, NeurIPS 2020 (arXiv 2009.12991).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


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
    """All of a classifier that does not depend on the picture, computed once for inference."""

    class_weight: Float[Tensor, "classes dim"]
    """``W``, the scaled and normalised weight; de-confounded: ``tau / K * w_ck / (||w_ck|| + gamma)``."""
    unit_direction: Float[Tensor, "heads slice"]
    """``unit(d_k)``."""
    direction_scores: Float[Tensor, "heads classes"]
    """``W_ck . unit(d_k)``."""
    bias: Float[Tensor, " classes"] | None = None
    """Added to the factual logits; no picture's feature, so no part of the counterfactual."""
    normalise: Callable[[Tensor], Tensor] = unit
    """What the classifier makes of each slice of the features; it keeps their direction."""


def fold(
    weight: Float[Tensor, "classes dim"],
    direction: Float[Tensor, " dim"],
    *,
    num_heads: int,
    tau: float,
    gamma: float,
) -> FoldedHead:
    """Compute what ``branch_logits`` needs of weight and direction; arguments as there."""
    return fold_weight(tau / num_heads * normalised_weight(weight, num_heads, gamma), direction)


def fold_weight(
    class_weight: Float[Tensor, "classes heads slice"],
    direction: Float[Tensor, " dim"],
    *,
    bias: Float[Tensor, " classes"] | None = None,
    normalise: Callable[[Tensor], Tensor] = unit,
) -> FoldedHead:
    """Fold a scaled and normalised weight with a direction [D]; the rest as in ``FoldedHead``."""
    unit_direction = unit(direction.unflatten(-1, (class_weight.shape[1], -1)))
    scores = torch.einsum("ckd,kd->kc", class_weight, unit_direction)
    return FoldedHead(class_weight.flatten(-2), unit_direction, scores, bias, normalise)


def folded_branches(
    features: Float[Tensor, "n dim"], head: FoldedHead
) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n classes"], Float[Tensor, "n heads"]]:
    """Compute factual and counterfactual logits [N, C] and the confounder cosine ``cos(x_k, d_k)`` [N, K].

    With f the classifier's normaliser of features and W its normalised weight,

        factual[c]        = sum_k  W_ck . f(x_k) + bias[c]
        counterfactual[c] = sum_k  (f(x_k) . unit(d_k)) W_ck . unit(d_k)

    The counterfactual is the factual logit of the part of f(x) along d. Beside a plain linear classifier it costs
    K * (D / K + C) multiplications per image.
    """
    slices = features.unflatten(-1, head.unit_direction.shape)
    normalised = head.normalise(slices)
    along = (normalised * head.unit_direction).sum(dim=-1)
    factual = normalised.flatten(-2) @ head.class_weight.T
    if head.bias is not None:
        factual = factual + head.bias
    cosine = along if head.normalise is unit else (unit(slices) * head.unit_direction).sum(dim=-1)
    return factual, along @ head.direction_scores, cosine


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


def normalised_weight(
    weight: Float[Tensor, "classes dim"], num_heads: int, gamma: float
) -> Float[Tensor, "classes heads slice"]:
    """Divide each slice of the class weights by its norm: ``w_ck / (||w_ck|| + gamma)``; a zero slice stays zero."""
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
