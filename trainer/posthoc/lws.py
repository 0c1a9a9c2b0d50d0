"""LWS: the trained weights keep their direction, and each class learns one scale."""

import torch

from trainer.classifiers import Classifier
from trainer.classifiers.linear import LinearClassifier
from trainer.posthoc.features import LabelledFeatures
from trainer.posthoc.rescaled import rescaled
from trainer.posthoc.training import train_balanced


def learn_scales(
    trained: Classifier, data: LabelledFeatures, validation: LabelledFeatures | None, seed: int
) -> LinearClassifier:
    """Learn f in ``logits[c] = f_c * w_c . x`` on class-balanced batches, from f = 1; no bias.

    Args:
        trained: gives the weights and the momentum direction.
        data: training features.
        validation: not used.
        seed: of the batches.

    Source: Kang et al. 2020, section 4, *Learnable weight scaling*.
    """
    weight = trained.weight.detach()
    scales = torch.ones(len(weight), dtype=weight.dtype, requires_grad=True)
    train_balanced([scales], lambda features: scales * (features @ weight.T), data, seed, weight_decay=0.0)
    return rescaled(trained, scales.detach())
