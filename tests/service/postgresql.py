"""A PostgreSQL server of our own: a cluster in a folder of the test's, on a free port, stopped at the end."""

import os
import pwd
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

REQUIRED = "EVENKEEL_REQUIRE_POSTGRESQL"
_DEBIAN = Path("/usr/lib/postgresql")


def program(name: str) -> Path:
    """Return the path of a program of the server; without it skip, or fail where it is required."""
    found = shutil.which(name)
    if found is None:
        versions = sorted(_DEBIAN.glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
        found = str(versions[-1]) if versions else None
    if found is None:
        missing = f"PostgreSQL's {name} is not installed (on Debian and Ubuntu: apt install postgresql)"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{REQUIRED} is set, and {missing}")
        pytest.skip(missing)
    return Path(found)


class PostgreSql:
    """A cluster that can be stopped and started; its superuser is `evenkeel`, without a password, on the loopback."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self._data = folder / "data"
        self._log = folder / "log"
        self._owner = _unprivileged()
        folder.mkdir(mode=0o755)
        if self._owner is not None:
            shutil.chown(folder, self._owner)
        self._run("initdb", "-D", self._data, "-U", "evenkeel", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")

    def url(self, database: str = "postgres") -> str:
        """Return the address of a database."""
        return f"postgresql://evenkeel@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """Make an empty database and return its address."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "evenkeel", database)
        return self.url(database)

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
        self._run("pg_ctl", "-D", self._data, "-l", self._log, "-w", "-t", "60", "-o", options, "start")

    def stop(self) -> None:
        """Stop at once, as after a loss of power."""
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all of its processes for the length of a block; the kernel goes on to acknowledge what is sent to them.

        For ten seconds at most: then who would wait without end fails.
        """
        processes = self._processes()
        thaw = threading.Timer(10, _signal, (processes, signal.SIGCONT))
        try:
            thaw.start()
            _signal(processes, signal.SIGSTOP)
            yield
        finally:
            thaw.cancel()
            _signal(processes, signal.SIGCONT)

    def _processes(self) -> list[int]:
        """Return the server's processes, first that which starts the others."""
        first = int((self._data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, children)]

    def _run(self, name: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [program(name), *arguments],
            user=self._owner,
            cwd="/",
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if name != "pg_ctl" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, (name, done.stdout, self._log.read_text() if self._log.exists() else "")


def _signal(processes: Sequence[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _unprivileged() -> str | None:
    """Return whom to run the server as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


@contextmanager
def running(folder: Path, port: int) -> Iterator[PostgreSql]:
    """Run a server for the length of a block."""
    program("initdb")
    server = PostgreSql(folder, port)
    server.start()
    try:
        yield server
    finally:
        server.stop()
