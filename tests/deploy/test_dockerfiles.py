"""The images, by their Dockerfiles: no root, no torch where it does not belong, sources that the build can see."""

import json
import os
import runpy
import shlex
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.dockerfile import final_stage, health_check, instructions, values

DOCKERFILES = ("deploy/service.Dockerfile", "deploy/trainer.Dockerfile")
TRAINING_ONLY = {"torch", "torchvision", "timm", "onnx", "datasets"}


def extras_installed(dockerfile: Path) -> list[str]:
    """Return the extras that the build asks deploy/requirements_of.py for, the default build argument put in."""
    arguments = dict(value.split("=", 1) for value in values(instructions(dockerfile), "ARG"))
    (line,) = [value for value in values(instructions(dockerfile), "RUN") if "requirements_of.py" in value]
    (extras,) = [words.split(">")[0] for words in line.split("requirements_of.py")[1:]]
    return shlex.split(extras.replace("${EXTRAS}", shlex.split(arguments.get("EXTRAS", "''"))[0]))


def requirements(root: Path, extras: list[str]) -> set[str]:
    lines: list[str] = runpy.run_path(str(root / "deploy/requirements_of.py"))["requirements_of"](extras)
    return {canonicalize_name(Requirement(line).name) for line in lines}


def sent_to_the_build(root: Path, source: str) -> bool:
    kept = [line[1:].rstrip("/") for line in (root / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    return any(Path(source).is_relative_to(entry) for entry in kept)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_process_runs_as_a_number_that_is_not_root(root: Path, dockerfile: str) -> None:
    user = values(final_stage(root / dockerfile), "USER")[-1]
    assert all(part.isdecimal() and int(part) > 0 for part in user.split(":")), user


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_base_image_is_pinned(root: Path, dockerfile: str) -> None:
    (image,) = [v.split("=")[1] for v in values(instructions(root / dockerfile), "ARG") if v.startswith("PYTHON_IMAGE")]
    name, _, tag = image.partition(":")
    assert name == "python"
    assert tag
    assert tag != "latest"


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_whatever_is_copied_exists_and_is_sent_to_the_build(root: Path, dockerfile: str) -> None:
    copied = [v for v in values(instructions(root / dockerfile), "COPY") if not v.startswith("--from")]
    sources = [source for value in copied for source in value.split()[:-1]]
    assert sources
    for source in sources:
        assert (root / source).exists(), f"{dockerfile} copies {source}, which is not there"
        assert sent_to_the_build(root, source), f"{dockerfile} copies {source}, which .dockerignore keeps out"


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_process_gets_signals_itself(root: Path, dockerfile: str) -> None:
    stage = final_stage(root / dockerfile)
    # The exec form: under a shell the signal would end the shell and not the program.
    assert json.loads(values(stage, "ENTRYPOINT")[-1])[:2] == ["python", "-m"]
    assert values(stage, "STOPSIGNAL") == ["SIGTERM"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_everything_installed_is_held_by_the_lock(root: Path, dockerfile: str) -> None:
    installs = [value for value in values(instructions(root / dockerfile), "RUN") if "pip install" in value]
    assert installs
    for line in installs:
        assert "--constraint requirements.lock" in line or "--no-deps" in line


def test_the_extras_of_the_images_exist(root: Path, project: dict[str, Any]) -> None:
    assert extras_installed(root / "deploy/service.Dockerfile") == ["service"]
    assert extras_installed(root / "deploy/trainer.Dockerfile") == ["trainer"]
    assert {"service", "trainer", "gpu"} <= project["optional-dependencies"].keys()


@pytest.mark.parametrize("extras", [["service"], ["service", "gpu"]])
def test_the_image_of_the_service_holds_nothing_of_training(root: Path, extras: list[str]) -> None:
    assert requirements(root, extras) & TRAINING_ONLY == set()
    assert [v for v in values(instructions(root / "deploy/service.Dockerfile"), "COPY") if "trainer" in v] == []


def test_an_extra_that_does_not_exist_is_refused_by_name(root: Path) -> None:
    with pytest.raises(SystemExit, match=r"no extra 'gpus' in pyproject\.toml; choose of service, gpu"):
        requirements(root, ["gpus"])


def test_the_health_check_needs_nothing_but_the_standard_library(root: Path) -> None:
    stage = final_stage(root / "deploy/service.Dockerfile")
    assert health_check(stage)[:2] == ["python", "-c"]
    assert health_check(stage)[2].startswith("import os, urllib.request as r; ")


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_believes_what_readyz_says(root: Path, status: int, healthy: bool) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.handle_request).start()
        environment = {**os.environ, "EVENKEEL_PORT": str(server.server_port)}
        command = [sys.executable, *health_check(final_stage(root / "deploy/service.Dockerfile"))[1:]]
        result = subprocess.run(command, env=environment, capture_output=True, timeout=30, check=False)
    assert (result.returncode == 0) is healthy
