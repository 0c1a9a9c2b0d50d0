"""The whole classifier: normalisation, backbone and de-confounded head in one module.

It takes pixels in [0, 1] and knows neither files nor training.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.backbones import create_backbone
from trainer.config import Recipe
from trainer.head import DeconfoundedHead


class Branches(NamedTuple):
    """What inference needs of a batch: both branches [N, C], cosine [N, K], features [N, D], map [N, D, h, w]."""

    factual: Tensor
    counterfactual: Tensor
    cosine: Tensor
    features: Tensor
    feature_map: Tensor


class LongTailClassifier(nn.Module):
    """Pixels [N, 3, H, W] in [0, 1] to factual logits [N, C], with the features that gave them."""

    mean: Tensor
    std: Tensor

    def __init__(self, recipe: Recipe, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(recipe.input.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(recipe.input.std).view(1, 3, 1, 1), persistent=False)
        self.backbone = create_backbone(recipe.backbone)
        head = recipe.head
        self.head = DeconfoundedHead(
            self.backbone.num_features, num_classes, num_heads=head.num_heads, tau=head.tau, gamma=head.gamma
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute factual logits [N, C] and features [N, D]; the head always works in float32."""
        features, _ = self._features(pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            return self.head(features), features

    def branches(self, pixels: Tensor) -> Branches:
        """Compute both logit branches and all that explains them."""
        features, feature_map = self._features(pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            return Branches(*self.head.branches(features), features, feature_map)

    def _features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features, feature_map = self.backbone((pixels - self.mean) / self.std)
        return features.float(), feature_map
