"""One stage of the cascade: pooled regions to features, class logits and a better box. Knows no pictures."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from trainer.classifiers import create_classifier
from trainer.detection.config import DetectorConfig
from trainer.detection.sampling import Sampled

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Offsets are multiplied by these, times the stage's number: later stages see smaller offsets (Cai and Vasconcelos)."""


class Stage(nn.Module):
    """Two layers to features, the classifier of C + 1 outputs, and class-agnostic box regression.

    The last output is the background. The classifier works in float32 whatever surrounds it.

    Source: Cai and Vasconcelos, *Cascade R-CNN*, CVPR 2018; classifier: Tang et al. 2020, Eq. 7.

    Args:
        config: sizes and the classifier.
        num_classes: C.
        number: 1 for the first stage.
    """

    def __init__(self, config: DetectorConfig, num_classes: int, number: int) -> None:
        super().__init__()
        cascade = config.cascade
        self.layers = TwoMLPHead(config.backbone.channels * cascade.pool_size**2, cascade.features)
        self.classifier = create_classifier(config.head, cascade.features, num_classes + 1)
        self.offsets = nn.Linear(cascade.features, 4)
        nn.init.normal_(self.offsets.weight, std=0.001)
        nn.init.zeros_(self.offsets.bias)
        self.coder = BoxCoder(tuple(number * weight for weight in BOX_WEIGHTS))

    def forward(
        self, pooled: Tensor
    ) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n classes"], Float[Tensor, "n 4"]]:
        """Compute features, factual logits and box offsets of pooled regions [n, channels, size, size]."""
        features, offsets = self.features(pooled)
        with torch.autocast(features.device.type, enabled=False):
            return features, self.classifier(features), offsets

    def features(self, pooled: Tensor) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n 4"]]:
        """Compute features and box offsets."""
        features = self.layers(pooled)
        return features.float(), self.offsets(features).float()

    def refined(self, boxes: Float[Tensor, "n 4"], offsets: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
        """Move the boxes by the offsets."""
        better: Tensor = self.coder.decode_single(offsets, boxes)
        return better

    def box_loss(self, sampled: Sampled, offsets: Float[Tensor, "n 4"]) -> Float[Tensor, ""]:
        """Compute the smooth L1 loss of the foreground's offsets, per sampled region."""
        rows = (sampled.target >= 0).nonzero().flatten()
        wanted = self.coder.encode_single(sampled.boxes[rows], sampled.regions[rows, 1:])
        return functional.smooth_l1_loss(offsets[rows], wanted, reduction="sum") / max(len(offsets), 1)
