"""The mask head: pooled regions and their classes to masks. Knows no pictures."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import roi_align

from trainer.detection.backbone import Norm
from trainer.detection.config import MaskConfig
from trainer.detection.sampling import Sampled
from trainer.detection.types import Targets


class MaskHead(nn.Module):
    """Convolutions, then twice the resolution, then a mask for the region's own class.

    Only the mask of the class that is asked for is computed: all C of them would take C times the memory, 1.1 GB for
    300 detections of 1,203 classes.

    Source: He et al., *Mask R-CNN*, ICCV 2017.
    """

    def __init__(self, config: MaskConfig, channels: int, num_classes: int, norm: Norm | None) -> None:
        super().__init__()
        width = config.channels[-1]
        self.layers = MaskRCNNHeads(channels, config.channels, 1, norm)
        self.predictor = MaskRCNNPredictor(width, width, num_classes)

    def forward(
        self, pooled: Float[Tensor, "n channels size size"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, "n side side"]:
        """Compute the mask logits of each region for its class, 0 to C - 1; side = 2 * size."""
        maps = self.predictor.relu(self.predictor.conv5_mask(self.layers(pooled)))
        last = self.predictor.mask_fcn_logits
        weight, bias = last.weight.flatten(1)[labels], last.bias[labels]
        logits: Tensor = torch.einsum("nchw,nc->nhw", maps.float(), weight.float()) + bias[:, None, None].float()
        return logits


def mask_loss(
    logits: Float[Tensor, "n side side"], sampled: Sampled, targets: tuple[Targets, ...]
) -> Float[Tensor, ""]:
    """Compute the mean binary cross entropy of masks; zero where there are none.

    Args:
        logits: of the foreground's masks.
        sampled: that foreground.
        targets: of each picture.
    """
    if not len(logits):
        return logits.sum()  # zero, and yet a gradient for each weight, which other processes wait for
    wanted = torch.cat([_wanted(sampled, row, one, logits.shape[-1]) for row, one in enumerate(targets)])
    return functional.binary_cross_entropy_with_logits(logits, wanted.to(logits))


def _wanted(sampled: Sampled, row: int, targets: Targets, side: int) -> Bool[Tensor, "n side side"]:
    """Cut the regions of one picture out of its targets' masks; regions come picture by picture."""
    own = sampled.regions[:, 0] == row
    used, index = sampled.target[own].unique(return_inverse=True)
    regions = torch.cat((index[:, None].to(sampled.regions), sampled.regions[own, 1:]), dim=1)
    masks = targets.masks[used][:, None].to(regions)
    cut: Tensor = roi_align(masks, regions, side, aligned=True)[:, 0]
    return cut >= 0.5
