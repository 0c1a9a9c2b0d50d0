from typing import Any

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.metrics import Metrics
from service.routes.context import Readiness
from service.settings import Settings
from service.watchdog import Watchdog
from tests.service.fakes import FakeModel, picture


class Stuck:
    seconds = 0.0

    def stuck_for(self, now: float) -> float:
        return self.seconds


@pytest.fixture
def stuck() -> Stuck:
    return Stuck()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def readiness(metrics: Metrics) -> Readiness:
    readiness = Readiness(metrics)
    readiness.welcome()
    return readiness


@pytest.fixture
def watchdog(stuck: Stuck, readiness: Readiness, metrics: Metrics) -> Watchdog:
    return Watchdog(stuck, readiness, patience=5, metrics=metrics)


def test_readiness_follows_the_model(
    watchdog: Watchdog, stuck: Stuck, readiness: Readiness, metrics: Metrics, caplog: Any
) -> None:
    for seconds, ready in [(0, True), (4.9, True), (5, False), (60, False), (0, True), (6, False)]:
        stuck.seconds = seconds
        watchdog.look(0)
        assert (readiness.reason is None) == ready
        assert metrics.registry.get_sample_value("evenkeel_ready") == ready
    assert metrics.registry.get_sample_value("evenkeel_stalls_total") == 2
    assert "the model has not answered for 5.0 s" in caplog.text
    assert "the model answers again" in caplog.text


def test_a_shutdown_stays_a_shutdown(watchdog: Watchdog, stuck: Stuck, readiness: Readiness) -> None:
    stuck.seconds = 6
    watchdog.look(0)
    readiness.refuse("The service is shutting down.")
    stuck.seconds = 0
    watchdog.look(0)
    assert readiness.reason == "The service is shutting down."


def test_a_model_that_hangs_turns_readiness_off_until_it_answers() -> None:
    model = FakeModel()
    settings = Settings(stall_timeout=0.1, request_timeout=0.4)
    with TestClient(create_app(settings, model), raise_server_exceptions=False) as client:
        model.gate.clear()
        assert client.post("/predict", content=picture(), headers={"Content-Type": "image/png"}).status_code == 504
        refused = client.get("/readyz")
        assert (refused.status_code, refused.json()["message"]) == (503, "The model has stopped answering.")
        assert client.get("/healthz").status_code == 200
        model.gate.set()
        for _ in range(100):
            if client.get("/readyz").status_code == 200:
                break
            client.portal.call(__import__("asyncio").sleep, 0.02)  # type: ignore[union-attr]
        assert client.get("/readyz").status_code == 200
