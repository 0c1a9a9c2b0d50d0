"""A database and the processes of the service on it, with what an operator and a client do to them."""

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from service.__main__ import cli
from tests import plain_http
from tests.deploy.prometheus import free_port, wait_until
from tests.end_to_end.conftest import command, serving
from tests.service import postgresql

ADMIN = {"Authorization": "Bearer operator"}
PICTURES_A_REQUEST, LABELS_A_REQUEST = 16, 20

Answer = dict[str, Any]


@dataclass
class Stage:
    """The database, and the processes that serve on it; `serve` begins one and returns its address and itself."""

    database: str
    serve: Callable[[], tuple[str, subprocess.Popen[bytes]]]
    addresses: list[str] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def begin(self, processes: int) -> None:
        """Serve in so many processes."""
        while len(self.addresses) < processes:
            address, process = self.serve()
            self.addresses.append(address)
            self.processes.append(process)

    def cli(self, *words: str) -> str:
        return command(cli, *words, EVENKEEL_DATABASE_URL=self.database)

    def predict(self, key: str, pictures: list[bytes], address: str | None = None) -> list[Answer]:
        """Ask for pictures as a client, of one process or of all in turns."""
        answers: list[Answer] = []
        with plain_http.Client(timeout=60, headers=_bearer(key)) as client:
            for number, first in enumerate(range(0, len(pictures), PICTURES_A_REQUEST)):
                part = pictures[first : first + PICTURES_A_REQUEST]
                files = [("image", (f"{row}.png", picture, "image/png")) for row, picture in enumerate(part)]
                base = address or self.addresses[number % len(self.addresses)]
                response = client.post(f"{base}/predict", files=files)
                assert response.status_code == 200, response.text
                answers += response.json()["images"]
        return answers

    def refusal(self, key: str, picture: bytes, alpha: float, address: str) -> httpx.Response:
        """Ask for one picture at an alpha that is not allowed."""
        headers = _bearer(key) | {"Content-Type": "image/png"}
        return plain_http.post(f"{address}/predict?alpha={alpha:g}", content=picture, headers=headers)

    def label(self, key: str, labels: list[dict[str, Any]]) -> int:
        """Send labels to all processes in turns, and return how many were acknowledged.

        Halfway one of two processes is killed; at the end another begins in its place.
        """
        acknowledged, processes = 0, len(self.processes)
        for first in range(0, len(labels), LABELS_A_REQUEST):
            if len(self.addresses) > 1 and first >= len(labels) // 2:
                self.processes.pop(0).kill()
                self.addresses.pop(0)
            part = labels[first : first + LABELS_A_REQUEST]
            address = self.addresses[(first // LABELS_A_REQUEST) % len(self.addresses)]
            response = plain_http.post(f"{address}/feedback", json=part, headers=_bearer(key), timeout=30)
            assert response.status_code == 200, response.text
            assert response.json() == {"accepted": len(part), "refused": []}
            acknowledged += len(part)
        self.begin(processes)
        return acknowledged

    def tradeoff(self, client: str, address: str, **parameters: str) -> dict[str, Any]:
        """Return what a client's labels say of its knobs."""
        route = f"{address}/clients/{client}/tradeoff"
        response = plain_http.get(route, params=parameters, headers=ADMIN, timeout=120)
        assert response.status_code == 200, response.text
        content: dict[str, Any] = response.json()
        return content

    def wait_for_key(self, key: str) -> None:
        """A new key reaches every process within two seconds."""

        def is_known(address: str) -> bool:
            return self.refusal(key, b"", -1e9, address).status_code != 401

        for address in self.addresses:
            wait_until(partial(is_known, address), "the key is known", seconds=2.5)

    def wait_for_alpha(self, key: str, picture: bytes, alpha: float) -> None:
        """A changed policy reaches every process within two seconds."""

        def is_in_use(address: str) -> bool:
            return bool(abs(self.predict(key, [picture], address)[0]["alpha"] - alpha) < 1e-9)

        for address in self.addresses:
            wait_until(partial(is_in_use, address), f"alpha {alpha:g} is in use", seconds=2.5)


@contextmanager
def staged(bundle: Path, folder: Path, database: str) -> Iterator[Stage]:
    """Serve a bundle: in one process on 'sqlite', in two on 'postgresql', with a server of their own."""
    with ExitStack() as stack:
        url = f"sqlite:///{folder / 'evenkeel.sqlite'}"
        if database == "postgresql":
            cluster = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            cluster.chmod(0o755)
            server = stack.enter_context(postgresql.running(cluster / "cluster", free_port()))
            url = server.url()
        settings = {"database_url": url, "admin_key": "operator", "threads": "1", "drain_delay": "0"}
        logs = (folder / f"service{number}.log" for number in count())
        stage = Stage(url, lambda: stack.enter_context(serving(bundle, next(logs), **settings)))
        stage.begin(1 if database == "sqlite" else 2)
        yield stage


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
