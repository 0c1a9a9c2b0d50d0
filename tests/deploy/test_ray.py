"""The service on Ray Serve, on a cluster of two nodes; what it answers is held against the plain service."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from deploy.ray.unanswered import BODY, LOOK_FIRST, Unanswered
from service.errors import ServiceError
from tests.deploy.ray_clients import answers, metrics, same
from tests.service.test_process import free_port, running
from tests.service.tiny_model import write_tiny_bundle

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deploy.ray.unanswered.middlewares",
    # Else the one proxy, on the head node, would leave the other node's replica idle until its own is full.
    "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",
    # Else Ray goes by the queues of up to ten seconds ago, and may leave a replica without any request for as long.
    "RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S": "0",
    # Else other tests at the same time leave next to nothing to Ray's processes, whose niceness would be 15.
    "RAY_worker_niceness": "0",
    # A node whose port is closed counts as lost after two seconds, not fifteen; one that is merely slow, no sooner.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
    "PYTHONPATH": str(ROOT),
    "EVENKEEL_PROVIDER": "cpu",
    "EVENKEEL_DRAIN_DELAY": "0",
}

CONFIGURATION = """
import asyncio, json
from ray.serve.deployment import deployment_to_schema
from deploy.ray.application import Evenkeel, application
from service.app import create_app
from service.settings import Settings
from tests.service.fakes import FakeModel

arguments = {"bundle": "anywhere", "min_replicas": 2, "max_replicas": 5, "max_replicas_per_node": 1}
deployment = application(arguments)._bound_deployment
replica = Evenkeel()
replica.app = create_app(Settings(), FakeModel())

def health():
    try:
        return asyncio.run(replica.check_health())
    except RuntimeError as reason:
        return str(reason)

seen = [health()]
for change in ("welcome", "suspend", "resume", "end"):
    getattr(replica.app.service.readiness, change)(*["stuck"] * (change == "suspend"))
    seen.append(health())
same = deployment.func_or_class.check_health is Evenkeel.check_health
print(json.dumps([deployment_to_schema(deployment).model_dump(mode="json"), seen, same], default=repr))
"""
"""In a process of its own, as Ray leaves threads and warnings behind."""

App = Callable[[Scope, Receive, Send], Awaitable[None]]


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray has no wheel for this platform")
def test_ray_is_told_when_to_scale_whom_to_replace_and_how_long_to_wait() -> None:
    settings = {"MAX_BATCH_SIZE": "7", "MAX_QUEUE_SIZE": "50", "DRAIN_DELAY": "3", "SHUTDOWN_TIMEOUT": "20"}
    environment = os.environ | ENVIRONMENT | {f"EVENKEEL_{name}": value for name, value in settings.items()}
    process = subprocess.run(
        [sys.executable, "-c", CONFIGURATION], cwd=ROOT, env=environment, capture_output=True, timeout=60, check=False
    )
    assert process.returncode == 0, process.stderr.decode()
    deployment, health, is_asked_for_it = json.loads(process.stdout)
    scaling = deployment["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"], scaling["target_ongoing_requests"]) == (2, 5, 7)
    assert deployment["max_replicas_per_node"] == 1
    assert deployment["max_ongoing_requests"] > 50 + 7  # the replica itself says 429, with the time to come again
    assert deployment["max_queued_requests"] == 50
    assert is_asked_for_it
    assert health == ["The service is starting.", None, "stuck", None, "The service is shutting down."]
    assert deployment["health_check_period_s"] == 2
    assert deployment["graceful_shutdown_wait_loop_s"] == 3
    assert deployment["graceful_shutdown_timeout_s"] > 3 + 20 + 6  # the last write may take six


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray has no wheel for this platform")
@pytest.mark.skipif(sys.platform != "linux", reason="a node's processes are found in /proc")
@pytest.mark.timeout(270)
def test_a_replica_is_not_ready_a_node_dies_under_load_and_no_accepted_request_is_lost(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny").path
    database = {"EVENKEEL_DATABASE_URL": f"sqlite:///{tmp_path}/ray.sqlite"}
    results, log = tmp_path / "seen.json", tmp_path / "ray.log"
    with log.open("wb") as sink:
        process = subprocess.run(
            [sys.executable, "-m", "tests.deploy.ray_cluster", str(bundle), str(free_port()), str(results)],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | database,
            stdout=sink,
            stderr=sink,
            timeout=240,
            check=False,
        )
    assert process.returncode == 0, log.read_text()[-4000:]
    seen = json.loads(results.read_text())

    with running(bundle, tmp_path / "plain.log", database_url=f"sqlite:///{tmp_path}/plain.sqlite") as plain:
        assert same(seen["answers"], answers(plain.port))
        assert seen["metrics"]["names"] == metrics(plain.port)["names"]
    counts = seen["metrics"]["counts"]  # of two replicas; one number where both have as many
    assert sum(counts) * (3 - len(counts)) == 2 * len(seen["answers"]), "each prediction is counted by one replica"
    load = seen["load"]
    assert (load["lost"], load["wrong"]) == (0, 0), load
    assert load["statuses"].keys() == {"200", "503"}, load
    assert load["codes"].keys() == {"replica_lost"}, load
    assert seen["replaced"] == {"stay": 1, "come": 1}
    assert seen["drained"] == {"200": 8}


async def through(app: App, method: str = "POST", path: str = "/predict") -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    await Unanswered(app)({"type": "http", "method": method, "path": path}, receive, send)
    return sent


async def silent(scope: Scope, receive: Receive, send: Send) -> None: ...


async def failing(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("the replica is gone")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predict"),
        ("POST", "/v2/models/tiny/infer"),
        ("POST", "/feedback"),
        ("GET", "/clients"),
        ("DELETE", "/clients/shop"),
    ],
)
async def test_what_was_left_unanswered_gets_503_and_the_advice_to_ask_again(method: str, path: str) -> None:
    for app in (silent, failing):
        start, body = await through(app, method, path)
        assert (start["status"], dict(start["headers"])[b"retry-after"]) == (503, b"1")
        assert json.loads(body["body"]) == BODY
    assert BODY.keys() == ServiceError("").body().keys()


@pytest.mark.parametrize("path", ["/clients", "/clients/shop/keys"])
async def test_what_may_have_made_something_is_not_to_be_sent_again_unseen(path: str) -> None:
    start, body = await through(failing, "POST", path)
    assert start["status"] == 503
    assert b"retry-after" not in dict(start["headers"])
    assert json.loads(body["body"]) == LOOK_FIRST


async def test_why_a_request_was_left_unanswered_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    await through(failing)
    assert "POST /predict was left unanswered" in caplog.text
    assert "RuntimeError: the replica is gone" in caplog.text


async def test_what_was_answered_stays_as_it_is() -> None:
    answer: list[Message] = [{"type": "http.response.start", "status": 500}, {"type": "http.response.body"}]

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        for message in answer:
            await send(message)

    async def breaking(scope: Scope, receive: Receive, send: Send) -> None:
        await send(answer[0])
        raise RuntimeError

    assert await through(answering) == answer
    with pytest.raises(RuntimeError):
        await through(breaking)
