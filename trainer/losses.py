"""The losses that a recipe may train with: logits and labels to a number per picture. Knows no model.

Balanced softmax and logit adjustment shift the logits by what the class counts say, in training alone: the plain logits
are then right for a world in which every class is equally frequent, so prior correction after training would count the
long tail twice.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from trainer.config import LossConfig
from trainer.long_tail import log_class_share

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits [N, C] and labels [N] to the mean loss of the batch."""


def create_loss(config: LossConfig, class_counts: NDArray[np.int64], device: torch.device) -> Loss:
    """Make the loss that a recipe names, for training data with these class counts [C].

    Example:
        >>> loss = create_loss(LossConfig(name="balanced_softmax"), np.array([3, 1]), torch.device("cpu"))
        >>> round(float(loss(torch.zeros(1, 2), torch.tensor([1]))), 4)  # -log(1 / 4)
        1.3863
    """
    if config.name == "focal":
        return Focal(config.gamma)
    if config.name == "cross_entropy":
        return functional.cross_entropy
    log_share = torch.from_numpy(log_class_share(class_counts)).float().to(device)
    return LogitAdjusted(log_share, config.tau if config.name == "logit_adjustment" else 1.0)


class Focal:
    """``-(1 - p_y) ** gamma * log p_y`` with p = softmax(logits): pictures that are easy count less.

    Source: Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, Eq. 4, over all classes by softmax.
    """

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma

    def __call__(self, logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Compute the mean loss."""
        surprise = functional.cross_entropy(logits, labels, reduction="none")
        # expm1 keeps 1 - p exact and its gradient finite where p is near one.
        missing = (-torch.expm1(-surprise)).clamp_min(torch.finfo(surprise.dtype).tiny)
        return (missing**self.gamma * surprise).mean()


class LogitAdjusted:
    """Cross entropy of ``logits + tau * log(class share in training)``.

    With tau 1 this is balanced softmax: ``-log(n_y e^y / sum_c n_c e^c)``, as a constant on all logits changes nothing.

    Source: Menon et al., *Long-Tail Learning via Logit Adjustment*, ICLR 2021, Eq. 10; Ren et al., *Balanced
    Meta-Softmax for Long-Tailed Visual Recognition*, NeurIPS 2020, Theorem 1.
    """

    def __init__(self, log_share: Float[Tensor, " classes"], tau: float) -> None:
        self.offset = tau * log_share

    def __call__(self, logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Compute the mean loss."""
        return functional.cross_entropy(logits + self.offset, labels)
