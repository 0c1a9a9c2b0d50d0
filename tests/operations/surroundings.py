"""Faults of what the service stands on: a full disk, a damaged bundle, a missing provider, a clock that jumps.

Each is a generator of outcomes; the service is a real process, and its files lie in the folder given.
"""

import asyncio
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.operations.client import metric, request, send
from tests.service.fakes import picture
from tests.service.test_process import Process, running, start
from tests.service.test_reload import wait_until
from tests.service.tiny_model import tiny_parity, write_tiny_bundle

TRIAL = "tests.operations.trial_service"
WRITTEN = "evenkeel_store_written_total"
JUMPS = (3600.0, -86_400.0, 20 * 86_400.0, -3e8, 1e9, 0.0)
"""Seconds by which the clock is off, one after another."""


@contextmanager
def full_disk(service: Process) -> Iterator[None]:
    """Let none of the process's files grow beyond what the database has now: what a write then meets is an error."""
    if sys.platform != "linux":
        raise NotImplementedError("no other system has prlimit")
    limits = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (16_384, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, limits)


async def predicted(service: Process, count: int) -> list[str]:
    """Ask for predictions, one after another; return the statuses."""
    return [str((await send(service.port, request(picture(1)))).status) for _ in range(count)]


async def label(service: Process, identifier: str) -> str:
    """Send the true class of a prediction; return the status."""
    body = json.dumps({"prediction_id": identifier, "label": 1}).encode()
    return str((await send(service.port, request(body, path="/feedback"))).status)


async def on_a_full_disk(service: Process, count: int) -> list[str]:
    """Predict and label while there is no room, and wait until all is written once there is."""
    known = service.predict()[1]["images"][0]["prediction_id"]
    await asyncio.to_thread(wait_until, lambda: metric(service, WRITTEN) > 0)
    before = metric(service, WRITTEN)
    with full_disk(service):
        outcomes = [f"predict {status}" for status in await predicted(service, count)]
        await asyncio.to_thread(wait_until, lambda: metric(service, "evenkeel_store_up") == 0)
        outcomes += [f"feedback {await label(service, known)}"]
        outcomes += [f"predict {status}" for status in await predicted(service, count)]
        assert service.get("/readyz")[0] == 200
    await asyncio.to_thread(wait_until, lambda: metric(service, WRITTEN) - before == 2 * count)
    outcomes += [f"then feedback {await label(service, known)}"]
    assert metric(service, "evenkeel_store_dropped_total") == 0
    return outcomes


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a changed byte in the model": lambda bundle: flipped(bundle / "model.onnx"),
    "a changed byte in the samples": lambda bundle: flipped(bundle / "parity.npz"),
    "a changed byte in the manifest": lambda bundle: flipped(bundle / "manifest.json"),
    "a model cut short": lambda bundle: (bundle / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes()[:99]),
    "an empty manifest": lambda bundle: (bundle / "manifest.json").write_bytes(b""),
    "no model": lambda bundle: (bundle / "model.onnx").unlink(),
    "a file too many": lambda bundle: (bundle / "extra").write_bytes(b"x"),
    "a link out of the folder": lambda bundle: (bundle / "extra").symlink_to("/etc/passwd"),
    "a newer schema": lambda bundle: _edited(bundle / "manifest.json", lambda held: held.update(schema_version=99)),
    "a path out of the folder": lambda bundle: _edited(
        bundle / "manifest.json", lambda held: held["models"][0].update(path="../model.onnx")
    ),
    "no folder": shutil.rmtree,
}


async def reloads_of_damaged_bundles(service: Process, bundle: Path, count: int) -> list[str]:
    """Damage the bundle in every way, have it read again, and ask the old model; return what came of each."""
    outcomes, refused = [], 'evenkeel_reloads_total{outcome="refused"}'
    model = service.predict()[1]["model"]

    def counted(refusals: float) -> bool:
        return metric(service, refused) == refusals

    for number in range(count):
        for damage in DAMAGES.values():
            shutil.rmtree(bundle, ignore_errors=True)
            write_tiny_bundle(bundle, parity=tiny_parity(5 + number % 3))  # a new one, and damaged
            before = metric(service, refused)
            damage(bundle)
            service.process.send_signal(signal.SIGHUP)
            await asyncio.to_thread(wait_until, partial(counted, before + 1))
            status, answer = service.predict()
            outcomes.append(f"refused, old model {status}" if answer["model"] == model else "taken")
    return outcomes


def starts_with_damaged_bundles(folder: Path) -> list[str]:
    """Start on a bundle damaged in every way; return how each ended."""
    outcomes = []
    for damage in DAMAGES.values():
        bundle = folder / "damaged"
        shutil.rmtree(bundle, ignore_errors=True)
        write_tiny_bundle(bundle)
        damage(bundle)
        outcomes.append(_refusal(str(bundle), "--provider", "cpu"))
    return outcomes


def starts_without_the_provider(bundle: Path) -> list[str]:
    """Start on a GPU that is not there, or not to be seen."""
    with patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):
        return [_refusal(str(bundle), "--provider", "cuda")]


def _refusal(*arguments: str) -> str:
    result = start(*arguments, "--port", "0")
    lines = result.stderr.splitlines()
    return f"exit {result.returncode}, {len(lines)} line" if "does not start" in lines[-1] else result.stderr


async def with_a_jumping_clock(bundle: Path, folder: Path, count: int) -> list[str]:
    """Serve while the clock jumps; return the statuses of predictions and of labels for those made before a jump."""
    clock, outcomes = folder / "clock", []
    clock.write_text("0")
    settings = {"trial_clock": str(clock), "database_url": f"sqlite:///{folder / 'clock.sqlite'}"}
    with running(bundle, folder / "clock.log", TRIAL, **settings) as service:
        for jump in JUMPS:
            known = service.predict()[1]["images"][0]["prediction_id"]
            following = folder / "clock.next"
            following.write_text(str(jump))
            following.replace(clock)
            outcomes += [f"predict {status}" for status in await predicted(service, count)]
            outcomes.append(f"feedback {await label(service, known)}")
            assert service.get("/readyz")[0] == 200
        service.process.send_signal(signal.SIGTERM)
        outcomes.append(f"exit {await asyncio.to_thread(service.process.wait, 20)}")
        assert "Traceback" not in service.log.read_text()
    return outcomes
