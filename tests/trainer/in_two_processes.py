"""What test_distributed starts by torchrun: three steps on the digits, and batch normalisation of uneven parts."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from tests.trainer.tiny import tiny_recipe
from trainer.data import Pixels, load_splits
from trainer.distributed import WholeBatchNorm2d, is_first, join_processes, leave_processes, part_of, summed, world_size
from trainer.train import Training


def normalised(layer: nn.BatchNorm2d) -> dict[str, torch.Tensor]:
    """Outputs' gradient to the weights and running statistics after a batch of five, in double precision."""
    layer.double().train()
    batch = torch.randn(5, 3, 4, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    part = part_of(batch).clone().requires_grad_()
    (layer(part) ** 3 * part_of(batch.roll(1, 0))).sum().backward()
    assert part.grad is not None
    squares = summed((part.grad**2).sum())
    return {"squares": squares, "mean": layer.running_mean, "variance": layer.running_var}  # type: ignore[dict-item]


def steps(*settings: str) -> dict[str, torch.Tensor]:
    """Losses and momentum direction of three steps of 31 images, so that parts are uneven."""
    device = torch.device("cpu")
    recipe = tiny_recipe("batch_size=31", "averaging.decay=0.9", *settings)
    splits = load_splits(recipe)
    training = Training(recipe, splits, device)
    train = Pixels(splits.train, recipe, device, name="digits")
    batches = zip(range(3), train.training(0), strict=False)
    losses = [training._step(*batch, 0.01)[0] for _, batch in batches]
    return {
        "losses": summed(torch.stack(losses)) / world_size(),
        "direction": training.model.head.momentum_direction,
    }


def sharp_losses() -> dict[str, torch.Tensor]:
    """Losses of three sharpness-aware steps."""
    return {"sharp_losses": steps("optimizer.sharpness_rho=0.3")["losses"]}


if __name__ == "__main__":
    join_processes(torch.device("cpu"), 31)
    results = steps() | sharp_losses() | normalised(WholeBatchNorm2d(3))
    everyones = summed(results["direction"]) / world_size()
    results["direction_apart"] = (everyones - results["direction"]).abs().max()
    if is_first():
        save_file(results, Path(sys.argv[1]))
    leave_processes()
