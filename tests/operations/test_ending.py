"""How a service ends, gently or not, and what is there when it comes back: by what its clients and its store saw."""

import asyncio
import json
import os
import signal
import socket
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from service.app import LONGEST_END
from tests.deploy.prometheus import free_port
from tests.operations.client import Answer, metric, request, send
from tests.operations.conftest import TRIAL
from tests.operations.trial_service import HANGING
from tests.service import postgresql
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


async def is_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_a_request_that_is_on_its_way_when_the_door_closes_is_answered(tiny_bundle: Path, tmp_path: Path) -> None:
    with running(tiny_bundle, tmp_path / "log", TRIAL) as service:
        known = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(5)]
        service.process.send_signal(signal.SIGINT)
        while await is_open(service.port):  # noqa: ASYNC110 - another process closes it
            await asyncio.sleep(0.001)
        for _, writer in known:
            writer.write(request(picture(1)))
        for reader, writer in known:
            assert (await asyncio.wait_for(reader.read(-1), 10)).startswith(b"HTTP/1.1 200 ")
            writer.close()
        assert await asyncio.to_thread(service.process.wait, 10) == 0


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


HANGS_FOR_GOOD = """
import time
from service import __main__ as program
from service.model import OnnxModel

load = program.load_bundle

def once(*arguments):
    if arguments[-1]:
        time.sleep(3600)
    loaded = load(*arguments)
    OnnxModel.branches = lambda *_: time.sleep(3600)
    return loaded

program.load_bundle = once
program.main()
"""


def seconds_to_end(service: Process) -> float:
    """Send SIGTERM, and return how long the process then takes to exit with 0."""
    begin = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(60) == 0
    return time.monotonic() - begin


async def test_a_model_and_a_reload_that_hang_for_good_keep_no_process_from_ending(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hangs_for_good.py").write_text(HANGS_FOR_GOOD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    settings = {"drain_delay": "0", "shutdown_timeout": "1", "database_url": f"sqlite:///{tmp_path}/kept.sqlite"}
    with running(tiny_bundle, tmp_path / "log", "hangs_for_good", **settings) as service:
        service.process.send_signal(signal.SIGHUP)
        asking = asyncio.create_task(send(service.port, request(picture(1))))
        await asyncio.to_thread(wait_until, lambda: metric(service, "evenkeel_images_in_flight") == 1)
        await asyncio.sleep(0.5)
        assert await asyncio.to_thread(seconds_to_end, service) < 1 + LONGEST_END
        assert (await asking).json["code"] == "shutting_down"
        assert "Traceback" not in service.log.read_text()


@contextmanager
def frozen(cluster: Path) -> Iterator[None]:
    """Stop all processes of a database server: it takes connections and answers nothing."""
    server = int((cluster / "data/postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    processes = [server, *map(int, children)]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


async def test_a_database_and_a_collector_that_hang_keep_no_process_from_ending_and_what_is_lost_is_logged(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    # The cluster is not in pytest's folders, which only their owner may enter: the server runs as someone else.
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as collector:
        os.chmod(folder, 0o755)  # noqa: PTH101 - pathlib's blocks, says ASYNC240
        cluster = Path(folder) / "cluster"
        with postgresql.running(cluster, free_port()) as server:
            settings = {"drain_delay": "0", "shutdown_timeout": "1", "database_url": server.url()}
            settings["otlp_endpoint"] = f"http://127.0.0.1:{collector.getsockname()[1]}/v1/traces"
            with running(tiny_bundle, tmp_path / "log", **settings) as service, frozen(cluster):
                for _ in range(7):
                    assert (await send(service.port, request(picture(1)))).status == 200
                assert await asyncio.to_thread(seconds_to_end, service) < 1 + LONGEST_END
    log = (tmp_path / "log").read_text()
    assert "7 predictions could not be written to the database and are lost" in log
    assert "the collector has not taken the last spans in 6 s: they are lost" in log
    assert "Traceback" not in log


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
