"""The region proposal network: feature maps to boxes that may hold an object, of whatever class.

Training, with its losses, is torchvision's. Inference is written for one picture with fixed shapes, so that it can be
exported; what it computes is the same.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, permute_and_flatten

from trainer.detection.backbone import STRIDES
from trainer.detection.boxes import clip, has_area
from trainer.detection.config import ProposalConfig
from trainer.detection.suppression import LOWEST, best_boxes
from trainer.detection.types import Batch


class Anchors(nn.Module):
    """Boxes of each ratio around every step of every level; a level's stride is fixed, whatever the picture's size.

    torchvision's generator divides sizes instead, which shifts anchors where a size is no multiple of the stride.
    """

    def __init__(self, config: ProposalConfig) -> None:
        super().__init__()
        sizes = tuple((config.anchor_scale * stride,) for stride in STRIDES)
        self.generator = AnchorGenerator(sizes, (config.anchor_ratios,) * len(STRIDES))

    def num_anchors_per_location(self) -> list[int]:
        """Count the anchors around a step, for each level."""
        counts: list[int] = self.generator.num_anchors_per_location()
        return counts

    def of_levels(self, maps: list[Tensor]) -> list[Tensor]:
        """Make the anchors [A * h * w, 4] of each level."""
        self.generator.cell_anchors = [cell.to(maps[0].device) for cell in self.generator.cell_anchors]
        shapes = [list(level.shape[-2:]) for level in maps]
        anchors: list[Tensor] = self.generator.grid_anchors(shapes, [[stride, stride] for stride in STRIDES])
        return anchors

    def forward(self, images: ImageList, maps: list[Tensor]) -> list[Tensor]:
        """Make the anchors of every picture, as torchvision's network asks for them."""
        return [torch.cat(self.of_levels(maps))] * len(images.image_sizes)


class Proposed(NamedTuple):
    """The proposals of one picture; rows that are not valid are filling."""

    boxes: Float[Tensor, "p 4"]
    valid: Bool[Tensor, " p"]


class Proposals(nn.Module):
    """Feature maps to proposals: in training with losses, in inference for one picture with fixed shapes.

    Source: Ren et al., *Faster R-CNN*, NeurIPS 2015; Lin et al., *Feature Pyramid Networks*, CVPR 2017.
    """

    def __init__(self, config: ProposalConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.anchors = Anchors(config)
        self.network = RegionProposalNetwork(
            self.anchors,
            _Float32Head(channels, len(config.anchor_ratios)),
            config.foreground_iou,
            config.background_iou,
            config.sampled,
            config.positive_share,
            {"training": config.training_before_nms, "testing": config.before_nms},
            {"training": config.training_after_nms, "testing": config.after_nms},
            config.nms_iou,
        )

    def forward(self, maps: list[Tensor], batch: Batch) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Make the proposals [p, 4] of each picture, and the losses."""
        sizes = [(int(height), int(width)) for height, width in batch.sizes.tolist()]
        images = ImageList(batch.pixels.permute(0, 3, 1, 2), sizes)
        named = {str(level): one for level, one in enumerate(maps)}
        targets = [{"boxes": one.boxes} for one in batch.targets]
        boxes, losses = self.network(images, named, targets)
        return boxes, {"objectness": losses["loss_objectness"], "proposal_box": losses["loss_rpn_box_reg"]}

    def propose(self, maps: list[Tensor], size: Float[Tensor, " 2"]) -> Proposed:
        """Make the proposals of one picture.

        Args:
            maps: of the pyramid, [1, channels, h, w].
            size: height and width of the part of the input that is picture.
        """
        levels = [
            self._best_of_level(*level)
            for level in zip(*self.network.head(maps), self.anchors.of_levels(maps), strict=True)
        ]
        rows = max(len(scores) for _, scores in levels)
        boxes = torch.stack([nn.functional.pad(boxes, (0, 0, 0, rows - len(boxes))) for boxes, _ in levels])
        scores = torch.stack(
            [nn.functional.pad(scores, (0, rows - len(scores)), value=-torch.inf) for _, scores in levels]
        )
        boxes = clip(boxes, size)
        scores = scores.masked_fill(~has_area(boxes), -torch.inf)
        keep = min(self.config.after_nms, scores.numel())
        kept = best_boxes(boxes, scores[:, None], keep=keep, iou=self.config.nms_iou)
        return Proposed(boxes[kept.pictures, kept.boxes], kept.scores > LOWEST)

    def _best_of_level(self, objectness: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Decode a level's best anchors."""
        _, count, height, width = objectness.shape
        objectness = permute_and_flatten(objectness, 1, count, 1, height, width).flatten()
        deltas = permute_and_flatten(deltas, 1, count, 4, height, width)[0]
        scores, best = objectness.topk(min(self.config.before_nms, len(objectness)))
        return self.network.box_coder.decode_single(deltas[best], anchors[best]), scores


class _Float32Head(nn.Module):
    """torchvision's head with float32 results under autocast as well: bfloat16 has three digits, too few for a box."""

    def __init__(self, channels: int, anchors: int) -> None:
        super().__init__()
        self.layers = RPNHead(channels, anchors)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, offsets = self.layers(maps)
        return [one.float() for one in objectness], [one.float() for one in offsets]
