import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.tiny import tiny_recipe
from trainer import folder_lock
from trainer.errors import TrainerError
from trainer.folder_lock import LOCK_FILE, sole_run
from trainer.runs import train_run

HOLD = """
import sys, pathlib, trainer.folder_lock
with trainer.folder_lock.sole_run(pathlib.Path(sys.argv[1])):
    print(flush=True), input()
"""


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.1)


def test_two_runs_into_one_folder_are_refused_and_a_killed_one_locks_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        said = rf"run: process {other.pid} on .* trains into it; wait for its end, or name another folder"
        with pytest.raises(TrainerError, match=said):
            train_run(tiny_recipe(), tmp_path / "run", device_name="cpu", resume=False)
        assert not (tmp_path / "run" / "recipe.yaml").exists()
        other.kill()
    assert (tmp_path / "run" / LOCK_FILE).exists()
    with sole_run(tmp_path / "run"):
        pass
    with sole_run(tmp_path / "run"):  # and once more after it was given back
        pass
