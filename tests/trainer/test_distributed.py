import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from tests.trainer.in_two_processes import normalised, sharp_losses, steps
from tests.trainer.tiny import STREAMED, tiny_recipe, write_shards
from trainer.checkpoint import CHECKPOINT_FILE, load_checkpoint
from trainer.config import Recipe
from trainer.data import Pixels, load_splits
from trainer.distributed import batch_mean, is_first, part_of, share_of_loss, summed, world_size
from trainer.train import Training

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
TORCHRUN += ["--rdzv-endpoint=127.0.0.1:0"]


def test_alone_nothing_is_shared() -> None:
    rows = torch.randn(4, 2)
    assert part_of(rows) is rows
    assert summed(rows) is rows
    assert batch_mean(rows) is rows
    assert share_of_loss(4, rows.device) == 1
    assert is_first()
    assert world_size() == 1


def test_two_processes_take_the_steps_that_one_takes_with_the_whole_batch(tmp_path: Path) -> None:
    module = [*TORCHRUN, "-m", "tests.trainer.in_two_processes", str(tmp_path / "two.safetensors")]
    subprocess.run(module, check=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"})
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
    settings = [*STREAMED, "batch_size=8", "checkpoint_steps=5", "schedule={epochs: 8, decay: cosine}"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe(*settings, source=shards).model_dump(mode="json")))
    recipe = [str(tmp_path / "recipe.yaml"), "--device", "cpu", "--output", str(run)]
    command = [*TORCHRUN, "--max-restarts=1", "-m", "trainer", "train", *recipe]
    log = tmp_path / "log"
    with log.open("w") as file:
        torchrun = subprocess.Popen(command, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        killed = _kill_a_rank_within_an_epoch(torchrun, run)
        assert torchrun.wait(timeout=120) == 0, log.read_text()
    finally:
        torchrun.kill()
    beginnings = [
        (int(epoch), int(step)) for epoch, step in re.findall(r"(\d) of 8 epochs and (\d+) steps", log.read_text())
    ]
    assert len(beginnings) == 1
    assert beginnings[0] >= killed
    checkpoint = load_checkpoint(run)
    assert [record.epoch for record in checkpoint.history] == list(range(8))
    assert checkpoint.is_finished()
    alone = _first_losses(checkpoint.recipe)
    assert torch.allclose(torch.tensor(checkpoint.history[0].losses), alone, atol=1e-3), "every picture once, as in one"


def _first_losses(recipe: Recipe) -> torch.Tensor:
    """The losses of the first epoch in one process."""
    splits, device = load_splits(recipe), torch.device("cpu")
    pixels = Pixels(splits.train, recipe, device, name="training images")
    return torch.tensor(Training(recipe, splits, device)._epoch(pixels, 0).losses)


def _kill_a_rank_within_an_epoch(torchrun: subprocess.Popen[bytes], run: Path) -> tuple[int, int]:
    while not (run / CHECKPOINT_FILE).exists() or not (saved := load_checkpoint(run)).step:
        if torchrun.poll() is not None:
            pytest.fail("torchrun has ended before the first checkpoint within an epoch")
        time.sleep(0.02)
    workers = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    ranks = {Path(f"/proc/{pid}/environ").read_bytes().split(b"\0RANK=")[1][:1]: int(pid) for pid in workers}
    os.kill(ranks[b"1"], signal.SIGKILL)
    return saved.epoch, saved.step
