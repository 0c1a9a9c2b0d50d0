import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from trainer.policies import (
    CIFAR10_POLICY,
    OPERATIONS,
    POLICIES,
    SIGNED,
    Draw,
    auto_augment,
    change,
    rand_augment,
    trivial_augment,
)

GREY = [120.0, 130.0, 140.0]
NAMES = list(OPERATIONS)


def batch(count: int = 12, size: int = 16) -> Tensor:
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def apply(name: str, pictures: Tensor, strength: float) -> Tensor:
    strengths = torch.full((len(pictures),), strength, dtype=torch.float64)
    return OPERATIONS[name](pictures, strengths, torch.tensor(GREY).to(torch.uint8))


def degrees(shear: float) -> float:
    return math.degrees(math.atan(shear))


TORCHVISIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "shear_x": lambda one, s: functional.affine(one, 0, [0, 0], 1, [degrees(0.3 * s), 0], fill=GREY, center=[0, 0]),
    "shear_y": lambda one, s: functional.affine(one, 0, [0, 0], 1, [0, degrees(0.3 * s)], fill=GREY, center=[0, 0]),
    "translate_x": lambda one, s: functional.affine(one, 0, [round(150 / 331 * s * 20), 0], 1, [0, 0], fill=GREY),
    "translate_y": lambda one, s: functional.affine(one, 0, [0, round(150 / 331 * s * 16)], 1, [0, 0], fill=GREY),
    "rotate": lambda one, s: functional.rotate(one, 30 * s, fill=GREY),
    "brightness": lambda one, s: functional.adjust_brightness(one, 1 + 0.9 * s),
    "color": lambda one, s: functional.adjust_saturation(one, 1 + 0.9 * s),
    "contrast": lambda one, s: functional.adjust_contrast(one, 1 + 0.9 * s),
    "sharpness": lambda one, s: functional.adjust_sharpness(one, 1 + 0.9 * s),
    "posterize": lambda one, s: functional.posterize(one, 8 - round(4 * s)),
    "solarize": lambda one, s: functional.solarize(one, 255 * (1 - s)),
}


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_pictures_of_different_strengths_are_changed_as_torchvision_changes_each(name: str) -> None:
    pictures = torch.randint(256, (19, 3, 16, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    levels = torch.linspace(-1 if name in SIGNED else 0, 1, 19, dtype=torch.float64)
    changed = OPERATIONS[name](pictures, levels, torch.tensor(GREY).to(torch.uint8))
    theirs = torch.stack([TORCHVISIONS[name](one, s) for one, s in zip(pictures, levels.tolist(), strict=True)])
    apart = (changed.int() - theirs.int()).abs()
    if name in {"shear_x", "shear_y", "rotate"}:
        assert (apart > 0).double().mean() < 5e-3  # pixels halfway between two
    else:
        assert apart.max() <= 1  # what is cut off to a whole number
        assert (apart > 0).double().mean() < 0.03


def test_the_policy_is_the_published_one_as_torchvision_has_it() -> None:
    names = {"ShearX": "shear_x", "ShearY": "shear_y", "TranslateX": "translate_x", "TranslateY": "translate_y"}
    published = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)._policies
    theirs = [[(names.get(name, name.lower()), p, level or 0) for name, p, level in policy] for policy in published]
    assert [list(policy) for policy in CIFAR10_POLICY] == theirs


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.0, 0.7, 1.0])
def test_an_operation_treats_each_picture_as_if_it_were_alone(name: str, strength: float) -> None:
    strength = strength if name in SIGNED else abs(strength)
    pictures = batch()
    together = apply(name, pictures, strength)
    alone = torch.cat([apply(name, one, strength) for one in pictures.split(1)])
    assert (together.shape, together.dtype) == (pictures.shape, torch.uint8)
    assert torch.equal(together, alone)
    assert torch.equal(pictures, batch()), "the pictures themselves stay as they were"


@pytest.mark.parametrize("name", [*SIGNED, "posterize", "solarize"])
def test_more_strength_changes_more_and_none_changes_nothing(name: str) -> None:
    pictures = batch()
    moved = [(apply(name, pictures, s).int() - pictures.int()).abs().sum() for s in (0.0, 1.0)]
    assert moved[0] <= 0.01 * moved[1]  # solarize at 0 turns what is wholly white
    assert moved[1] > 0


def test_what_comes_into_view_has_the_given_colour() -> None:
    moved = apply("translate_x", batch(), 1.0)
    assert (moved[..., :7] == torch.tensor(GREY).view(3, 1, 1)).all()
    assert torch.equal(moved[..., 7:], batch()[..., :9])


def test_every_picture_takes_the_change_that_it_drew() -> None:
    pictures = batch(6)
    drawn = [("invert", 0.0), ("identity", 0.0), ("rotate", 0.5), ("rotate", -0.5), ("invert", 0.0), ("equalize", 0.0)]

    def policy(count: int) -> list[Draw]:
        assert count == 6
        numbers, strengths = zip(*((NAMES.index(name), strength) for name, strength in drawn), strict=True)
        return [Draw(torch.tensor(numbers).double(), torch.tensor(strengths).double())]

    changed = change(pictures, policy, GREY)
    for one, before, (name, strength) in zip(changed, pictures, drawn, strict=True):
        assert torch.equal(one, apply(name, before.unsqueeze(0), strength)[0]), name


@pytest.mark.parametrize("name", POLICIES)
def test_pictures_draw_of_their_own_and_the_same_seed_draws_the_same(name: str) -> None:
    one = batch(1).expand(64, -1, -1, -1)
    torch.manual_seed(3)
    changed = change(one, POLICIES[name], GREY)
    assert len(torch.unique(changed, dim=0)) > 16
    torch.manual_seed(3)
    assert torch.equal(change(one, POLICIES[name], GREY), changed)


def test_sub_policies_are_drawn_alike_with_the_probabilities_of_their_steps() -> None:
    torch.manual_seed(0)
    first, second = auto_augment(20_000)
    for step, draw in enumerate((first, second)):
        expected = torch.zeros(len(NAMES))
        for policy in CIFAR10_POLICY:
            name, probability, _ = policy[step]
            expected[NAMES.index(name)] += probability / 25
            expected[0] += (1 - probability) / 25
        share = torch.bincount(draw.operation.long(), minlength=len(NAMES)) / 20_000
        assert torch.allclose(share, expected, atol=0.015)
    shifts = second.strength[second.operation == NAMES.index("translate_y")]
    assert {round(9 * shift) for shift in shifts.tolist()} == {-9, 9}
    assert abs((shifts > 0).double().mean() - 0.5) < 0.1


def test_rand_and_trivial_augment_draw_any_operation_but_invert() -> None:
    torch.manual_seed(0)
    steps = rand_augment(5000, operations=3, level=15)
    assert len(steps) == 3
    for draw in steps:
        assert {NAMES[int(number)] for number in draw.operation} == set(NAMES) - {"invert"}
        assert set(draw.strength.tolist()) == {-0.5, 0.0, 0.5}
    [draw] = trivial_augment(5000)
    assert draw.strength.min() == -1
    assert draw.strength.max() == 1
    assert (draw.strength[draw.operation == NAMES.index("posterize")] >= 0).all()
