"""Drawn picture changes: AutoAugment's CIFAR-10 policy, RandAugment and TrivialAugment, on batches on any device.

Every picture draws its own changes; pictures that drew the same operation take it together, each by its own strength,
so that hundreds of pictures cost a few dozen operations. Knows no recipes. Randomness comes from torch's global
generator on the CPU, hence the same changes are drawn whatever the device, and no step waits for it.

Sources: Cubuk et al., *AutoAugment*, CVPR 2019 (Table 7); Cubuk et al., *RandAugment*, NeurIPS 2020; Müller and Hutter,
*TrivialAugment*, ICCV 2021. The operations are torchvision's, here with a strength for each picture.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from trainer.distributed import on_device

Operation = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps pixels uint8 [N, C, H, W], strengths float64 [N] in [-1, 1] and the colour [C] of what comes into view."""

_SHIFT = 150 / 331  # of the picture's width; AutoAugment shifts pictures of 331 pixels by up to 150
_ENHANCE = 0.9


def _moved(pixels: Tensor, matrix: list[list[Tensor | float]], colour: Tensor) -> Tensor:
    """Take each pixel from the nearest place that its own is mapped to.

    Args:
        pixels: [N, C, H, W].
        matrix: two rows (a, b, c), each number or [N]: column ``a x + b y + c`` and row of the source, all counted from
            the middle of the picture.
        colour: [C], where the source lies outside.
    """
    height, width = pixels.shape[-2:]
    y, x = (torch.arange(size, device=pixels.device) - (size - 1) / 2 for size in (height, width))
    column, row = (_shaped(a) * x + _shaped(b) * y[:, None] + _shaped(c) for a, b, c in matrix)
    column, row = (column + (width - 1) / 2).round(), (row + (height - 1) / 2).round()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = (
        (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long().broadcast_to(len(pixels), height, width)
    )
    taken = pixels.flatten(2).gather(2, place.flatten(1)[:, None].expand(-1, pixels.shape[1], -1)).view_as(pixels)
    return torch.where(inside[:, None], taken, colour[:, None, None])


def _shaped(number: Tensor | float) -> Tensor | float:
    return number.float()[:, None, None] if isinstance(number, Tensor) else number


def _shear_x(pixels: Tensor, s: Tensor, colour: Tensor) -> Tensor:
    shear = 0.3 * s
    return _moved(pixels, [[1.0, shear, shear * pixels.shape[-2] / 2], [0.0, 1.0, 0.0]], colour)


def _shear_y(pixels: Tensor, s: Tensor, colour: Tensor) -> Tensor:
    shear = 0.3 * s
    return _moved(pixels, [[1.0, 0.0, 0.0], [shear, 1.0, shear * pixels.shape[-1] / 2]], colour)


def _translate_x(pixels: Tensor, s: Tensor, colour: Tensor) -> Tensor:
    return _moved(pixels, [[1.0, 0.0, -(_SHIFT * s * pixels.shape[-1]).round()], [0.0, 1.0, 0.0]], colour)


def _translate_y(pixels: Tensor, s: Tensor, colour: Tensor) -> Tensor:
    return _moved(pixels, [[1.0, 0.0, 0.0], [0.0, 1.0, -(_SHIFT * s * pixels.shape[-2]).round()]], colour)


def _rotate(pixels: Tensor, s: Tensor, colour: Tensor) -> Tensor:
    angle = math.radians(30.0) * s
    cos, sin = angle.cos(), angle.sin()
    return _moved(pixels, [[cos, -sin, 0.0], [sin, cos, 0.0]], colour)


def _enhanced(pixels: Tensor, plain: Tensor | float, s: Tensor) -> Tensor:
    """Mix ``(1 + 0.9 s) pixels - 0.9 s plain`` within what a pixel holds."""
    share = (1 + _ENHANCE * s).float()[:, None, None, None]
    blended = plain + share * (pixels.float() - plain)
    return blended.clamp(0, 255).to(torch.uint8)


def _grey(pixels: Tensor) -> Tensor:
    """Compute the brightness [N, 1, H, W] as whole numbers, by ITU-R 601."""
    grey: Tensor = functional.rgb_to_grayscale(pixels.float()).floor()
    return grey


def _contrast(pixels: Tensor, s: Tensor, _: Tensor) -> Tensor:
    return _enhanced(pixels, _grey(pixels).mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).float(), s)


def _sharpness(pixels: Tensor, s: Tensor, _: Tensor) -> Tensor:
    smooth = pixels.float()
    if min(pixels.shape[-2:]) > 2:
        summed = sum(smooth[..., y : y - 2 or None, x : x - 2 or None] for y in range(3) for x in range(3))
        inner = smooth[..., 1:-1, 1:-1]
        smooth = smooth.clone()
        smooth[..., 1:-1, 1:-1] = ((summed + 4 * inner) / 13).round()
    return _enhanced(pixels, smooth, s)


def _posterize(pixels: Tensor, s: Tensor, _: Tensor) -> Tensor:
    lost = (4 * s).round().clamp(0, 7).to(torch.uint8)[:, None, None, None]
    return pixels >> lost << lost


