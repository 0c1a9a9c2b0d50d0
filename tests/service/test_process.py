"""The service as its operators know it: a process with a port and signals."""

import errno
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.listening import CannotListen, bind
from tests.provider import TESTED_PROVIDER
from tests.service.fakes import picture
from tests.service.tiny_model import write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny").path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """A running service; `module` is the program, in place of the service itself one that serves as it does."""

    def __init__(self, bundle: Path, log: Path, module: str = "service", **settings: str) -> None:
        self.port = free_port()
        self.log = log
        environment = os.environ | {f"EVENKEEL_{name.upper()}": value for name, value in settings.items()}
        command = [sys.executable, "-m", module, "serve", str(bundle)]
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), "--provider", TESTED_PROVIDER],
                env=environment,
                stderr=sink,
            )

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.get("/readyz")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def predict(self, connection: http.client.HTTPConnection | None = None) -> tuple[int, Any]:
        opened = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        opened.request("POST", "/predict?alpha=1.5", picture(1), {"Content-Type": "image/png"})
        response = opened.getresponse()
        content = json.loads(response.read())
        if connection is None:
            opened.close()
        return response.status, content


@contextmanager
def running(bundle: Path, log: Path, module: str = "service", **settings: str) -> Iterator[Process]:
    service = Process(bundle, log, module, **settings)
    try:
        service.wait_until_ready()
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
        service.process.wait()


def test_sigterm_turns_readiness_off_answers_what_comes_and_exits_with_0(bundle: Path, tmp_path: Path) -> None:
    with running(bundle, tmp_path / "log", drain_delay="1.0") as service:
        assert service.predict()[0] == 200
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        status, content = service.get("/readyz")
        assert (status, json.loads(content)["code"]) == (503, "not_ready")
        assert service.get("/healthz")[0] == 200
        assert service.predict()[0] == 200
        assert service.process.wait(20) == 0


def test_sigterm_under_load_loses_no_request(bundle: Path, tmp_path: Path) -> None:
    statuses: list[int] = []
    lost: list[str] = []

    def client(service: Process) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
        while True:
            try:
                connection.connect()
            except OSError:
                return  # the door is closed: nothing was accepted, so nothing is lost
            try:
                status, content = service.predict(connection)
            except OSError as error:
                if service.process.poll() is None and not stopping.is_set():
                    lost.append(repr(error))
                return
            finally:
                connection.close()
            statuses.append(status)
            assert content["images"][0]["alpha"] == 1.5

    stopping = threading.Event()
    with running(bundle, tmp_path / "log", drain_delay="0.3") as service:
        threads = [threading.Thread(target=client, args=(service,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.25)
        stopping.set()  # from here on a connection may meet the closing door before it is accepted
        for thread in threads:
            thread.join(30)
        assert service.process.wait(20) == 0
    assert len(statuses) > 20
    assert set(statuses) == {200}
    assert lost == []


def test_a_request_in_flight_is_answered_after_sigterm(bundle: Path, tmp_path: Path) -> None:
    body = picture(1)
    with running(bundle, tmp_path / "log", drain_delay="0") as service:
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as client:
            head = (
                f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            client.sendall(head.encode() + body[:20])
            time.sleep(0.2)
            service.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            client.sendall(body[20:])
            answer = b""
            while chunk := client.recv(65536):
                answer += chunk
            assert answer.startswith(b"HTTP/1.1 200")
        assert service.process.wait(20) == 0


def test_sigint_stops_at_once_with_0(bundle: Path, tmp_path: Path) -> None:
    with running(bundle, tmp_path / "log", drain_delay="60") as service:
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(20) == 0


def test_clients_that_leave_cost_nothing_and_hang_nobody(bundle: Path, tmp_path: Path) -> None:
    body = picture(1)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    with running(bundle, tmp_path / "log") as service:
        for cut in (10, len(head) + 5, len(head) + len(body)):
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", service.port)) as client:
                    client.sendall((head.encode() + body)[:cut])
        time.sleep(0.2)
        assert service.predict()[0] == 200
        assert b"evenkeel_images_in_flight 0.0" in service.get("/metrics")[1]
        assert "Traceback" not in service.log.read_text()


SERVE = """
import sys
from threadpoolctl import threadpool_info
from service import __main__

