"""The graph that is served: pixels and two knobs in, logits and both of their branches out. Knows no files."""

import torch
from torch import Tensor, nn
from torch.nn import functional

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

    At small batches a runtime spends as long between operations as in them. With U the unit directions, each in its
    slice's columns [K, D], the cosines are a linear layer of the normalised features too:

        factual = f(x) W^T + bias,    f(x_k) . unit(d_k) = (f(x) U^T)_k,    counterfactual = f(x) U^T S
    """

    weight: Tensor
    bias: Tensor
    directions: Tensor
    scores: Tensor

    def __init__(self, head: FoldedHead) -> None:
        super().__init__()
        self.slices = tuple(head.unit_direction.shape)
        self.register_buffer("weight", head.class_weight.detach())
        self.register_buffer("bias", torch.zeros(len(self.weight)) if head.bias is None else head.bias.detach())
        self.register_buffer("directions", torch.block_diag(*head.unit_direction).detach())
        self.register_buffer("scores", head.direction_scores.T.detach().contiguous())
        self.gives_cosines = head.normalise is unit
        self.normalise = _unit if self.gives_cosines else head.normalise

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map features [N, D] to factual logits, counterfactual logits [N, C] and cosines [N, K]."""
        slices = features.unflatten(-1, self.slices)
        normalised = self.normalise(slices).flatten(-2)
        along = _linear(normalised, self.directions)
        cosine = along if self.gives_cosines else _linear(_unit(slices).flatten(-2), self.directions)
        return functional.linear(normalised, self.weight, self.bias), _linear(along, self.scores), cosine


def _linear(rows: Tensor, weight: Tensor) -> Tensor:
    """Multiply by the transposed weight, exported as Gemm; without a bias it would become the slower MatMul."""
    return functional.linear(rows, weight, torch.zeros_like(weight[:, 0]))


def _unit(vector: Tensor) -> Tensor:
    """Scale as ``trainer.head.unit`` does; exported as the one operation that it is, in place of four.

    ONNX Runtime gives zeros for zeros. An old one, whose CUDA provider lacks it, runs it on the CPU.
    """
    if not torch.onnx.is_in_onnx_export():
        return unit(vector)
    return torch.onnx.ops.symbolic(
        "LpNormalization", (vector,), {"axis": -1, "p": 2}, dtype=vector.dtype, shape=vector.shape
    )
