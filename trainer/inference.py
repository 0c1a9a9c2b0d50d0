"""A trained model over a whole split: features once, both logit branches for any direction after. Knows no files."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.classifiers import Classifier
from trainer.data import Pixels
from trainer.errors import TrainerError
from trainer.head import folded_branches, unit
from trainer.model import LongTailClassifier, channels_last
from trainer.progress import track

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Branches:
    """Both logit branches [N, C], the confounder cosine [N, K] and the labels [N] of a split."""

    factual: Floats
    counterfactual: Floats
    cosine: Floats
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class FeatureMeans:
    """The mean feature [D] of a split, and the mean of its features scaled to length one slice by slice [K, D / K]."""

    feature: Tensor
    unit_feature: Tensor

    def mean_cosine(self, direction: Tensor) -> list[float]:
        """Compute the mean over the split of ``cos(x_k, d_k)`` per slice: ``mean(unit(x_k)) . unit(d_k)``."""
        unit_direction = unit(direction.cpu().view_as(self.unit_feature))
        return [float(value) for value in (self.unit_feature * unit_direction).sum(dim=-1)]


@torch.inference_mode()
def extract_features(model: LongTailClassifier, pixels: Pixels, description: str) -> tuple[Tensor, NDArray[np.int64]]:
    """Compute the features [N, D] of a split in evaluation mode and float32, on the CPU, with their labels [N]."""
    model.eval()
    batches = [
        (model.features(channels_last(batch))[0].cpu(), labels.cpu())
        for batch, labels in track(pixels.evaluation(), description, total=pixels.evaluation_steps())
    ]
    features, labels = zip(*batches, strict=True)
    return torch.cat(features), torch.cat(labels).numpy()


@torch.inference_mode()
def feature_means(model: LongTailClassifier, pixels: Pixels, description: str) -> FeatureMeans:
    """Compute the mean features of a split in evaluation mode, without holding all features at once."""
    model.eval()
    heads, dim = model.head.num_heads, model.head.weight.shape[1]
    feature, unit_feature = torch.zeros(dim, dtype=torch.float64), torch.zeros(heads, dim // heads, dtype=torch.float64)
    for batch, _ in track(pixels.evaluation(), description, total=pixels.evaluation_steps()):
        features = model.features(channels_last(batch))[0].cpu().double()
        feature += features.sum(dim=0)
        unit_feature += unit(features.unflatten(-1, (heads, -1))).sum(dim=0)
    return FeatureMeans((feature / len(pixels)).float(), (unit_feature / len(pixels)).float())


@torch.inference_mode()
def branches_of(
    features: Tensor, labels: NDArray[np.int64], head: Classifier, direction: Tensor | None = None
) -> Branches:
    """Compute both branches of features [N, D], by the momentum direction or another one [D].

    Raises:
        TrainerError: logits that are not finite.
    """
    folded = head.cpu().fold(direction)
    factual, counterfactual, cosine = (part.numpy() for part in folded_branches(features, folded))
    if not (np.isfinite(factual).all() and np.isfinite(counterfactual).all()):
        raise TrainerError(
            "the model's logits hold a NaN or an infinity: its weights are too large to compute with; take those of "
            "another checkpoint, or train anew with a lower optimizer.learning_rate"
        )
    return Branches(factual, counterfactual, cosine, labels)
