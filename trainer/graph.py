"""The graph that is served: pixels and two knobs in, logits and both of their branches out. Knows no files."""

import torch
from torch import Tensor, nn

from trainer.head import FoldedHead, combine, unit
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

    log_class_share: Tensor

    def __init__(
        self, model: LongTailClassifier, direction: Tensor, log_class_share: Tensor, *, half: bool = False
    ) -> None:
        super().__init__()
        self.backbone = model.backbone.half() if half else model.backbone
        self.dtype = torch.float16 if half else torch.float32
        self.normalise = PixelNormalisation(model.mean, model.std)
        self.register_buffer("log_class_share", log_class_share)
        self.branches = ServedBranches(model.head.fold(direction))

    def forward(
        self, image: Tensor, alpha: Tensor, prior_strength: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Map uint8 images [N, H, W, 3], alpha [N] and prior strength [N] to the outputs that ``OUTPUTS`` names."""
        features, feature_map = self.backbone(self.normalise(image).to(self.dtype))
        factual, counterfactual, cosine = self.branches(features.float())
        # As a product that is added to: one operation less than a product and a difference.
        combined = combine(factual, counterfactual, alpha)
        logits = torch.addmm(combined, prior_strength.unsqueeze(-1), self.log_class_share.unsqueeze(0), alpha=-1)
        return logits, factual, counterfactual, cosine, feature_map.float()


class PixelNormalisation(nn.Module):
    """(image / 255 - mean) / std as one product and one sum: a quarter of what a runtime takes for each step by itself.

    Args:
        mean, std: of the channels [1, 3, 1, 1], for pixels in [0, 1].
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, image: Tensor) -> Tensor:
        """Map uint8 images [N, H, W, 3] to float32 [N, 3, H, W]."""
        normalised: Tensor = image.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.shift
        return normalised


class ServedBranches(nn.Module):
    """``trainer.head.folded_branches`` with a folded head as constants, in as few operations as it takes.

    At small batches a runtime spends as long between operations as in them. All outputs are linear in the normalised
    features f(x), so one product gives them all:

        [factual | counterfactual | f(x_k) . unit(d_k)] = f(x) [W^T | U S | U] + [bias | 0 | 0]

    with U the unit directions, each in its slice's rows [D, K], and S = ``direction_scores`` [K, C].
    """

    joint: Tensor
    bias: Tensor
    unit_direction: Tensor

    def __init__(self, head: FoldedHead) -> None:
        super().__init__()
        (num_heads, classes), directions = head.direction_scores.shape, torch.block_diag(*head.unit_direction).T
        self.sizes = [classes, classes, num_heads]
        joint = torch.cat((head.class_weight.T, directions @ head.direction_scores, directions), dim=1)
        bias = torch.zeros(joint.shape[1])
        if head.bias is not None:
            bias[:classes] = head.bias.detach()
        self.register_buffer("joint", joint.detach())
        self.register_buffer("bias", bias)
        self.register_buffer("unit_direction", head.unit_direction.detach())
        self.gives_cosines = head.normalise is unit
        self.normalise = _unit_unless_vanishing if self.gives_cosines else head.normalise

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map features [N, D] to factual logits, counterfactual logits [N, C] and cosines [N, K]."""
        slices = features.unflatten(-1, self.unit_direction.shape)
        joint = torch.addmm(self.bias, self.normalise(slices).flatten(-2), self.joint)
        factual, counterfactual, cosine = joint.split(self.sizes, dim=-1)
        if not self.gives_cosines:
            cosine = (_unit_unless_vanishing(slices) * self.unit_direction).sum(dim=-1)
        return factual, counterfactual, cosine


def _unit_unless_vanishing(vector: Tensor) -> Tensor:
    """Scale as ``trainer.head.unit`` does, in a third of the operations; what is shorter than 1e-12 goes to zero."""
    scaled: Tensor = vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True).clamp_min(1e-12)
    return scaled