def threads() -> str:
    return "+".join(str(one["num_threads"]) for one in threadpool_info() if one["user_api"] == "blas") or "none"

before = threads()
__main__._run = lambda *_: print(before, threads())
sys.argv[1:] = ["serve", sys.argv[1], "--port", "0"]
__main__.main()
"""


def test_linear_algebra_leaves_the_other_cores_alone(bundle: Path, tmp_path: Path) -> None:
    wanted = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    wanted["EVENKEEL_DATABASE_URL"] = f"sqlite:///{tmp_path / 'db'}"
    command = [sys.executable, "-c", SERVE, str(bundle)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=wanted)
    before, serving = said.stdout.split()
    if before != "2":
        pytest.skip("needs two cores, and OpenBLAS or MKL")
    assert serving == "1"


def start(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    wanted = {"port": "0"} | settings  # whatever else listens on this machine
    environment = os.environ | {f"EVENKEEL_{name.upper()}": value for name, value in wanted.items()}
    command = [sys.executable, "-m", "service", "serve", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_damaged_bundle_is_refused_with_the_file_and_the_remedy(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny").path
    (bundle / "model.onnx").write_bytes(b"damaged")
    result = start(str(bundle))
    assert result.returncode == 2
    assert "evenkeel does not start: " in result.stderr
    assert "model.onnx has SHA-256" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch_size": "0"}, "EVENKEEL_MAX_BATCH_SIZE: Input should be greater than or equal to 1"),
        ({"provider": "tpu"}, "EVENKEEL_PROVIDER: Input should be 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(bundle: Path, settings: dict[str, str], message: str) -> None:
    result = start(str(bundle), **settings)
    assert result.returncode == 2
    assert message in result.stderr


def test_cuda_without_a_gpu_is_refused_with_the_reason(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = start(str(bundle), "--provider", "cuda")
    assert result.returncode == 2
    assert "the provider cuda was asked for, and" in result.stderr
    assert "or ask for cpu" in result.stderr


def refusal(*arguments: str) -> str:
    result = start(*arguments)
    assert result.returncode == 2, result.stderr
    line, end = result.stderr.split("\n")
    assert end == ""
    return line.partition("evenkeel does not start: ")[2]


def test_refusals_are_lines_of_the_log(bundle: Path, tmp_path: Path) -> None:
    line = json.loads(start(str(tmp_path / "nowhere"), log_format="json").stderr)
    assert line["level"] == "error"
    assert line["message"].startswith(f"evenkeel does not start: {tmp_path}/nowhere is no folder")


def test_a_variable_that_is_no_setting_is_warned_of_and_nothing_more(bundle: Path, tmp_path: Path) -> None:
    with running(bundle, tmp_path / "log", queue_size="7") as service:
        warning = "EVENKEEL_QUEUE_SIZE is no setting, and is ignored; is EVENKEEL_MAX_QUEUE_SIZE meant?"
        assert warning in service.log.read_text()


LOADING = """
import sys, time
from service import __main__ as program

load, program.early.hung_up = program.load_bundle, False

def slowly(bundle, settings, version):
    if not version:
        print("loading", file=sys.stderr, flush=True)
        until = time.monotonic() + 60
        while time.monotonic() < until and not program.early.hung_up:
            time.sleep(0.01)
    return load(bundle, settings, version)

