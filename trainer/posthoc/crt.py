"""cRT: the classifier is trained again, from the beginning, on class-balanced batches."""

import torch

from trainer.classifiers import Classifier
from trainer.classifiers.linear import LinearClassifier
from trainer.posthoc.features import LabelledFeatures
from trainer.posthoc.training import train_balanced


def retrain(
    trained: Classifier, data: LabelledFeatures, validation: LabelledFeatures | None, seed: int
) -> LinearClassifier:
    """Train a new linear classifier on frozen features.

    Args:
        trained: gives the momentum direction.
        data: training features.
        validation: not used.
        seed: of the first weights and of the batches.

    Source: Kang et al. 2020, section 4, *Classifier Re-training*.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = LinearClassifier(data.features.shape[1], data.num_classes, num_heads=trained.num_heads)
    fresh.momentum_direction.copy_(trained.momentum_direction)
    train_balanced(list(fresh.parameters()), fresh, data, seed)
    return fresh
