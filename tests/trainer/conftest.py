from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch

from tests.trainer.tiny import tiny_recipe
from trainer.data import Splits, load_splits
from trainer.runs import train_run


@pytest.fixture(scope="session", autouse=True)
def _small_and_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, a cache of its own and no network for every test of the trainer."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits() -> Splits:
    return load_splits(tiny_recipe())


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on the digits, alpha chosen, evaluated. Not to be written to."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    train_run(tiny_recipe(), folder, device_name="cpu", resume=False)
    return folder
