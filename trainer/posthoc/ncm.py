"""NCM: each class is the mean of its features, and the nearest mean by cosine wins."""

import torch

from trainer.classifiers import Classifier
from trainer.classifiers.cosine import CosineClassifier
from trainer.posthoc.features import LabelledFeatures

TAU = 16.0
"""Scale of the cosines: it changes probabilities, not winners."""


def nearest_class_mean(
    trained: Classifier, data: LabelledFeatures, validation: LabelledFeatures | None, seed: int
) -> CosineClassifier:
    """Make the cosine classifier whose weights are the mean features of the classes.

    Args:
        trained: gives the momentum direction.
        data: training features, at least one of each class.
        validation: not used.
        seed: not used.

    Source: Kang et al. 2020, section 4, *Nearest Class Mean classifier*, with cosine similarity.
    """
    dim = data.features.shape[1]
    sums = torch.zeros(data.num_classes, dim).index_add_(0, data.labels, data.features.float())
    means = sums / data.class_counts().unsqueeze(-1)
    with torch.random.fork_rng(devices=[]):
        classifier = CosineClassifier(dim, data.num_classes, tau=TAU)
    classifier.load_state_dict({"weight": means, "momentum_direction": trained.momentum_direction})
    return classifier
