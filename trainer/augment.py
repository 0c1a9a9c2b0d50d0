"""Training transforms: whole batches on the device (kornia), or one picture in a worker process (torchvision).

Both read the same ``AugmentConfig``; drawn policies and Cutout are the same code. Randomness comes from torch's global
generator.
"""

import kornia.augmentation as kornia
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from service.bundle import InputSpec
from trainer.config import AugmentConfig
from trainer.policies import POLICIES, Policy, change


def batch_augmentation(config: AugmentConfig, spec: InputSpec) -> nn.Module:
    """Make the transform of batches of pixels [N, 3, H, W] in [0, 1]; each picture draws its own changes."""
    size = (spec.height, spec.width)
    strength = config.color_jitter
    steps: list[nn.Module] = []
    if config.crop_padding:
        steps.append(kornia.RandomCrop(size, padding=config.crop_padding, cropping_mode="slice"))
    if config.horizontal_flip:
        steps.append(kornia.RandomHorizontalFlip())
    if strength:
        steps.append(kornia.ColorJitter(strength, strength, strength, 0.0, p=1.0))
    if config.cutout:
        steps.append(_Cutout(config.cutout, spec, white=1))
    return nn.Sequential(*steps)


def policy_augmentation(config: AugmentConfig, spec: InputSpec) -> nn.Module:
    """Make the drawn changes of pixels uint8 [N, 3, H, W]; they come before all else and may span several batches."""
    return nn.Identity() if config.policy == "none" else _Drawn(POLICIES[config.policy], spec)


def sample_augmentation(config: AugmentConfig, spec: InputSpec) -> v2.Transform:
    """Make the transform of one RGB picture of any size to pixels uint8 [3, H, W]."""
    size = (spec.height, spec.width)
    interpolation = v2.InterpolationMode(spec.interpolation)
    crop: v2.Transform = v2.Resize(size, interpolation=interpolation)
    if config.random_resized_crop:
        crop = v2.RandomResizedCrop(size, interpolation=interpolation)
    steps: list[v2.Transform] = [crop]
    if config.crop_padding:
        steps.append(v2.RandomCrop(size, padding=config.crop_padding))
    if config.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    if config.color_jitter:
        steps.append(v2.ColorJitter(config.color_jitter, config.color_jitter, config.color_jitter))
    whole = [policy_augmentation(config, spec), _Cutout(config.cutout, spec, white=255)]
    return v2.Compose([*steps, v2.PILToTensor(), _OfOne(nn.Sequential(*whole))])


def cutout(pixels: Tensor, size: int, fill: Tensor) -> Tensor:
    """Put a square of one colour on each picture, its middle on any pixel; what lies outside the picture is lost.

    Args:
        pixels: [N, C, H, W] of any type.
        size: side of the square in pixels.
        fill: its colour [C, 1, 1].

    Returns:
        Pixels [N, C, H, W].

    Source: DeVries and Taylor, *Improved Regularization of Convolutional Neural Networks with Cutout*, 2017.
    """
    rows, columns = (_stretch(len(pixels), length, size).to(pixels.device) for length in pixels.shape[-2:])
    hidden = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(hidden, fill.to(pixels), pixels)


def _stretch(count: int, length: int, size: int) -> Tensor:
    """Draw a stretch of ``size`` places around any place of an axis, for each picture: bool [N, length]."""
    first = torch.randint(length, (count, 1)) - size // 2
    place = torch.arange(length)
    return (place >= first) & (place < first + size)


class _Drawn(nn.Module):
    def __init__(self, policy: Policy, spec: InputSpec) -> None:
        super().__init__()
        self.policy, self.fill = policy, [255 * share for share in spec.mean]

    def forward(self, pixels: Tensor) -> Tensor:
        return change(pixels, self.policy, self.fill)


class _Cutout(nn.Module):
    def __init__(self, size: int, spec: InputSpec, *, white: float) -> None:
        super().__init__()
        self.size, self.fill = size, white * torch.tensor(spec.mean).view(-1, 1, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return cutout(pixels, self.size, self.fill) if self.size else pixels


class _OfOne(nn.Module):
    """Changes one picture [3, H, W] as a batch of one."""

    def __init__(self, change_batch: nn.Module) -> None:
        super().__init__()
        self.change_batch = change_batch

    def forward(self, pixels: Tensor) -> Tensor:
        changed: Tensor = self.change_batch(pixels.unsqueeze(0)).squeeze(0)
        return changed


def to_unit_range(pixels: Tensor) -> Tensor:
    """Convert uint8 pixels to float32 in [0, 1]; the one place that divides by 255 outside the exported graph."""
    return pixels.to(torch.float32) / 255
