"""The graph that is served: pixels and two knobs in, logits and both of their branches out. Knows no files."""

import torch
from torch import Tensor, nn

from trainer.augment import to_unit_range
from trainer.head import FoldedHead, combine, folded_branches
from trainer.model import LongTailClassifier

INPUTS = ("image", "alpha", "prior_strength")
OUTPUTS = ("logits", "factual_logits", "counterfactual_logits", "confounder_cosine", "feature_map")


class ServingGraph(nn.Module):
    """The bundle's contract as a module.

    ``logits = factual - alpha * counterfactual - prior_strength * log(class share in training)``

    Args:
        model: the trained classifier.
        direction: the momentum direction to serve with [D].
        log_class_share: log of each class's share of the training images [C].
        half: run the backbone in float16, for GPUs; the head stays in float32.

    Source: Tang et al. 2020, Eq. 8; Menon et al., *Long-Tail Learning via Logit Adjustment*, ICLR 2021, Eq. 9.
    """

    mean: Tensor
    std: Tensor
    log_class_share: Tensor

    def __init__(
        self, model: LongTailClassifier, direction: Tensor, log_class_share: Tensor, *, half: bool = False
    ) -> None:
        super().__init__()
        self.backbone = model.backbone.half() if half else model.backbone
        self.dtype = torch.float16 if half else torch.float32
        self.register_buffer("mean", model.mean)
        self.register_buffer("std", model.std)
        self.register_buffer("log_class_share", log_class_share)
        # Folding here, not in the graph, keeps the counterfactual branch down to two small products.
        self.folded = _Folded(model.head.fold(direction))

    def forward(
        self, image: Tensor, alpha: Tensor, prior_strength: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Map uint8 images [N, H, W, 3], alpha [N] and prior strength [N] to the outputs that ``OUTPUTS`` names."""
        pixels = (to_unit_range(image.permute(0, 3, 1, 2)) - self.mean) / self.std
        features, feature_map = self.backbone(pixels.to(self.dtype))
        factual, counterfactual, cosine = folded_branches(features.float(), self.folded.parts())
        logits = combine(factual, counterfactual, alpha) - prior_strength.unsqueeze(-1) * self.log_class_share
        return logits, factual, counterfactual, cosine, feature_map.float()


class _Folded(nn.Module):
    """Holds a folded head as buffers, so that the exporter makes constants of them."""

    class_weight: Tensor
    unit_direction: Tensor
    direction_scores: Tensor
    bias: Tensor | None

    def __init__(self, head: FoldedHead) -> None:
        super().__init__()
        self.normalise = head.normalise
        for name in ("class_weight", "unit_direction", "direction_scores", "bias"):
            part = getattr(head, name)
            self.register_buffer(name, part if part is None else part.detach())

    def parts(self) -> FoldedHead:
        return FoldedHead(self.class_weight, self.unit_direction, self.direction_scores, self.bias, self.normalise)
