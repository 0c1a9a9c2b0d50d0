"""Servers as processes of their own: started, waited for, measured, stopped."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).parents[2]


class DidNotStart(Exception):
    """A server ended, or was not ready in time; says what it wrote."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    seconds_to_ready: float
    log: Path

    def url(self, path: str = "/predict") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def resident_bytes(self) -> int:
        """Return the resident memory of the process, as Linux counts it."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def processor_seconds(self) -> float:
        """Return the seconds of a core that the process has taken so far, in all its threads."""
        user, system = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")")[1].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def stop_servers_when_terminated() -> None:
    """Have SIGTERM end this process as an error does; else the servers that it runs would outlive it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@contextmanager
def running(
    command: Sequence[str],
    *,
    folder: Path,
    ready: str,
    environment: Mapping[str, str],
    port: int,
    patience: float = 120,
) -> Iterator[Server]:
    """Start a server, wait until `ready` answers with 200, and stop it and its children in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    begin = time.perf_counter()
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=sink, stderr=sink, start_new_session=True
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}{ready}", begin + patience, log)
        yield Server(process, port, time.perf_counter() - begin, log)
    finally:
        _stop(process)


@contextmanager
def evenkeel(
    bundle: Path, folder: Path, *, threads: int | None = None, program: str = "service", **settings: str | float
) -> Iterator[Server]:
    """Serve a bundle with everything on: metrics, limits, envelopes, the recorder on a database of its own."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("state.sqlite*"):
        old.unlink()
    environment = {f"EVENKEEL_{name.upper()}": str(value) for name, value in settings.items()}
    environment["EVENKEEL_DATABASE_URL"] = f"sqlite:///{folder / 'state.sqlite'}"
    command = [sys.executable, "-m", program, "serve", str(bundle), "--port", str(port), "--provider", "cpu"]
    command += ["--threads", str(threads)] if threads else []
    with running(command, folder=folder, ready="/readyz", environment=environment, port=port) as server:
        yield server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetch(url: str, data: bytes | None = None, headers: Mapping[str, str] = {}) -> tuple[int, bytes, Message]:
    """Return status, body and headers of an answer, whatever the status."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, dict(headers)), timeout=60) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def _wait(process: subprocess.Popen[bytes], url: str, until: float, log: Path) -> None:
    while True:
        try:
            if fetch(url)[0] == 200:
                return
        except OSError:
            pass
        if process.poll() is not None or time.perf_counter() > until:
            raise DidNotStart(f"{url} never answered; the server wrote: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.005)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for kind, patience in ((signal.SIGINT, 20), (signal.SIGKILL, 20)):
        try:
            os.killpg(process.pid, kind)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    process.wait()
