"""How a service ends, gently or not, and what is there when it comes back: by what its clients and its store saw."""

import asyncio
import json
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.operations.client import Answer, metric, request, send
from tests.operations.conftest import TRIAL
from tests.operations.trial_service import HANGING
from tests.service.fakes import picture
from tests.service.test_process import Process, running
from tests.service.test_reload import wait_until

pytestmark = pytest.mark.alone


def kept(store: Path) -> set[str]:
    """The ids of the predictions in a store that is whole."""
    with sqlite3.connect(store) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return {row[0] for row in connection.execute("SELECT id FROM predictions")}


def identifier(answer: Answer) -> str:
    found: str = answer.json["images"][0]["prediction_id"]
    return found


@asynccontextmanager
async def load(service: Process, clients: int = 8) -> AsyncIterator[list[Answer]]:
    """Send requests one after another from each of several clients until nobody answers any more."""
    answers: list[Answer] = []

    async def ask() -> None:
        while (answer := await send(service.port, request(picture(1)))).status:
            answers.append(answer)

    tasks = [asyncio.create_task(ask()) for _ in range(clients)]
    yield answers
    await asyncio.gather(*tasks)


async def test_sigterm_under_load_fails_readiness_first_answers_all_and_keeps_every_prediction(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    store = tmp_path / "kept.sqlite"
    settings = {"database_url": f"sqlite:///{store}", "drain_delay": "0.7", "trial_seconds": "0.02"}
    with running(tiny_bundle, tmp_path / "log", TRIAL, **settings) as service:
        async with load(service) as answers:
            await asyncio.sleep(0.5)
            service.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(wait_until, lambda: service.get("/readyz")[0] == 503)
            before = len(answers)
            await asyncio.sleep(0.3)
            assert len(answers) > before  # not ready, and whoever comes is answered all the same
        assert await asyncio.to_thread(service.process.wait, 20) == 0
        assert {answer.status for answer in answers} == {200}
        assert kept(store) == {identifier(answer) for answer in answers}
        assert "Traceback" not in service.log.read_text()


async def test_what_is_not_answered_in_the_time_of_the_shutdown_is_told_to_come_again(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    settings = {"drain_delay": "0", "shutdown_timeout": "1", "database_url": f"sqlite:///{tmp_path}/kept.sqlite"}
    unfinished = request(bytes(1000), path="/v2/models/tiny/infer")[:-1]
    with running(tiny_bundle, tmp_path / "log", TRIAL, **settings) as service:
        sent = (request(picture(HANGING // 10)), request(picture(1))[:-1], unfinished)
        asking = [asyncio.create_task(send(service.port, data)) for data in sent]
        await asyncio.sleep(0.3)
        service.process.send_signal(signal.SIGTERM)
        for answer in await asyncio.gather(*asking):
            assert (answer.status, answer.json["code"]) == (503, "shutting_down")
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["connection"] == "close"
        assert await asyncio.to_thread(service.process.wait, 20) == 0
        assert "Traceback" not in service.log.read_text()


async def test_after_sigkill_under_load_it_comes_back_ready_with_all_that_was_acknowledged(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    store = tmp_path / "kept.sqlite"
    settings = {"database_url": f"sqlite:///{store}"}
    with running(tiny_bundle, tmp_path / "log", **settings) as service:
        async with load(service) as answers:
            await asyncio.to_thread(wait_until, lambda: metric(service, "evenkeel_store_written_total") > 50)
            label = [{"prediction_id": identifier(answers[0]), "label": 1}]
            feedback = request(json.dumps(label).encode(), path="/feedback", headers={})
            assert (await send(service.port, feedback)).json["accepted"] == 1
            written = int(metric(service, "evenkeel_store_written_total"))
            service.process.kill()
        assert await asyncio.to_thread(service.process.wait, 20) == -signal.SIGKILL
    ids = kept(store)
    assert len(ids) >= written
    with running(tiny_bundle, tmp_path / "log", **settings) as service:  # which waits until it is ready
        status, answer = service.predict()
        assert status == 200
        await asyncio.to_thread(wait_until, lambda: metric(service, "evenkeel_store_written_total") == 1)
    assert kept(store) == ids | {answer["images"][0]["prediction_id"]}
    with sqlite3.connect(store) as connection:
        assert connection.execute("SELECT prediction, label FROM labels").fetchall() == [(label[0]["prediction_id"], 1)]
