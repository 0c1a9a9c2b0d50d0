"""What the tests from end to end share: a trained run, its bundle, and services on it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from tests import plain_http
from tests.deploy.prometheus import free_port, running, wait_until
from tests.end_to_end.http_predictions import TestSplit, read_test_split
from tests.provider import TESTED_PROVIDER
from trainer.__main__ import app as trainer


def command(app: Typer, *words: str, **environment: str) -> str:
    """Give a command as a user would, but in this process, which has loaded all of it; return what it says."""
    done = CliRunner(env=environment).invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the embedded digits for a few epochs, in a process of its own."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    train = [sys.executable, "-m", "trainer", "train", "digits_lt", "--set", "schedule.epochs=6", "--device", "cpu"]
    done = subprocess.run([*train, "--output", folder], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def split(run: Path) -> TestSplit:
    return read_test_split(run)


@pytest.fixture(scope="session")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the run."""
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    command(trainer, "export", str(run), "--output", str(folder), "--no-fp16")
    return folder


@contextmanager
def serving(bundle: Path, log: Path, **settings: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Serve a bundle in a process of its own, until the end of the block; yields its address and the process."""
    port = free_port()
    serve = [sys.executable, "-m", "service", "serve", str(bundle), "--port", str(port), "--provider", TESTED_PROVIDER]
    environment = {**os.environ, **{f"EVENKEEL_{name.upper()}": value for name, value in settings.items()}}
    with running(serve, log, env=environment) as process:
        address = f"http://127.0.0.1:{port}"
        wait_until(
            lambda: process.poll() is not None or plain_http.get(f"{address}/readyz").status_code == 200,
            "the service is ready",
            seconds=60,
        )
        assert process.poll() is None, log.read_text()
        yield address, process


@pytest.fixture(scope="session")
def url(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(bundle, tmp_path_factory.mktemp("serving") / "service.log") as (address, _):
        yield address
