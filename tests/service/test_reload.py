"""A new bundle while requests go on: the reloader by itself, the app with a fake model, the process with SIGHUP."""

import asyncio
import fcntl
import gc
import http.client
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import service.loading
from service.app import create_app
from service.bundle import Bundle, BundleError, InputSpec
from service.detector import Detector
from service.exhibits import Exhibits
from service.loading import load_bundle
from service.metrics import Metrics
from service.model import Model
from service.reload import Loaded, Reloader, signature
from service.settings import Settings
from tests.service.fakes import FakeModel, make_manifest, picture
from tests.service.test_process import Process, running
from tests.service.tiny_model import tiny_parity, write_tiny_bundle


class OtherModel(FakeModel):
    """Looks at larger pictures."""

    def __init__(self) -> None:
        super().__init__()
        spec = InputSpec(height=16, width=16, resize="exact", mean=(0, 0, 0), std=(1, 1, 1))
        self.manifest = make_manifest(name="other", input=spec)


def outcomes(metrics: Metrics) -> dict[str, float | None]:
    names = ("swapped", "refused", "unchanged")
    return {name: metrics.registry.get_sample_value("evenkeel_reloads_total", {"outcome": name}) for name in names}


async def test_requests_during_a_reload_make_one_more(caplog: Any) -> None:
    gate, metrics, model = threading.Event(), Metrics(), OtherModel()
    loads: list[str] = []
    swapped: list[Loaded] = []

    def load(version: str) -> Loaded | None:
        gate.wait(10)
        loads.append(version)
        return Loaded(model, Exhibits()) if version == "old" else None

    reloader = Reloader(load, swapped.append, version="old", metrics=metrics)
    for _ in range(5):
        reloader.request()
        await asyncio.sleep(0)
    gate.set()
    await asyncio.to_thread(wait_until, lambda: outcomes(metrics)["unchanged"] == 1)
    assert loads == ["old", model.manifest.version]
    assert outcomes(metrics) == {"swapped": 1, "refused": 0, "unchanged": 1}
    assert [loaded.model for loaded in swapped] == [model]


async def test_whatever_goes_wrong_the_old_one_stays_and_the_log_says_why(caplog: Any) -> None:
    def load(version: str) -> Loaded | None:
        raise BundleError("model.onnx has SHA-256 0, and the manifest says 1")

    metrics = Metrics()
    reloader = Reloader(load, lambda loaded: pytest.fail("swapped"), version="old", metrics=metrics)
    reloader.request()
    await asyncio.to_thread(wait_until, lambda: outcomes(metrics)["refused"] == 1)
    assert "the bundle is refused, and old stays: model.onnx has SHA-256 0" in caplog.text


async def test_a_change_is_taken_over_once_it_has_settled(tmp_path: Path) -> None:
    bundle, loads = tmp_path / "bundle", []

    def load(version: str) -> Loaded | None:
        loads.append(signature(bundle))
        return None

    async def settle() -> None:
        await asyncio.sleep(0.25)

    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}")
    reloader = Reloader(load, lambda loaded: None, version="old", metrics=Metrics())
    watching = asyncio.create_task(reloader.watch(bundle, 0.05))
    await settle()
    assert loads == []
    (bundle / "manifest.json").write_text('{"version": 1}')
    await settle()
    assert len(loads) == 1
    shutil.rmtree(bundle)
    await settle()
    assert len(loads) == 1
    watching.cancel()


class Noting(Reloader):
    """Notes after how many looks at the bundle a reload is requested."""

    def __init__(self, looks: list[str]) -> None:
        super().__init__(lambda version: None, lambda loaded: None, version="old", metrics=Metrics())
        self.looks = looks
        self.requested: list[int] = []

    def request(self) -> None:
        self.requested.append(len(self.looks))