program.load_bundle = slowly
sys.argv[1:] = ["serve", sys.argv[1], "--provider", "cpu", "--port", "0"]
program.main()
"""

IMPORTING = """
import sys, time
print("importing", file=sys.stderr, flush=True)
time.sleep(60)
"""


@contextmanager
def starting(command: list[str], log: Path, sign: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process, and wait until its log has a sign of how far it is."""
    with log.open("wb") as sink:
        process = subprocess.Popen([sys.executable, *command], stderr=sink)
    try:
        wait_for(log, sign)
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(log: Path, sign: str) -> None:
    deadline = time.monotonic() + 30
    while sign not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_bundle_is_loaded_ends_the_process_with_a_line(
    bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with starting(["-c", LOADING, str(bundle)], tmp_path / "log", "loading") as process:
        process.send_signal(number)
        assert process.wait(10) == 0
    assert f"{number.name} came before the service had started: it ends" in (tmp_path / "log").read_text()


def test_a_signal_while_modules_are_imported_ends_the_process_with_a_line(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "typer.py").write_text(IMPORTING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with starting(["-m", "service", "serve", str(bundle)], tmp_path / "log", "importing") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert "SIGTERM came before the service had started: it ends" in (tmp_path / "log").read_text()


def test_a_signal_while_the_database_is_waited_for_ends_the_process_with_a_line(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENKEEL_DRAIN_DELAY", "60")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("EVENKEEL_DATABASE_URL", f"postgresql://evenkeel@127.0.0.1:{silent.getsockname()[1]}/x")
        command = ["-m", "service", "serve", str(bundle), "--port", "0", "--provider", "cpu"]
        with starting(command, tmp_path / "log", "Waiting for application startup") as process:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    assert "SIGTERM came before the service had started: it ends" in (tmp_path / "log").read_text()


def test_a_hangup_while_the_bundle_is_loaded_has_it_read_again_once_it_serves(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENKEEL_DATABASE_URL", f"sqlite:///{tmp_path / 'kept.sqlite'}")
    with starting(["-c", LOADING, str(bundle)], tmp_path / "log", "loading") as process:
        process.send_signal(signal.SIGHUP)
        wait_for(tmp_path / "log", "the bundle is still")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_the_first_process_of_a_container_hears_sigterm_while_it_starts(bundle: Path, tmp_path: Path) -> None:
    first = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*first, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a namespace of processes is not to be had here")
    script = f"import os; os.execvp({first[0]!r}, {[*first, sys.executable, '-c', LOADING, str(bundle)]!r})"
    with starting(["-c", script], tmp_path / "log", "loading") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        os.kill(int(children), signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_port_in_use_is_refused_before_the_bundle_is_read() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        expected = f"port {port} on 127.0.0.1 is in use; give --port or set EVENKEEL_PORT"
        assert refusal("nowhere", "--port", str(port)) == expected


def test_a_port_that_another_listens_on_meanwhile_is_refused(bundle: Path) -> None:
    script = """
import socket, sys
from service import __main__ as program

rival, load = socket.socket(), program.load_bundle
rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
rival.bind(("127.0.0.1", 0))
program.load_bundle = lambda *arguments: rival.listen() or load(*arguments)
sys.argv[1:] = ["serve", sys.argv[1], "--provider", "cpu", "--port", str(rival.getsockname()[1])]
program.main()
"""
    command = [sys.executable, "-c", script, str(bundle)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2, result.stderr
    assert "is in use; give --port or set EVENKEEL_PORT" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "two..dots"])
def test_an_address_that_is_not_ours_is_refused(host: str) -> None:
    reason = refusal("nowhere", "--host", host)
    assert reason.startswith(f"{host} cannot be listened on: ")
    assert reason.endswith("; give --host or set EVENKEEL_HOST")


def test_an_empty_host_is_the_one_of_the_environment_and_not_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENKEEL_HOST", "192.0.2.1")
    assert refusal("nowhere", "--host", "").startswith("192.0.2.1 cannot be listened on: ")


def test_of_a_hosts_addresses_those_of_this_machine_are_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("192.0.2.1", "127.0.0.1")]
    monkeypatch.setattr("service.listening.socket.getaddrinfo", lambda *_, **__: found)
    (bound,) = bind("a-host", 0)
    assert bound.getsockname()[0] == "127.0.0.1"
    bound.close()


def test_a_port_that_is_not_allowed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def bound(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("service.listening.socket.socket.bind", bound)
    with pytest.raises(CannotListen, match=r"port 80 on 127\.0\.0\.1 is not allowed to this user; give --port"):
        bind("127.0.0.1", 80)


def test_the_log_names_the_port_that_the_system_chose(bundle: Path) -> None:
    command = [sys.executable, "-m", "service", "serve", str(bundle), "--port", "0", "--provider", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = next(line for line in process.stderr if "Uvicorn running on" in line)
            port = int(line.split("http://127.0.0.1:")[1].split()[0])
            with socket.create_connection(("127.0.0.1", port), timeout=10):
                pass
        finally:
            process.kill()


def test_a_bundle_that_is_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert "loop is a" in refusal(str(tmp_path / "loop"))
