import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.detector import Outputs
from service.metrics import Metrics
from service.routes.context import Readiness
from service.settings import Settings
from service.watchdog import Watchdog
from tests.service.fakes import FakeDetector, FakeModel, picture
from tests.service.test_reload import wait_until

PATIENCE = 5


class Stuck:
    """A batcher to look at, and what comes of a trial."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.is_failing = False
        self.is_broken = False
        self.trials = self.cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def stuck_for(self, now: float) -> float:
        return self.seconds

    async def attempt(self) -> None:
        self.trials += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.is_broken:
            raise RuntimeError("the device is gone")


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
    return Watchdog(stuck, stuck.attempt, readiness, patience=PATIENCE, metrics=metrics)


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
    assert stuck.trials == 0


def test_a_shutdown_stays_a_shutdown(watchdog: Watchdog, stuck: Stuck, readiness: Readiness) -> None:
    stuck.seconds = 6
    watchdog.look(0)
    readiness.refuse("The service is shutting down.")
    stuck.seconds = 0
    watchdog.look(0)
    assert readiness.reason == "The service is shutting down."


async def looks(watchdog: Watchdog, begin: int, seconds: int) -> None:
    """Look once a second, and let what was begun come to its end."""
    for now in range(begin, begin + seconds):
        watchdog.look(now)
        await asyncio.sleep(0)


async def test_runs_that_fail_on_their_own_pictures_leave_readiness_on(
    watchdog: Watchdog, stuck: Stuck, readiness: Readiness
) -> None:
    stuck.is_failing = True
    for now in range(60):
        await looks(watchdog, now, 1)
        assert readiness.reason is None
    assert 20 < stuck.trials <= 60


async def test_readiness_is_off_while_what_is_known_to_be_good_fails_too(
    watchdog: Watchdog, stuck: Stuck, readiness: Readiness
) -> None:
    stuck.is_failing = stuck.is_broken = True
    await looks(watchdog, 0, PATIENCE)
    assert readiness.reason is None
    await looks(watchdog, PATIENCE, 60)
    assert readiness.reason == "The model has stopped answering."
    stuck.is_broken = False  # and nobody sends anything that could show it
    await looks(watchdog, 70, 3)
    assert readiness.reason is None


async def test_an_answer_to_anyone_shows_as_much_as_a_trial(
    watchdog: Watchdog, stuck: Stuck, readiness: Readiness
) -> None:
    stuck.is_failing = stuck.is_broken = True
    await looks(watchdog, 0, 10)
    assert readiness.reason is not None
    stuck.is_failing = False
    await looks(watchdog, 10, 1)
    assert readiness.reason is None


async def test_only_one_trial_waits_behind_a_run_that_hangs_and_it_ends_with_the_watchdog(
    stuck: Stuck, readiness: Readiness, metrics: Metrics
) -> None:
    watchdog = Watchdog(stuck, stuck.attempt, readiness, patience=0.02, metrics=metrics)
    stuck.is_failing, stuck.seconds = True, 7.0
    stuck.gate.clear()
    watching = asyncio.create_task(watchdog.run())
    await asyncio.sleep(0.3)
    assert readiness.reason == "The model has stopped answering."
    watching.cancel()
    await asyncio.wait({watching})
    await asyncio.sleep(0)
    assert (stuck.trials, stuck.cancelled) == (1, 1)


def test_a_model_that_hangs_turns_readiness_off_until_it_answers() -> None:
    model = FakeModel()
    settings = Settings(stall_timeout=0.1, request_timeout=0.4)
    with TestClient(create_app(settings, model), raise_server_exceptions=False) as client:
        model.gate.clear()
        assert post(client) == 504
        refused = client.get("/readyz")
        assert (refused.status_code, refused.json()["message"]) == (503, "The model has stopped answering.")
        assert client.get("/healthz").status_code == 200
        model.gate.set()
        for _ in range(100):
            if client.get("/readyz").status_code == 200:
                break
            client.portal.call(__import__("asyncio").sleep, 0.02)  # type: ignore[union-attr]
        assert client.get("/readyz").status_code == 200


def post(client: TestClient, winner: int = 0) -> int:
    return client.post("/predict", content=picture(winner), headers={"Content-Type": "image/png"}).status_code


def is_ready(client: TestClient) -> bool:
    return client.get("/readyz").status_code == 200


POISON = 25
"""The picture with 250 as its first pixel."""


def classifier_that_fails(when: Callable[[bool], bool]) -> FakeModel:
    model = FakeModel()
    model.failing = lambda images: when(bool((images[:, 0, 0, 0] == 10 * POISON).any()))
    return model


def detector_that_fails(when: Callable[[bool], bool]) -> FakeDetector:
    detector = FakeDetector()

    def spoil(outputs: Outputs) -> None:
        if when(outputs["scores"][0] > 0.5):  # something is seen in red alone
            raise RuntimeError("out of memory")

    detector.spoil = spoil
    return detector


@pytest.mark.parametrize("failing", [classifier_that_fails, detector_that_fails])
@pytest.mark.alone
def test_one_picture_again_and_again_leaves_readiness_on_and_trials_are_no_predictions(failing: Any) -> None:
    app = create_app(Settings(stall_timeout=0.2), failing(lambda is_poison: is_poison))
    with TestClient(app, raise_server_exceptions=False) as client:
        begin = time.monotonic()
        while time.monotonic() < begin + 1:
            assert post(client, POISON) == 500
            assert is_ready(client)
        runs = app.service.metrics.registry.get_sample_value("evenkeel_batch_size_count")
        failed = app.service.metrics.registry.get_sample_value("evenkeel_failed_batches_total")
        assert runs and failed and runs > failed  # there were trials, and they went well
        text = client.get("/metrics").text
        assert "evenkeel_alpha_count 0.0" in text
        assert 'evenkeel_requests_total{route="/predict",status="200"}' not in text


@pytest.mark.parametrize("failing", [classifier_that_fails, detector_that_fails])
def test_a_model_that_fails_on_everything_is_not_ready_until_it_works_again(failing: Any) -> None:
    broken = [True]
    app = create_app(Settings(stall_timeout=0.1), failing(lambda _: bool(broken)))
    with TestClient(app, raise_server_exceptions=False) as client:
        assert post(client) == 500
        wait_until(lambda: not is_ready(client))
        broken.clear()
        wait_until(lambda: is_ready(client))
        assert app.service.metrics.registry.get_sample_value("evenkeel_stalls_total") == 1
