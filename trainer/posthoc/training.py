"""The short class-balanced training that cRT and LWS share. Knows parameters and logits, not what they mean."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from trainer.posthoc.features import LabelledFeatures

EPOCHS, BATCH_SIZE, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 10, 256, 0.1, 0.9, 5e-4
"""Ten epochs with a cosine schedule, as Kang et al. 2020 retrain."""


def train_balanced(
    parameters: list[Tensor],
    logits_of: Callable[[Tensor], Tensor],
    data: LabelledFeatures,
    seed: int,
    *,
    weight_decay: float = WEIGHT_DECAY,
) -> None:
    """Minimise the cross entropy of class-balanced batches by SGD with momentum.

    Args:
        parameters: what is learnt; changed in place.
        logits_of: maps features [B, D] to logits [B, C], by the parameters.
        data: the training features.
        seed: of the batches.
        weight_decay: on the parameters.
    """
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=weight_decay)
    steps = EPOCHS * math.ceil(len(data.labels) / BATCH_SIZE)
    for step, (features, labels) in enumerate(data.balanced_batches(BATCH_SIZE, steps, seed)):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(functional.cross_entropy(logits_of(features), labels))
        optimizer.step()
