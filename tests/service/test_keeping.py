"""The end of what is kept, and a database that does not take it; all else is in the tests of the stores."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import database
from service.clients import NOBODY, ClientPolicy, fit
from service.keeping import Keeping
from service.metrics import Metrics
from service.scoring import Knobs
from service.settings import Settings
from tests.service.fakes import make_manifest


@pytest.fixture
def keeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeping]:
    monkeypatch.setattr(database, "_PATIENCE", 0.2)
    keeping = Keeping(Settings(database_url=f"sqlite:///{tmp_path}/kept.sqlite"), make_manifest(), Metrics())
    keeping.begin()
    yield keeping
    keeping.database.close()


def note(keeping: Keeping, times: int) -> None:
    manifest = make_manifest()
    logits = np.eye(len(manifest.classes), dtype=np.float32)[0]
    terms = fit(ClientPolicy(), manifest, 4.0)
    lines = {"factual_logits": logits, "counterfactual_logits": -logits}
    for _ in range(times):
        keeping.recorder.note(NOBODY, terms, manifest, Knobs(1.0), winner=0, **lines)


def kept(folder: Path) -> int:
    with sqlite3.connect(folder / "kept.sqlite") as connection:
        (count,) = connection.execute("SELECT count(*) FROM predictions").fetchone()
    connection.close()
    return int(count)


def test_what_waits_is_written_at_the_end_and_nothing_is_said(keeping: Keeping, tmp_path: Path, caplog: Any) -> None:
    note(keeping, 3)
    keeping.end(10)
    assert kept(tmp_path) == 3
    assert "lost" not in caplog.text


def test_a_database_of_a_newer_release_is_said_once_and_is_no_database(
    keeping: Keeping, tmp_path: Path, caplog: Any
) -> None:
    keeping.end(10)
    with sqlite3.connect(tmp_path / "kept.sqlite") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    metrics = Metrics()
    older = Keeping(Settings(database_url=f"sqlite:///{tmp_path}/kept.sqlite"), make_manifest(), metrics)
    older.begin()
    time.sleep(1.2)  # more than two looks
    older.end(10)
    assert [(each.exc_info, each.getMessage()) for each in caplog.records] == [
        (
            None,
            "reading policies: The database cannot be used. It was brought up to date by a newer release, "
            "whose '9999' this one does not know; run that release.",
        )
    ]
    assert metrics.registry.get_sample_value("evenkeel_store_up") == 0


def test_how_many_could_not_be_written_at_the_end_is_said(keeping: Keeping, tmp_path: Path, caplog: Any) -> None:
    writer = sqlite3.connect(tmp_path / "kept.sqlite", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    note(keeping, 3)
    keeping.end(10)
    writer.close()
    assert kept(tmp_path) == 0
    assert "3 predictions could not be written to the database and are lost" in caplog.text


@pytest.mark.alone
def test_a_database_that_hangs_is_not_waited_for(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(keeping.predictions, "write", lambda _: gate.wait(20))
    note(keeping, 3)
    begin = time.monotonic()
    keeping.end(0.3)
    assert time.monotonic() - begin < 2
    assert "3 predictions could not be written to the database and are lost" in caplog.text
    gate.set()
