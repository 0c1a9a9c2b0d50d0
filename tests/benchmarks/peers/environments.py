"""An environment of its own for each peer, made once from its pinned requirements. No package index is named here."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.servers import DidNotStart, Server, free_port, running
from tests.benchmarks.workplace import Workplace

_HERE = Path(__file__).parent


class CannotInstall(Exception):
    """A peer's packages cannot be had here; says what pip said last."""


@dataclass(frozen=True)
class Peer:
    """Another way to serve the same model.

    Attributes:
        name: how people call it.
        script: its service, beside this file; `{bentoml}` of the command is the environment's own program.
        requirements: the file of its pinned packages.
        ready: a path that answers 200 once it serves.
        speaks_json: the picture comes as base64 in JSON, and alpha with it.
    """

    name: str
    script: str
    requirements: str
    ready: str
    speaks_json: bool = False

    def command(self, python: Path, port: int) -> list[str]:
        if self.requirements == "bentoml":
            options = ["--port", str(port), "--host", "127.0.0.1", "--working-dir", str(_HERE)]
            return [str(python.with_name("bentoml")), "serve", "bentoml_service:Classifier", *options]
        return [str(python), str(_HERE / self.script)]


EMPTY = Peer("an empty ASGI answer under uvicorn", "empty.py", "fastapi", "/")
FASTAPI = Peer("FastAPI in 15 lines", "fastapi_service.py", "fastapi", "/openapi.json")
LITSERVE = Peer("LitServe", "litserve_service.py", "litserve", "/health", speaks_json=True)
BENTOML = Peer("BentoML", "bentoml_service.py", "bentoml", "/readyz", speaks_json=True)
RAY = Peer("Ray Serve", "ray_service.py", "ray_serve", "/-/healthz")


@contextmanager
def serving(peer: Peer, model: Path, threads: int, workplace: Workplace) -> Iterator[Server]:
    """Run a peer on a model.

    Raises:
        CannotInstall, DidNotStart
    """
    python = _python(peer, workplace)
    port = free_port()
    environment = {
        "MODEL": str(model), "PORT": str(port), "THREADS": str(threads), "PYTHONPATH": str(_HERE),
        "RAY_USAGE_STATS_ENABLED": "0", "BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "1",
        "BENTOML_HOME": str(workplace.place("bentoml")), "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    folder = workplace.place(f"run-{peer.requirements}-{peer.script}")
    with running(
        peer.command(python, port), folder=folder, ready=peer.ready, environment=environment, port=port
    ) as server:
        yield server


def _python(peer: Peer, workplace: Workplace) -> Path:
    requirements = _HERE / "requirements" / f"{peer.requirements}.txt"
    environment = workplace.place("environments") / peer.requirements
    python, stamp = environment / "bin" / "python", environment / "installed"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)]
    said = subprocess.run(install, capture_output=True, text=True, check=False)
    if said.returncode:
        raise CannotInstall(f"{peer.name} cannot be installed: {said.stderr.strip().splitlines()[-1:]}")
    stamp.write_text(wanted)
    return python


__all__ = ["BENTOML", "EMPTY", "FASTAPI", "LITSERVE", "RAY", "CannotInstall", "DidNotStart", "Peer", "serving"]
