"""The cascade: proposals through stage after stage, each trained on what the one before it made of them.

It knows neither pixels nor files.
"""

from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from trainer.detection.backbone import norm_of
from trainer.detection.boxes import clip, regions_of
from trainer.detection.config import DetectorConfig
from trainer.detection.mask_head import MaskHead, mask_loss
from trainer.detection.pooling import pool_regions
from trainer.detection.proposals import Proposed
from trainer.detection.sampling import Sampled, sample_regions
from trainer.detection.stage import Stage
from trainer.detection.types import Batch, ForegroundFeatures
from trainer.distributed import summed
from trainer.head import folded_branches


class Branches(NamedTuple):
    """All that is seen of one picture before anybody says an alpha: boxes, and both branches of every stage."""

    boxes: Float[Tensor, "p 4"]
    valid: Bool[Tensor, " p"]
    factual: Float[Tensor, "stages p outputs"]
    counterfactual: Float[Tensor, "stages p outputs"]
    maps: list[Tensor]
    """Of the pyramid, for the masks."""


class Cascade(nn.Module):
    """Stages that each see the boxes of the one before, and mask heads beside the last of them.

    Source: Cai and Vasconcelos, *Cascade R-CNN: High Quality Object Detection and Instance Segmentation*, TPAMI 2019.
    """

    def __init__(self, config: DetectorConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        count, channels = len(config.cascade.ious), config.backbone.channels
        self.stages = nn.ModuleList([Stage(config, num_classes, number + 1) for number in range(count)])
        norm = norm_of(config.backbone)
        self.mask_heads = nn.ModuleList(
            [MaskHead(config.mask, channels, num_classes, norm) for _ in range(config.mask.stages)]
        )

    def forward(
        self, maps: list[Tensor], proposals: list[Tensor], batch: Batch
    ) -> tuple[dict[str, Tensor], ForegroundFeatures]:
        """Compute the weighted losses of every stage, and the foreground's features."""
        losses: dict[str, Tensor] = {}
        gathered: list[tuple[Tensor, Tensor]] = []
        for index, stage in enumerate(self._stages()):
            sampled = self._sample(index, proposals, batch)
            pooled = pool_regions(maps, sampled.regions, self.config.cascade.pool_size)
            features, logits, offsets = stage(pooled)
            number, weight = index + 1, self.config.cascade.loss_weights[index]
            class_loss = functional.cross_entropy(logits, sampled.labels, reduction="sum") / max(len(logits), 1)
            losses[f"class_{number}"] = weight * class_loss
            losses[f"box_{number}"] = weight * stage.box_loss(sampled, offsets)
            head = index - (len(self.stages) - len(self.mask_heads))
            if head >= 0:
                # By the heads' own order: one that is alone beside the last stage must not count as little as that.
                weight = self.config.cascade.loss_weights[head]
                losses[f"mask_{number}"] = weight * self._mask_loss(head, maps, sampled, batch)
            gathered.append(_foreground(features, sampled))
            proposals = _next_proposals(stage, sampled, offsets.detach(), batch)
        sums, counts = zip(*gathered, strict=True)
        return losses, ForegroundFeatures(torch.stack(sums), torch.stack(counts))

    def _stages(self) -> list[Stage]:
        return cast("list[Stage]", list(self.stages))

    def _sample(self, index: int, proposals: list[Tensor], batch: Batch) -> Sampled:
        cascade = self.config.cascade
        return sample_regions(
            proposals,
            batch.targets,
            iou=cascade.ious[index],
            count=cascade.sampled,
            positive_share=cascade.positive_share,
            background=self.num_classes,
        )

    def _mask_loss(self, head: int, maps: list[Tensor], sampled: Sampled, batch: Batch) -> Tensor:
        foreground = sampled.foreground()
        pooled = pool_regions(maps, foreground.regions, self.config.mask.pool_size)
        return mask_loss(self.mask_heads[head](pooled, foreground.labels), foreground, batch.targets)

    def branches(self, maps: list[Tensor], proposed: Proposed, size: Float[Tensor, " 2"]) -> Branches:
        """Send the proposals of one picture through all stages; alpha plays no part in it."""
        boxes, logits = proposed.boxes, []
        for stage in self._stages():
            pooled = pool_regions(maps, regions_of([boxes]), self.config.cascade.pool_size)
            features, offsets = stage.features(pooled)
            logits.append(folded_branches(features, stage.classifier.fold())[:2])
            boxes = clip(stage.refined(boxes, offsets), size)
        factual, counterfactual = (torch.stack(branch) for branch in zip(*logits, strict=True))
        return Branches(boxes, proposed.valid, factual, counterfactual, maps)

    def masks(
        self, maps: list[Tensor], boxes: Float[Tensor, "n 4"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, "n side side"]:
        """Compute mask probabilities, averaged over the mask heads."""
        pooled = pool_regions(maps, regions_of([boxes]), self.config.mask.pool_size)
        return torch.stack([head(pooled, labels).sigmoid() for head in self.mask_heads]).mean(dim=0)

    @torch.no_grad()
    def update_directions(self, features: ForegroundFeatures, momentum_decay: float) -> None:
        """Move every stage's direction: ``d <- mu * d + sum of x over the processes / their number``.

        A stage without foreground, or with features that are not finite, keeps its direction.

        Source: Tang et al. 2020, section 4.1; of the foreground alone, as the background is no class to lean to.
        """
        total = summed(torch.cat((features.sums, features.counts[:, None]), dim=1))
        sums, counts = total[:, :-1], total[:, -1:]
        for stage, mean, count in zip(self._stages(), sums / counts.clamp(min=1), counts, strict=True):
            direction = stage.classifier.momentum_direction
            moved = momentum_decay * direction + mean
            direction.copy_(torch.where((count > 0) & moved.isfinite().all(), moved, direction))


def _foreground(features: Tensor, sampled: Sampled) -> tuple[Tensor, Tensor]:
    is_foreground = sampled.target >= 0
    # Chosen, not multiplied by zero: what the background holds, be it NaN, has no part in it.
    kept = torch.where(is_foreground[:, None], features.detach(), 0)
    return kept.sum(dim=0), is_foreground.sum().to(features.dtype)


def _next_proposals(stage: Stage, sampled: Sampled, offsets: Tensor, batch: Batch) -> list[Tensor]:
    """Move the sampled boxes; targets' own boxes come anew to every stage, so here they are left out."""
    better = stage.refined(sampled.regions[:, 1:], offsets)
    rows = sampled.regions[:, 0]
    return [
        clip(better[(rows == row) & ~sampled.is_given], size).detach() for row, size in enumerate(batch.sizes.unbind())
    ]
