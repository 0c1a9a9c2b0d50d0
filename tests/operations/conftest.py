from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.test_process import Process, running
from tests.service.tiny_model import write_tiny_bundle

TRIAL = "tests.operations.trial_service"


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny").path


@pytest.fixture(scope="module")
def slow(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """20 images a second, in batches of 4, room for 40 that wait, and two threads that decode however many cores."""
    folder = tmp_path_factory.mktemp("slow")
    settings = {"trial_seconds": "0.05", "max_batch_size": "4", "max_queue_size": "40", "stall_timeout": "0.5"}
    settings["decode_threads"] = "2"
    settings["database_url"] = f"sqlite:///{folder / 'kept.sqlite'}"
    with running(tiny_bundle, folder / "log", TRIAL, **settings) as service:
        yield service
