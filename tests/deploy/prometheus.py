"""A Prometheus server of our own: started on a free port and in a folder of the test's, and stopped by it."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import plain_http

REQUIRED = "EVENKEEL_REQUIRE_PROMETHEUS"


def binary(name: str) -> str:
    """Return the path of `prometheus` or `promtool`; without it skip, or fail where they are required."""
    path = shutil.which(name)
    if path is None:
        missing = f"{name} is not installed (on Debian and Ubuntu: apt install prometheus)"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{REQUIRED} is set, and {missing}")
        pytest.skip(missing)
    return path


def promtool(*arguments: str) -> None:
    """Run promtool; whatever it objects to fails the test."""
    result = subprocess.run([binary("promtool"), *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 30.0) -> None:
    """Poll until `condition` holds; a connection refused means not yet."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail(f"waited {seconds:g} s in vain: {what}")


@contextmanager
def running(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process for the length of a block; end it, and it alone, at the end."""
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=20)


@dataclass(frozen=True)
class Prometheus:
    """What a test asks a running server."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """Return the `data` of an answer of the HTTP API."""
        answer = plain_http.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10).json()
        assert answer["status"] == "success", f"{path} {parameters}: {answer}"
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an expression yields now."""
        series: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return series

    def firing(self, *severities: str) -> set[str]:
        """Return the names of the alerts that fire, of some severities or of all."""
        labels = [alert["labels"] for alert in self.get("alerts")["alerts"] if alert["state"] == "firing"]
        return {each["alertname"] for each in labels if not severities or each["severity"] in severities}

    def health_of_rules(self) -> dict[str, str]:
        """Return for each rule whether its last evaluation went well: 'ok', 'err' or 'unknown'."""
        return {rule["name"]: rule["health"] for group in self.get("rules")["groups"] for rule in group["rules"]}

    def health_of_targets(self, job: str) -> list[str]:
        """Return 'up', 'down' or 'unknown' for each target of a job."""
        targets = self.get("targets")["activeTargets"]
        return [target["health"] for target in targets if target["labels"]["job"] == job]


@contextmanager
def running_prometheus(config: Path, folder: Path) -> Iterator[Prometheus]:
    """Run a server with this configuration."""
    port = free_port()
    server = Prometheus(f"http://127.0.0.1:{port}")
    command = [
        binary("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    log = folder / "prometheus.log"
    with running(command, log) as process:
        wait_until(
            lambda: process.poll() is not None or plain_http.get(f"{server.url}/-/ready").is_success,
            "Prometheus is ready",
        )
        assert process.poll() is None, log.read_text()
        yield server
