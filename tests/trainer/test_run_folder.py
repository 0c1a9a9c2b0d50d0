from pathlib import Path

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]  # torch defines it elsewhere

from tests.trainer.tiny import tiny_recipe
from trainer.checkpoint import CHECKPOINT_FILE
from trainer.distributed import launch
from trainer.errors import TrainerError
from trainer.run_folder import holds_run, write_recipe


def test_a_restart_goes_on_with_what_its_own_start_began_and_with_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "store", HashStore())
    older, own = tmp_path / "older", tmp_path / "own"
    older.mkdir()
    (older / CHECKPOINT_FILE).touch()
    assert not holds_run(own, resume=False)
    write_recipe(tiny_recipe(), own)
    (own / CHECKPOINT_FILE).touch()
    for restarts in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        with pytest.raises(TrainerError, match="older: holds a run already; go on with --resume"):
            holds_run(older, resume=False)
        assert holds_run(older, resume=True)
        assert holds_run(own, resume=False)
    monkeypatch.setattr(launch, "store", None)  # as in a process that torchrun has not started
    with pytest.raises(TrainerError, match="own: holds a run already"):
        holds_run(own, resume=False)
