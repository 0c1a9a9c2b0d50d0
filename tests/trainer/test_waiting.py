"""No step of a training waits for the device: what is queued there would otherwise stand still meanwhile.

Shown on torch's `meta` device, which keeps shapes and no numbers: whatever asks for a number fails, or is noticed here.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainer.tiny import tiny_recipe
from trainer.data import Pixels, Splits
from trainer.mixing import mix
from trainer.train import Training

META = torch.device("meta")
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
NUMBERS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}


class Watch(TorchDispatchMode):
    """Refuses what waits for the device: its numbers, and copies to or from it that are not `non_blocking`."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)  # of super() mypy would not see that it is torch's, and may lack annotations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {one.device.type for one in (*args, result) if isinstance(one, torch.Tensor)}
        assert not (func in NUMBERS and devices != {"cpu"}), f"{func} asks for a number"
        if func in COPIES and len(devices) > 1:
            assert (kwargs or {}).get("non_blocking") or args[2:] == (True,), f"{func} waits for a copy"
        return result


EVERYTHING = "augment={crop_padding: 1, horizontal_flip: true, policy: POLICY, cutout: 3, MIXING: 1}"


@pytest.mark.parametrize(("policy", "mixing"), [("auto", "mixup"), ("rand", "cutmix")])
def test_no_step_waits_for_the_device(
    digits: Splits, monkeypatch: pytest.MonkeyPatch, policy: str, mixing: str
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # `meta` knows none
    augment = EVERYTHING.replace("POLICY", policy).replace("MIXING", mixing)
    settings = ("averaging.decay=0.9", "optimizer.sharpness_rho=0.1", "loss={name: logit_adjustment}")
    recipe = tiny_recipe(augment, "head.momentum_decay=coupled", *settings)
    training = Training(recipe, digits, META)
    train = Pixels(digits.train, recipe, META, name="training images")
    assert training.average
    with Watch():
        for step, (pixels, labels) in zip(range(3), train.training(0), strict=False):
            mixed, mixture = mix(recipe.augment, pixels, 0.1)
            loss, _ = training._step(mixed, labels, 0.1, mixture)
            training.average.update(step)
    assert step == 2
    assert loss.device == META


def test_the_watch_sees_what_waits() -> None:
    for waits in (
        lambda: torch.zeros(2).to(META),
        lambda: torch.zeros(2, device=META).copy_(torch.zeros(2)),
        lambda: torch.zeros((), device=META).item(),
        lambda: torch.zeros(2, device=META).nonzero(),
    ):
        with Watch(), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
            waits()
    with Watch():
        torch.zeros(2).to(META, non_blocking=True)
