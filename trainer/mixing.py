"""Mixup and CutMix: two pictures in one, and a loss that is shared out between their labels. Knows no model.

A batch is mixed with itself in another order by one share, so any loss of logits and labels can be shared out:
``share * loss(logits, labels) + (1 - share) * loss(logits, labels[partner])``. The distribution of labels stays what it
was, hence so does the prior that ``prior_strength`` corrects.

Sources: Zhang et al., *mixup*, ICLR 2018; Yun et al., *CutMix*, ICCV 2019.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.config import AugmentConfig
from trainer.distributed import on_device


class Mixture(NamedTuple):
    """How a batch was mixed."""

    partner: Tensor
    """The row that each row was mixed with [N]."""
    share: float
    """Of the row's own picture; the partner's is ``1 - share``."""

    def loss(self, loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> Tensor:
        """Share a loss out between both labels."""
        return self.share * loss(logits, labels) + (1 - self.share) * loss(logits, labels[self.partner])


def mix(config: AugmentConfig, pixels: Tensor, progress: float) -> tuple[Tensor, Mixture | None]:
    """Mix a batch as the recipe asks, or leave it.

    Args:
        config: what is mixed, how often and until when. Nothing is drawn where nothing is mixed.
        pixels: [N, 3, H, W].
        progress: share of the epochs that is done.

    Returns:
        Pixels [N, 3, H, W] and how they were mixed; None where they were not.
    """
    ways = [way for way, a in ((_blend, config.mixup), (_paste, config.cutmix)) if a]
    if not ways or progress >= config.mixing_until or torch.rand(()) >= config.mixing_probability:
        return pixels, None
    way = ways[int(torch.randint(len(ways), ()))]
    a = config.mixup if way is _blend else config.cutmix
    share = float(torch.distributions.Beta(a, a).sample())
    partner = on_device(torch.randperm(len(pixels)), pixels.device)
    mixed, share = way(pixels, pixels[partner], share)
    return mixed, Mixture(partner, share)


def _blend(pixels: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
    return torch.lerp(others, pixels, share), share


def _paste(pixels: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
    """Put a box of ``1 - share`` of the area from the others, its middle anywhere; what lies outside is cut off."""
    top, bottom = _stretch(pixels.shape[-2], (1 - share) ** 0.5)
    left, right = _stretch(pixels.shape[-1], (1 - share) ** 0.5)
    mixed = pixels.clone()
    mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (pixels.shape[-2] * pixels.shape[-1])


def _stretch(length: int, share: float) -> tuple[int, int]:
    middle, half = int(torch.randint(length, ())), round(length * share / 2)
    return max(middle - half, 0), min(middle + half, length)
