"""Training transforms: whole batches on the device, or one picture in a worker process (torchvision).

Both read the same ``AugmentConfig``, but in another order, which is another distribution of pictures:

in memory: drawn policy, padded crop and flip, colour jitter, Cutout;
from workers: resize and crop as in serving (or ``random_resized_crop``), padded crop, flip, colour jitter, drawn
policy, Cutout.

Drawn policies and Cutout are the same code. Randomness comes from torch's global generator.
"""

import kornia.augmentation as kornia
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from service.bundle import InputSpec
from trainer.config import AugmentConfig
from trainer.distributed import on_device
from trainer.pixels import to_pixels
from trainer.policies import POLICIES, Policy, change


def batch_augmentation(config: AugmentConfig, spec: InputSpec) -> nn.Module:
    """Make the transform of batches of pixels [N, 3, H, W] in [0, 1]; each picture draws its own changes."""
    strength = config.color_jitter
    steps: list[nn.Module] = []
    if config.crop_padding or config.horizontal_flip:
        steps.append(_CropAndFlip(config.crop_padding, flip=config.horizontal_flip))
    if strength:
        steps.append(kornia.ColorJitter(strength, strength, strength, 0.0, p=1.0))
    if config.cutout:
        steps.append(_Cutout(config.cutout, spec, white=1))
    return nn.Sequential(*steps)


def policy_augmentation(config: AugmentConfig, spec: InputSpec) -> nn.Module:
    """Make the drawn changes of pixels uint8 [N, 3, H, W]; where they come among the others, the module says."""
    return nn.Identity() if config.policy == "none" else _Drawn(POLICIES[config.policy], spec)


def sample_augmentation(config: AugmentConfig, spec: InputSpec) -> v2.Transform:
    """Make the transform of one RGB picture of any size to pixels uint8 [3, H, W]."""
    size = (spec.height, spec.width)
    steps: list[nn.Module] = [_AsServed(spec)]
    if config.random_resized_crop:
        steps = [v2.RandomResizedCrop(size, interpolation=v2.InterpolationMode(spec.interpolation))]
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
    rows, columns = (on_device(_stretch(len(pixels), length, size), pixels.device) for length in pixels.shape[-2:])
    hidden = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(hidden, fill.to(pixels, non_blocking=True), pixels)


def crop_and_flip(pixels: Tensor, padding: int, *, flip: bool) -> Tensor:
    """Move each picture by up to ``padding`` pixels each way, black coming into view, and mirror half of them.

    Args:
        pixels: [N, C, H, W] of any type.
        padding: 0: no move.
        flip: whether to mirror.

    Returns:
        Pixels [N, C, H, W] in the memory format that convolutions are fastest in.
    """
    count, _, height, width = pixels.shape
    left, top = (_start(count, padding) for _ in range(2))  # drawn in this order, each picture by itself
    mirrored = torch.rand(count) < 0.5 if flip else torch.zeros(count, dtype=torch.bool)
    place = torch.arange(width)
    columns = left + torch.where(mirrored[:, None], width - 1 - place, place)
    places = torch.cat((top + torch.arange(height), columns), dim=1)
    rows, columns = on_device(places, pixels.device).split((height, width), dim=1)
    padded = functional.pad(pixels, [padding] * 4).permute(0, 2, 3, 1)
    picture = torch.arange(count, device=pixels.device)[:, None, None]
    return padded[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _start(count: int, padding: int) -> Tensor:
    """Draw where windows begin [N, 1]."""
    if not padding:
        return torch.zeros(count, 1, dtype=torch.int64)
    return (torch.rand(count, 1) * (2 * padding + 1)).long()


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


class _CropAndFlip(nn.Module):
    def __init__(self, padding: int, *, flip: bool) -> None:
        super().__init__()
        self.padding, self.flip = padding, flip

    def forward(self, pixels: Tensor) -> Tensor:
        return crop_and_flip(pixels, self.padding, flip=self.flip)


class _Cutout(nn.Module):
    def __init__(self, size: int, spec: InputSpec, *, white: float) -> None:
        super().__init__()
        self.size, self.fill = size, white * torch.tensor(spec.mean).view(-1, 1, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return cutout(pixels, self.size, self.fill) if self.size else pixels


class _AsServed(nn.Module):
    """Resizes and crops one picture by the rule that evaluation and serving follow."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, image: Image.Image) -> Image.Image:
        return Image.fromarray(to_pixels(image, self.spec))


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
