import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.trainer.in_two_processes import normalised, steps
from trainer.checkpoint import CHECKPOINT_FILE, load_checkpoint
from trainer.distributed import batch_mean, is_first, part_of, share_of_loss, summed, world_size

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
    two, one = load_file(tmp_path / "two.safetensors"), steps() | normalised(nn.BatchNorm2d(3))
    assert torch.allclose(two["losses"], one["losses"], atol=2e-5)
    assert torch.allclose(two["direction"], one["direction"], rtol=1e-3, atol=1e-4)
    assert float(two["direction_apart"]) == 0
    for name in ("squares", "mean", "variance"):  # in double precision
        assert torch.allclose(two[name], one[name], rtol=1e-10)


def test_a_killed_process_is_started_again_and_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = ["digits_lt", "--device", "cpu", "--set", "schedule={epochs: 8, decay: cosine}", "--output", str(run)]
    command = [*TORCHRUN, "--max-restarts=1", "-m", "trainer", "train", *recipe]
    log = tmp_path / "log"
    with log.open("w") as file:
        torchrun = subprocess.Popen(command, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        killed = _kill_a_rank_after_an_epoch(torchrun, run)
        assert torchrun.wait(timeout=120) == 0
    finally:
        torchrun.kill()
    beginnings = re.findall(r"(\d) of 8 epochs done", log.read_text())
    assert beginnings[0] == "0"
    assert int(beginnings[1]) >= killed
    checkpoint = load_checkpoint(run)
    assert [record.epoch for record in checkpoint.history] == list(range(8))
    assert checkpoint.is_finished()


def _kill_a_rank_after_an_epoch(torchrun: subprocess.Popen[bytes], run: Path) -> int:
    while not (run / CHECKPOINT_FILE).exists():
        if torchrun.poll() is not None:
            pytest.fail("torchrun has ended before the first checkpoint")
        time.sleep(0.02)
    workers = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    ranks = {Path(f"/proc/{pid}/environ").read_bytes().split(b"\0RANK=")[1][:1]: int(pid) for pid in workers}
    os.kill(ranks[b"1"], signal.SIGKILL)
    return load_checkpoint(run).epoch