def _solarize(pixels: Tensor, s: Tensor, _: Tensor) -> Tensor:
    least = (255 * (1 - s)).float()[:, None, None, None]
    return torch.where(pixels >= least, 255 - pixels, pixels)


SIGNED = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness")
OPERATIONS: dict[str, Operation] = {
    "identity": lambda pixels, s, _: pixels,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": lambda pixels, s, _: _enhanced(pixels, 0.0, s),
    "color": lambda pixels, s, _: _enhanced(pixels, _grey(pixels), s),
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": lambda pixels, s, _: functional.autocontrast(pixels),
    "equalize": lambda pixels, s, _: functional.equalize(pixels),
    "invert": lambda pixels, s, _: functional.invert(pixels),
}
_NAMES = list(OPERATIONS)

# Two steps each: operation, probability, level of 0 to 9 (AutoAugment, Table 7).
CIFAR10_POLICY: list[tuple[tuple[str, float, int], tuple[str, float, int]]] = [
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("autocontrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("autocontrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 0)),
]


class Draw(NamedTuple):
    """What each picture drew for one step: the number of an operation and its strength, both [N]."""

    operation: Tensor
    strength: Tensor


Policy = Callable[[int], list[Draw]]


def auto_augment(count: int) -> list[Draw]:
    """Draw one of the 25 sub-policies for each of ``count`` pictures."""
    chosen = torch.randint(len(CIFAR10_POLICY), (count,))
    return [
        _signed(
            torch.where(torch.rand(count) < probability[chosen], operation[chosen], 0), (level[chosen] / 9).double()
        )
        for operation, probability, level in _AUTO_AUGMENT_STEPS
    ]


def rand_augment(count: int, *, operations: int = 2, level: int = 9) -> list[Draw]:
    """Draw so many operations for each picture, all of one level of 0 to 30."""
    strength = torch.full((count,), level / 30, dtype=torch.float64)
    return [_signed(_any_operation(count), strength) for _ in range(operations)]


def trivial_augment(count: int) -> list[Draw]:
    """Draw one operation for each picture, and its level of 0 to 30.

    This is the paper's "RA" variant: operations and ranges of RandAugment. Its "Wide" one, torchvision's
    ``TrivialAugmentWide``, shears, shifts, rotates and enhances farther.
    """
    return [_signed(_any_operation(count), torch.randint(31, (count,)).double() / 30)]


POLICIES: dict[str, Policy] = {"auto": auto_augment, "rand": rand_augment, "trivial": trivial_augment}


def change(pixels: Tensor, policy: Policy, fill: list[float]) -> Tensor:
    """Change each picture as it draws.

    Args:
        pixels: uint8 [N, C, H, W].
        policy: what is drawn.
        fill: the colour of what comes into view, 0 to 255 for each channel.

    Returns:
        uint8 [N, C, H, W].

    Example:
        >>> pixels = torch.randint(256, (16, 3, 8, 8), dtype=torch.uint8)
        >>> change(pixels, auto_augment, [128.0, 128.0, 128.0]).shape
        torch.Size([16, 3, 8, 8])
    """
    colour = on_device(torch.tensor(fill).round().to(torch.uint8), pixels.device)
    for draw in policy(len(pixels)):
        pixels = _apply(pixels, draw, colour)
    return pixels


def _apply(pixels: Tensor, draw: Draw, colour: Tensor) -> Tensor:
    operation = draw.operation.long()
    counts = torch.bincount(operation, minlength=len(_NAMES)).tolist()
    order = torch.argsort(operation, stable=True)
    rows, strength = on_device(order, pixels.device), on_device(draw.strength[order], pixels.device)
    parts = zip(OPERATIONS.values(), pixels[rows].split(counts), strength.split(counts), strict=True)
    changed = torch.empty_like(pixels, memory_format=torch.contiguous_format)
    changed[rows] = torch.cat([apply(part, s, colour) for apply, part, s in parts if len(part)])
    return changed


def _signed(operation: Tensor, strength: Tensor) -> Draw:
    """Give half of the pictures the opposite strength, where the operation has an opposite."""
    sign = torch.where((torch.rand(len(operation)) < 0.5) & _HAS_OPPOSITE[operation], -1, 1)
    return Draw(operation, torch.where(_HAS_STRENGTH[operation], sign * strength, 0))


def _any_operation(count: int) -> Tensor:
    return torch.randint(len(_NAMES) - 1, (count,))  # all but invert, the last one


def _number(name: str) -> int:
    return _NAMES.index(name)


_HAS_OPPOSITE = torch.tensor([name in SIGNED for name in _NAMES])
_HAS_STRENGTH = torch.tensor([name in (*SIGNED, "posterize", "solarize") for name in _NAMES])
_AUTO_AUGMENT_STEPS = [
    (
        torch.tensor([_number(policy[step][0]) for policy in CIFAR10_POLICY]),
        torch.tensor([policy[step][1] for policy in CIFAR10_POLICY]),
        torch.tensor([policy[step][2] for policy in CIFAR10_POLICY]),
    )
    for step in range(2)
]
