"""A database and the processes of the service on it, with what an operator and a client do to them."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.deploy.prometheus import free_port, wait_until
from tests.end_to_end.conftest import command, serving
from tests.service import postgresql

ADMIN = {"Authorization": "Bearer operator"}
PICTURES_A_REQUEST, LABELS_A_REQUEST = 16, 20

Answer = dict[str, Any]


@dataclass
class Stage:
    """The database, and the processes that serve on it."""

    database: str
    addresses: list[str] = field(default_factory=list)
    processes: list[Any] = field(default_factory=list)

    def cli(self, *words: str) -> str:
        return command("service", *words, EVENKEEL_DATABASE_URL=self.database)

    def predict(self, key: str, pictures: list[bytes], address: str | None = None) -> list[Answer]:
        """Ask for pictures as a client, of one process or of all in turns."""
        answers: list[Answer] = []
        with httpx.Client(timeout=60, headers=_bearer(key)) as client:
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
        return httpx.post(f"{address}/predict?alpha={alpha:g}", content=picture, headers=headers)

    def label(self, key: str, labels: list[dict[str, Any]]) -> int:
        """Send labels, of all processes in turns; halfway one of two is killed. Return how many were acknowledged."""
        acknowledged = 0
        for first in range(0, len(labels), LABELS_A_REQUEST):
            if len(self.addresses) > 1 and first >= len(labels) // 2:
                self.processes[0].kill()
                self.addresses.pop(0)
            part = labels[first : first + LABELS_A_REQUEST]
            address = self.addresses[(first // LABELS_A_REQUEST) % len(self.addresses)]
            response = httpx.post(f"{address}/feedback", json=part, headers=_bearer(key), timeout=30)
            assert response.status_code == 200, response.text
            assert response.json() == {"accepted": len(part), "refused": []}
            acknowledged += len(part)
        return acknowledged

    def tradeoff(self, client: str, **parameters: str) -> dict[str, Any]:
        """Return what a client's labels say of its knobs."""
        address = f"{self.addresses[0]}/clients/{client}/tradeoff"
        response = httpx.get(address, params=parameters, headers=ADMIN, timeout=120)
        assert response.status_code == 200, response.text
        content: dict[str, Any] = response.json()
        return content

    def wait_for_key(self, key: str) -> None:
        """A new key reaches every process within two seconds."""
        for address in self.addresses:
            wait_until(
                lambda address=address: self.refusal(key, b"", -1e9, address).status_code != 401,
                "the key is known",
                seconds=2.5,
            )

    def wait_for_alpha(self, key: str, picture: bytes, alpha: float) -> None:
        """A changed policy reaches every process within two seconds."""
        for address in self.addresses:
            wait_until(
                lambda address=address: abs(self.predict(key, [picture], address)[0]["alpha"] - alpha) < 1e-9,
                f"alpha {alpha:g} is in use",
                seconds=2.5,
            )


@contextmanager
def staged(bundle: Path, folder: Path, database: str) -> Iterator[Stage]:
    """Serve a bundle: in one process on 'sqlite', in two on 'postgresql', with a server of their own."""
    with ExitStack() as stack:
        if database == "sqlite":
            stage, processes = Stage(f"sqlite:///{folder / 'evenkeel.sqlite'}"), 1
        else:
            cluster = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            cluster.chmod(0o755)
            server = stack.enter_context(postgresql.running(cluster / "cluster", free_port()))
            stage, processes = Stage(server.url()), 2
        for number in range(processes):
            settings = {"database_url": stage.database, "admin_key": "operator", "threads": "1", "drain_delay": "0"}
            address, process = stack.enter_context(serving(bundle, folder / f"service{number}.log", **settings))
            stage.addresses.append(address)
            stage.processes.append(process)
        yield stage


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
