"""The whole classifier: normalisation, backbone and classifier in one module.

It takes pixels in [0, 1] and knows neither files nor training.
"""

from typing import Self

import torch
from torch import Tensor, nn

from trainer.backbones import Backbone, create_backbone
from trainer.classifiers import create_classifier
from trainer.config import Recipe
from trainer.errors import TrainerError
from trainer.lora import add_lora
from trainer.pretrained import check_normalisation, load_weights


def channels_last(images: Tensor) -> Tensor:
    """Order images [N, 3, H, W] as convolutions are fastest; features [N, D] have nothing to order."""
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


class LongTailClassifier(nn.Module):
    """Pixels [N, 3, H, W] in [0, 1] to factual logits [N, C], with the features that gave them.

    Args:
        recipe: input, backbone and head.
        num_classes: C.
        fetch_weights: fetch pretrained weights where the recipe asks for them; not needed where a checkpoint follows.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, recipe: Recipe, num_classes: int, *, fetch_weights: bool = True) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(recipe.input.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(recipe.input.std).view(1, 3, 1, 1), persistent=False)
        self.backbone = _backbone(recipe, fetch_weights=fetch_weights)
        self.is_frozen = recipe.backbone.frozen
        head = recipe.head
        if self.backbone.num_features % head.num_heads:
            raise TrainerError(
                f"head.num_heads: must divide the {self.backbone.num_features} features of {recipe.backbone.name}, "
                f"got {head.num_heads}"
            )
        self.head = create_classifier(head, self.backbone.num_features, num_classes)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self

    def on(self, device: torch.device) -> Self:
        """Move to a device, in the memory format that convolutions are fastest in."""
        return self.to(device).to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute factual logits [N, C] and features [N, D]; the head always works in float32.

        Args:
            pixels: [N, 3, H, W], or features [N, D] that were computed before.
        """
        features, _ = self.features(pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            return self.head(features), features

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features [N, D] in float32 and the feature map [N, D, h, w]; given features stay as they are."""
        if pixels.ndim == 2:
            return pixels, pixels[:, :, None, None]
        features, feature_map = self.backbone((pixels - self.mean) / self.std)
        return features.float(), feature_map


def _backbone(recipe: Recipe, *, fetch_weights: bool) -> Backbone:
    """Make the backbone, with its weights unless a checkpoint follows, and say what of it is trained."""
    config = recipe.backbone
    backbone = create_backbone(config.model_copy(update={"pretrained": config.pretrained and fetch_weights}))
    if fetch_weights and config.pretrained:
        check_normalisation(backbone, recipe.input)
    if fetch_weights and config.weights:
        load_weights(backbone, config, recipe.input)
    if config.lora:
        add_lora(backbone, config.lora)
    if config.frozen:
        backbone.requires_grad_(requires_grad=False)
    return backbone
