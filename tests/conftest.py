import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.turns import turn

# Tests and what they start are many small processes: threads of one would only wait for each other's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is slow, and that is no fault of the code: pytest's own time limit remains.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


SHARED = ("tests/end_to_end/", "tests/page/")
"""Folders whose tests share what takes long to make: a trained run, a browser."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file, or of a folder in `SHARED`, in one process, where they share fixtures."""
    from xdist.scheduler import LoadScopeScheduling

    def file_or_folder(nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((folder for folder in SHARED if file.startswith(folder)), file)

    scheduling = LoadScopeScheduling(config, log)
    scheduling._split_scope = file_or_folder
    return scheduling


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files whose tests all run alone last: amid the others they would wait for long ones, and these for them."""
    items.sort(
        key=lambda item: any(mark.name == "alone" for node in item.listchain()[:-1] for mark in node.own_markers)
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Where pytest-xdist shares the tests out, each waits for its turn: those marked `alone` run alone."""
    workers = getattr(item.config, "workerinput", None)
    if workers is None:
        return (yield)
    folder = Path(tempfile.gettempdir()) / f"evenkeel-tests-{workers['testrunuid']}"
    folder.mkdir(exist_ok=True)
    with turn(folder, alone=item.get_closest_marker("alone") is not None):
        return (yield)
