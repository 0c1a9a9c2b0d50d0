"""The detector: pixels to losses in training, to boxes, scores, classes and masks at any alpha in inference.

It knows neither files nor optimizers.
"""

from typing import Self

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from trainer.augment import to_unit_range
from trainer.detection.backbone import Pyramid
from trainer.detection.boxes import has_area
from trainer.detection.cascade import Branches, Cascade
from trainer.detection.config import DetectorConfig
from trainer.detection.proposals import Proposals
from trainer.detection.suppression import best_boxes
from trainer.detection.types import Batch, Detections, ForegroundFeatures
from trainer.head import background_exempted_probabilities, combine

Answer = tuple[
    Float[Tensor, "m 4"], Float[Tensor, " m"], Int[Tensor, " m"], Float[Tensor, "m side side"], Int[Tensor, ""]
]
"""Boxes, scores, labels, masks and count of one picture in a fixed number of rows, as the bundle's graph has them."""


class CascadeMaskRCNN(nn.Module):
    """Cascade Mask R-CNN with a de-confounded classifier in every stage, and background-exempted TDE in inference.

    Args:
        config: the detector's part of a recipe.
        num_classes: C, without the background, which is output C.
        mean, std: of the channels, for pixels in [0, 1].
        fetch_weights: load the backbone's weights where the recipe asks for them; not needed where a checkpoint
            follows.

    Raises:
        TrainerError: weights that cannot be had or do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: DetectorConfig,
        num_classes: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        *,
        fetch_weights: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.pyramid = Pyramid(config.backbone, fetch_weights=fetch_weights)
        self.proposals = Proposals(config.proposals, config.backbone.channels)
        self.cascade = Cascade(config, num_classes)

    def on(self, device: torch.device) -> Self:
        """Move to a device, in the memory format that convolutions are fastest in."""
        return self.to(device).to(memory_format=torch.channels_last)

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], ForegroundFeatures]:
        """Compute the losses of a batch, each weighted already, and the features for ``update_directions``."""
        maps = self.maps(batch.pixels)
        boxes, losses = self.proposals(maps, batch)
        more, features = self.cascade(maps, boxes, batch)
        return losses | more, features

    def update_directions(self, features: ForegroundFeatures, momentum_decay: float) -> None:
        """Move every stage's momentum direction by the foreground of all processes."""
        self.cascade.update_directions(features, momentum_decay)

    def maps(self, pixels: UInt8[Tensor, "n height width 3"]) -> list[Tensor]:
        """Normalise pixels and compute the pyramid's maps."""
        maps: list[Tensor] = self.pyramid((to_unit_range(pixels.permute(0, 3, 1, 2)) - self.mean) / self.std)
        return maps

    @torch.no_grad()
    def detect(
        self, pixels: UInt8[Tensor, "n height width 3"], sizes: Float[Tensor, "n 2"], alpha: float
    ) -> list[Detections]:
        """Find the objects of each picture.

        Args:
            pixels: as in ``Batch``.
            sizes: as in ``Batch``.
            alpha: how much of the confounder's part is taken away; 0 is the plain de-confounded model.
        """
        return [self.detections(branches, alpha) for branches in self.branches(pixels, sizes)]

    @torch.no_grad()
    def branches(self, pixels: UInt8[Tensor, "n height width 3"], sizes: Float[Tensor, "n 2"]) -> list[Branches]:
        """Compute all that does not depend on alpha, for each picture."""
        maps = self.maps(pixels)
        return [self.branches_of([one[row : row + 1] for one in maps], size) for row, size in enumerate(sizes)]

    def branches_of(self, maps: list[Tensor], size: Float[Tensor, " 2"]) -> Branches:
        """Compute all that does not depend on alpha, of one picture's maps [1, channels, h, w]."""
        return self.cascade.branches(maps, self.proposals.propose(maps, size), size)

    @torch.no_grad()
    def detections(self, branches: Branches, alpha: float) -> Detections:
        """Find the objects of one picture at one alpha."""
        *parts, count = self.answer(branches, torch.tensor(alpha, device=branches.boxes.device))
        return Detections(*(part[: int(count)] for part in parts))

    def answer(self, branches: Branches, alpha: Float[Tensor, ""]) -> Answer:
        """Score the boxes of one picture, suppress, and make masks of what is left; in a fixed number of rows."""
        wanted = self.config.detections
        scores = exempted_scores(branches.factual, branches.counterfactual, alpha)
        scores = torch.where((branches.valid & has_area(branches.boxes))[:, None], scores, 0)
        kept = best_boxes(
            branches.boxes[None],
            scores.T[None],
            keep=wanted.max_detections,
            iou=wanted.nms_iou,
            threshold=wanted.score_threshold,
        )
        found = kept.scores > wanted.score_threshold
        boxes = torch.where(found[:, None], branches.boxes[kept.boxes], 0)
        masks = self.cascade.masks(branches.maps, boxes, kept.classes)
        return (
            boxes,
            torch.where(found, kept.scores, 0),
            torch.where(found, kept.classes, -1),
            torch.where(found[:, None, None], masks, 0),
            found.sum(),
        )


def exempted_scores(
    factual: Float[Tensor, "stages p outputs"],
    counterfactual: Float[Tensor, "stages p outputs"],
    alpha: Float[Tensor, ""],
) -> Float[Tensor, "p classes"]:
    """Average the foreground's background-exempted probabilities over the stages.

    At alpha 0 the exemption is the identity, ``(1 - p[b]) * p[i] / (1 - p[b]) = p[i]``, so there p itself is taken:
    rounding cannot part the two.

    Args:
        factual: logits of C classes and, last, the background.
        counterfactual: what the confounder alone would say.
        alpha: how much of it is taken away.

    Returns:
        [p, C]; with the background's mean probability each row sums to one.

    Source: Tang et al. 2020, Eq. 9.
    """
    rows, background = factual.flatten(0, 1), factual.shape[-1] - 1
    logits = combine(rows, counterfactual.flatten(0, 1), alpha)
    exempted = background_exempted_probabilities(rows, logits, background=background)
    probabilities = torch.where(alpha == 0, rows.softmax(dim=-1), exempted)
    averaged: Tensor = probabilities.unflatten(0, factual.shape[:2]).mean(dim=0)
    return averaged[:, :background]
