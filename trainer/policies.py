"""Drawn picture changes: AutoAugment's CIFAR-10 policy, RandAugment and TrivialAugment, on batches on any device.

Every picture draws its own changes; pictures that drew the same change take it together, so that a batch costs a few
dozen operations and not one of its own for each picture. Knows no recipes. Randomness comes from torch's global
generator on the CPU, hence the same changes are drawn whatever the device.

Sources: Cubuk et al., *AutoAugment*, CVPR 2019 (Table 7); Cubuk et al., *RandAugment*, NeurIPS 2020; Müller and Hutter,
*TrivialAugment*, ICCV 2021. The strengths of the operations are torchvision's.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

Fill = list[float]
Operation = Callable[[Tensor, float, Fill], Tensor]
"""Maps pixels uint8 [N, C, H, W], a strength in [-1, 1] and the colour of what comes into view to such pixels."""


def _shear(pixels: Tensor, shear: list[float], fill: Fill) -> Tensor:
    degrees = [math.degrees(math.atan(one)) for one in shear]
    moved: Tensor = functional.affine(
        pixels, angle=0.0, translate=[0, 0], scale=1.0, shear=degrees, fill=fill, center=[0.0, 0.0]
    )
    return moved


def _translate(pixels: Tensor, shares: list[float], fill: Fill) -> Tensor:
    steps = [round(share * size) for share, size in zip(shares, (pixels.shape[-1], pixels.shape[-2]), strict=True)]
    moved: Tensor = functional.affine(pixels, angle=0.0, translate=steps, scale=1.0, shear=[0.0, 0.0], fill=fill)
    return moved


def _posterize(pixels: Tensor, bits: int) -> Tensor:
    kept: Tensor = functional.posterize(pixels, max(bits, 1))
    return kept


_SHIFT = 150 / 331  # of the picture's width; AutoAugment shifts pictures of 331 pixels by up to 150
_ENHANCE = 0.9

SIGNED = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness")
OPERATIONS: dict[str, Operation] = {
    "identity": lambda pixels, s, fill: pixels,
    "shear_x": lambda pixels, s, fill: _shear(pixels, [0.3 * s, 0.0], fill),
    "shear_y": lambda pixels, s, fill: _shear(pixels, [0.0, 0.3 * s], fill),
    "translate_x": lambda pixels, s, fill: _translate(pixels, [_SHIFT * s, 0.0], fill),
    "translate_y": lambda pixels, s, fill: _translate(pixels, [0.0, _SHIFT * s], fill),
    "rotate": lambda pixels, s, fill: functional.rotate(pixels, 30.0 * s, fill=fill),
    "brightness": lambda pixels, s, _: functional.adjust_brightness(pixels, 1 + _ENHANCE * s),
    "color": lambda pixels, s, _: functional.adjust_saturation(pixels, 1 + _ENHANCE * s),
    "contrast": lambda pixels, s, _: functional.adjust_contrast(pixels, 1 + _ENHANCE * s),
    "sharpness": lambda pixels, s, _: functional.adjust_sharpness(pixels, 1 + _ENHANCE * s),
    "posterize": lambda pixels, s, _: _posterize(pixels, 8 - round(4 * s)),
    "solarize": lambda pixels, s, _: functional.solarize(pixels, 255.0 * (1 - s)),
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
    """Draw one operation for each picture, and its level of 0 to 30."""
    return [_signed(_any_operation(count), torch.randint(31, (count,)).double() / 30)]


POLICIES: dict[str, Policy] = {"auto": auto_augment, "rand": rand_augment, "trivial": trivial_augment}


def change(pixels: Tensor, policy: Policy, fill: Fill) -> Tensor:
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
    for draw in policy(len(pixels)):
        pixels = _apply(pixels, draw, fill)
    return pixels


def _apply(pixels: Tensor, draw: Draw, fill: Fill) -> Tensor:
    pairs, group = torch.unique(torch.stack(draw, dim=1), dim=0, return_inverse=True)
    changed = pixels.clone()
    for number, (operation, strength) in enumerate(pairs.tolist()):
        name = _NAMES[int(operation)]
        if name != "identity":
            rows = (group == number).nonzero().squeeze(1).to(pixels.device)
            changed[rows] = OPERATIONS[name](pixels[rows], strength, fill)
    return changed


def _signed(operation: Tensor, strength: Tensor) -> Draw:
    """Give half of the pictures the opposite strength, where the operation has an opposite."""
    sign = torch.where((torch.rand(len(operation)) < 0.5) & _HAS_OPPOSITE[operation], -1, 1)
    return Draw(operation.double(), torch.where(_HAS_STRENGTH[operation], sign * strength, 0))


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
