import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from tests.trainer import in_two_processes, torchrun, train_by_rank
from tests.trainer.in_two_processes import normalised, sharp_losses, steps
from tests.trainer.tiny import STREAMED, tiny_recipe, write_shards
from trainer.checkpoint import CHECKPOINT_FILE, load_checkpoint
from trainer.config import Recipe
from trainer.data import Pixels, load_splits
from trainer.distributed import batch_mean, is_first, part_of, share_of_loss, summed, world_size
from trainer.train import Training


def test_alone_nothing_is_shared() -> None:
    rows = torch.randn(4, 2)
    assert part_of(rows) is rows
    assert summed(rows) is rows
    assert batch_mean(rows) is rows
    assert share_of_loss(4, rows.device) == 1
    assert is_first()
    assert world_size() == 1


def test_two_processes_take_the_steps_that_one_takes_with_the_whole_batch(tmp_path: Path) -> None:
    with torchrun.running(Path(in_two_processes.__file__), tmp_path / "two.safetensors") as launcher:
        assert launcher.wait(timeout=120) == 0
    two, one = load_file(tmp_path / "two.safetensors"), steps() | sharp_losses() | normalised(nn.BatchNorm2d(3))
    assert torch.allclose(two["losses"], one["losses"], atol=2e-5)
    assert torch.allclose(two["sharp_losses"], one["sharp_losses"], atol=2e-4)
    assert not torch.allclose(two["sharp_losses"], two["losses"], atol=2e-3)
    assert torch.allclose(two["direction"], one["direction"], rtol=1e-3, atol=1e-4)
    assert float(two["direction_apart"]) == 0
    for name in ("squares", "mean", "variance"):  # in double precision
        assert torch.allclose(two[name], one[name], rtol=1e-10)


def test_a_killed_process_is_started_again_and_goes_on_in_the_middle_of_an_epoch_of_shards(tmp_path: Path) -> None:
    shards, run = write_shards(tmp_path / "shards", rows=64), tmp_path / "run"
    calm = "optimizer.learning_rate=0.0005"  # at a higher one errors of rounding grow to as much as other pictures make
    settings = [*STREAMED, "batch_size=8", "checkpoint_steps=5", "schedule={epochs: 3, decay: cosine}", calm]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe(*settings, source=shards).model_dump(mode="json")))
    recipe = [tmp_path / "recipe.yaml", "--device", "cpu", "--output", run]
    script, log = Path(train_by_rank.__file__), tmp_path / "log"
    with (
        log.open("w") as file,
        torchrun.running(
            script, "train", *recipe, restarts=1, environment={"RANKS": str(tmp_path)}, stderr=file
        ) as launcher,
    ):
        killed = _kill_a_rank_within_an_epoch(launcher, run, tmp_path / "1")
        assert launcher.wait(timeout=120) == 0, log.read_text()
    beginnings = [
        (int(epoch), int(step)) for epoch, step in re.findall(r"(\d) of 3 epochs and (\d+) steps", log.read_text())
    ]
    assert len(beginnings) == 1
    assert beginnings[0] >= killed
    checkpoint = load_checkpoint(run)
    assert [record.epoch for record in checkpoint.history] == list(range(3))
    assert checkpoint.is_finished()
    alone = _first_losses(checkpoint.recipe)
    assert torch.allclose(torch.tensor(checkpoint.history[0].losses), alone, atol=1e-3), "every picture once, as in one"


def _first_losses(recipe: Recipe) -> torch.Tensor:
    """The losses of the first epoch in one process."""
    splits, device = load_splits(recipe), torch.device("cpu")
    pixels = Pixels(splits.train, recipe, device, name="training images")
    return torch.tensor(Training(recipe, splits, device)._epoch(pixels, 0).losses)


def _kill_a_rank_within_an_epoch(launcher: subprocess.Popen[bytes], run: Path, rank: Path) -> tuple[int, int]:
    while not (run / CHECKPOINT_FILE).exists() or not (saved := load_checkpoint(run)).step:
        if launcher.poll() is not None:
            pytest.fail("torchrun has ended before the first checkpoint within an epoch")
        time.sleep(0.02)
    os.kill(int(rank.read_text()), signal.SIGKILL)
    return saved.epoch, saved.step
