"""A Triton server as a process of the tests' own; `make triton` installs it."""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import plain_http
from tests.deploy.prometheus import free_port, running, wait_until

REQUIRED = "EVENKEEL_REQUIRE_TRITON"
PACKAGES = Path(__file__).parents[3] / ".triton"


@contextmanager
def triton(repository: Path, scratch: Path, *options: str) -> Iterator[str]:
    """Serve a model repository until the end of the block; yields the server's host and port.

    Without the server the test skips, or fails where it is required.
    """
    home = PACKAGES / "pytriton" / "tritonserver"
    stub = home / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    if not (home.exists() and stub.exists()):
        missing = f"there is no Triton server for Python {stub.name} in {PACKAGES} (make triton)"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{REQUIRED} is set, and {missing}")
        pytest.skip(missing)
    backends, program = scratch / "backends", home / "bin" / "tritonserver"
    shutil.copytree(home / "backends" / "python", backends / "python")
    shutil.copytree(stub, backends / "python", dirs_exist_ok=True)
    (backends / "onnxruntime").mkdir()
    shutil.copy(Path(__file__).with_name("model.py"), backends / "onnxruntime")
    for file in (program, backends / "python" / "triton_python_backend_stub"):
        file.chmod(0o755)
    port, log = free_port(), scratch / "triton.log"
    command = [str(program), f"--model-repository={repository}", f"--backend-directory={backends}", *options]
    command += [f"--http-port={port}", "--http-address=127.0.0.1", "--allow-grpc=false", "--allow-metrics=false"]
    libraries = f"{PACKAGES / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"  # the latter for libpython
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "TRITON_PACKAGES": str(PACKAGES)}
    with running(command, log, env=environment) as process:
        ready = f"http://127.0.0.1:{port}/v2/health/ready"
        wait_until(
            lambda: process.poll() is not None or plain_http.get(ready).status_code == 200,
            "Triton is ready",
            seconds=60,
        )
        assert process.poll() is None, log.read_text()
        yield f"127.0.0.1:{port}"