async def test_a_change_that_goes_on_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is a bundle that is copied in place: at every look there is more of it, and once it is not there."""
    looks: list[str] = []
    coming = iter(["old", "old", "a piece", "two pieces", "", "a piece", "all", "all"])

    def look(bundle: Path) -> str | None:
        looks.append(next(coming, "all"))
        return looks[-1] or None

    monkeypatch.setattr("service.reload.signature", look)
    reloader = Noting(looks)
    watching = asyncio.create_task(reloader.watch(tmp_path, 0.001))
    await asyncio.to_thread(wait_until, lambda: len(looks) >= 12)
    watching.cancel()
    assert reloader.requested == [8]


def test_what_is_written_over_or_mended_is_another_whatever_its_size_and_time(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"old")
    seen = [signature(tmp_path)]

    def look() -> None:
        seen.append(signature(tmp_path))
        time.sleep(0.02)  # the system's own clock for files ticks a hundred times a second or more

    time.sleep(0.02)
    before = model.stat()
    model.write_bytes(b"new")
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    look()
    model.chmod(0o400)
    look()
    shutil.copy2(model, tmp_path / "next")
    (tmp_path / "next").replace(model)
    look()
    assert len(set(seen)) == len(seen)
    model.read_bytes()
    assert signature(tmp_path) == seen[-1]


class Refusing:
    """Refuses a bundle so many times, each for its reason."""

    def __init__(self, *reasons: str) -> None:
        self.reasons = list(reasons)
        self.model = OtherModel()
        self.loads = 0

    def __call__(self, version: str) -> Loaded | None:
        self.loads += 1
        if self.reasons:
            raise BundleError(self.reasons.pop(0))
        return Loaded(self.model, Exhibits())


async def change(bundle: Path) -> None:
    """Have something change after the watch has begun."""
    await asyncio.sleep(0.1)
    (bundle / "manifest.json").write_text("{}")


async def test_a_refused_bundle_is_tried_again_until_it_is_taken_and_the_log_says_each_reason_once(
    tmp_path: Path, caplog: Any
) -> None:
    load, metrics = Refusing("no memory", "no memory", "no device"), Metrics()
    swapped: list[Loaded] = []
    reloader = Reloader(load, swapped.append, version="old", metrics=metrics)
    watching = asyncio.create_task(reloader.watch(tmp_path, 0.02))
    await change(tmp_path)
    await asyncio.to_thread(wait_until, lambda: outcomes(metrics)["swapped"] == 1)
    assert outcomes(metrics) == {"swapped": 1, "refused": 3, "unchanged": 0}
    assert [caplog.text.count(reason) for reason in ("no memory", "no device")] == [1, 1]
    await asyncio.sleep(0.5)
    assert load.loads == 4  # what is taken is not tried again
    watching.cancel()


async def test_whoever_asks_for_a_reload_is_told_why_not_though_the_log_has_it_already(
    tmp_path: Path, caplog: Any
) -> None:
    metrics = Metrics()
    reloader = Reloader(Refusing("no memory", "no memory"), lambda _: None, version="old", metrics=metrics)
    for _ in range(2):
        reloader.request()
        await asyncio.to_thread(wait_until, lambda: reloader._task is None)
    assert outcomes(metrics)["refused"] == 2
    assert caplog.text.count("no memory") == 2


async def test_the_pauses_between_tries_grow_up_to_a_bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load = Refusing(*["no memory"] * 100)
    watching = asyncio.create_task(
        Reloader(load, lambda _: None, version="old", metrics=Metrics()).watch(tmp_path, 0.05)
    )
    await change(tmp_path)
    await asyncio.sleep(1.2)
    assert 2 <= load.loads <= 6  # 0.05 s, 0.1 s, 0.2 s and so on, and not twenty times
    monkeypatch.setattr("service.reload._LONGEST_PAUSE", 0.05)
    before = load.loads
    await asyncio.to_thread(wait_until, lambda: load.loads >= before + 10)
    watching.cancel()


def test_a_bundle_that_changes_while_it_is_loaded_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was loaded may be of both: the one that was verified, and the one that came."""
    bundle = write_tiny_bundle(tmp_path / "tiny")
    load, settings = service.loading._load_model, Settings(provider="cpu")
    others = [tiny_parity(5)]

    def change(intact: Bundle, settings: Settings) -> Model | Detector:
        while others:
            write_tiny_bundle(tmp_path / "tiny", parity=others.pop())
        return load(intact, settings)

    monkeypatch.setattr("service.loading._load_model", change)
    with pytest.raises(BundleError, match="was changed while it was loaded"):
        load_bundle(bundle.path, settings, "")
    loaded = load_bundle(bundle.path, settings, "")
    assert loaded and loaded.model.manifest.version != bundle.manifest.version
    assert load_bundle(bundle.path, settings, loaded.model.manifest.version) is None


