"""A trained linear classifier with each class's weight scaled and its bias dropped."""

import torch
from jaxtyping import Float
from torch import Tensor

from trainer.classifiers import Classifier
from trainer.classifiers.linear import LinearClassifier


def rescaled(trained: Classifier, scales: Float[Tensor, " classes"]) -> LinearClassifier:
    """Make the linear classifier ``logits[c] = scales[c] * w_c . x``, with the same momentum direction."""
    classes, dim = trained.weight.shape
    with torch.random.fork_rng(devices=[]):
        scaled = LinearClassifier(dim, classes, num_heads=trained.num_heads)
    bias = torch.zeros(classes)
    weight = scales.unsqueeze(-1) * trained.weight.detach()
    scaled.load_state_dict({"weight": weight, "bias": bias, "momentum_direction": trained.momentum_direction})
    return scaled
