"""Training transforms: whole batches on the device (kornia), or one picture in a worker process (torchvision).

Both read the same ``AugmentConfig``. Randomness comes from torch's global generator.
"""

import kornia.augmentation as kornia
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from service.bundle import InputSpec
from trainer.config import AugmentConfig


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
    return nn.Sequential(*steps)


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
    return v2.Compose([*steps, v2.PILToTensor()])


def to_unit_range(pixels: Tensor) -> Tensor:
    """Convert uint8 pixels to float32 in [0, 1]; the one place that divides by 255 outside the exported graph."""
    return pixels.to(torch.float32) / 255