def test_requests_under_way_end_with_the_model_that_they_began_with() -> None:
    old, new = FakeModel(), OtherModel()
    app: Any = create_app(Settings(), old, load=lambda version: Loaded(new, Exhibits()))

    def predict(client: TestClient) -> Any:
        return client.post("/predict?alpha=0", content=picture(2), headers={"Content-Type": "image/png"}).json()

    with TestClient(app) as client:
        old.gate.clear()
        answers: list[Any] = []
        waiting = [threading.Thread(target=lambda: answers.append(predict(client))) for _ in range(3)]
        for thread in waiting:
            thread.start()
        in_flight = app.service.metrics.registry.get_sample_value
        wait_until(lambda: in_flight("evenkeel_images_in_flight") == 3)
        client.portal.call(app.reloader.request)  # type: ignore[union-attr]
        wait_until(lambda: client.get("/model").json()["name"] == "other")
        late = threading.Thread(target=lambda: answers.append(predict(client)))
        late.start()
        old.gate.set()
        for thread in (*waiting, late):
            thread.join(20)
        assert sorted(answer["model"]["name"] for answer in answers) == ["other", "tiny", "tiny", "tiny"]
        assert all(answer["images"][0]["predictions"][0]["index"] == 2 for answer in answers)
        assert client.get("/v2/models/other").json()["inputs"][0]["shape"] == [-1, 16, 16, 3]
        assert 'evenkeel_model_info{name="other"' in client.get("/metrics").text


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def served_version(service: Process) -> str:
    version: str = service.predict()[1]["model"]["version"]
    return version


def test_a_model_that_was_replaced_goes() -> None:
    first = FakeModel()
    known = weakref.ref(first)
    app = create_app(Settings(), first, Exhibits(), load=lambda version: None)
    del first
    with TestClient(app) as client:
        assert client.post("/predict", content=picture(), headers={"Content-Type": "image/png"}).status_code == 200
        assert app.reloader
        app.reloader._swap(Loaded(OtherModel(), Exhibits()))
        gc.collect()
        assert known() is None


def test_sighup_under_load_loses_no_request_and_a_bad_bundle_is_refused(tmp_path: Path) -> None:
    first = write_tiny_bundle(tmp_path / "tiny").manifest.version
    seen: list[tuple[int, str]] = []
    stop = threading.Event()

    def load(service: Process) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
        while not stop.is_set():
            status, content = service.predict(connection)
            seen.append((status, content["model"]["version"]))
        connection.close()

    with running(tmp_path / "tiny", tmp_path / "log") as service:
        threads = [threading.Thread(target=load, args=(service,), daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(seen) > 10)
        second = write_tiny_bundle(tmp_path / "tiny", parity=tiny_parity(5)).manifest.version
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: seen[-1][1] == second)
        (tmp_path / "tiny" / "model.onnx").write_bytes(b"damaged")
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: b'evenkeel_reloads_total{outcome="refused"} 1.0' in service.get("/metrics")[1])
        assert served_version(service) == second
        assert service.get("/readyz")[0] == 200
        stop.set()
        for thread in threads:
            thread.join(20)
        assert "model.onnx has SHA-256" in service.log.read_text()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(20) == 0
    assert {status for status, _ in seen} == {200}
    assert {version for _, version in seen} == {first, second}


def test_a_watched_link_that_points_elsewhere_is_followed(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "a")
    second = write_tiny_bundle(tmp_path / "b", parity=tiny_parity(5)).manifest.version
    (tmp_path / "current").symlink_to("a")
    with running(tmp_path / "current", tmp_path / "log", watch_bundle="0.1") as service:
        (tmp_path / "next").symlink_to("b")
        (tmp_path / "next").replace(tmp_path / "current")
        wait_until(lambda: served_version(service) == second)


def test_a_watched_bundle_that_was_refused_is_served_once_it_is_mended(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "a")
    second = write_tiny_bundle(tmp_path / "b", parity=tiny_parity(5)).manifest.version
    model, intact = tmp_path / "b" / "model.onnx", (tmp_path / "b" / "model.onnx").read_bytes()
    written = model.stat().st_mtime_ns

    def write(content: bytes) -> None:
        model.write_bytes(content)
        os.utime(model, ns=(written, written))  # as `cp -p` does

    write(bytes(len(intact)))
    (tmp_path / "current").symlink_to("a")
    with running(tmp_path / "current", tmp_path / "log", watch_bundle="0.1") as service:
        (tmp_path / "next").symlink_to("b")
        (tmp_path / "next").replace(tmp_path / "current")
        wait_until(lambda: "the bundle is refused" in service.log.read_text())
        write(intact)
        wait_until(lambda: served_version(service) == second)
        assert service.log.read_text().count("the bundle is refused") <= 2  # what is half written is another reason


def test_closing_the_terminal_ends_the_service(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    master, slave = pty.openpty()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve", str(tmp_path / "tiny"), "--port", "0", "--provider", "cpu"],
            stdin=slave,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no thread of ours is in it
        )
    os.close(slave)
    try:
        wait_until(lambda: "Uvicorn running on" in (tmp_path / "log").read_text(), 60)
        process.send_signal(signal.SIGHUP)  # from elsewhere: the terminal is still there
        wait_until(lambda: "the bundle is still" in (tmp_path / "log").read_text())
        os.close(master)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
