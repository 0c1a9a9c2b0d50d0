"""Where models of tests run: on the CPU, and on a GPU where there is one.

Services that tests start as processes take the CPU, or what `TESTED_PROVIDER` says, unless the CPU is what a test is
about. Some tests need a GPU by themselves: they skip without one, or with `EVENKEEL_REQUIRE_GPU=1` fail.

TESTED_PROVIDER=cuda EVENKEEL_REQUIRE_GPU=1 python -m pytest tests/operations tests/end_to_end tests/service
"""

import os
import tempfile
from functools import cache
from pathlib import Path

import pytest

from service.model import OnnxModel
from service.session import ProviderUnavailable
from tests.service.tiny_model import write_tiny_bundle

TESTED_PROVIDER = os.environ.get("TESTED_PROVIDER", "cpu")
REQUIRED = "EVENKEEL_REQUIRE_GPU"


def needs_gpu() -> None:
    """Skip the test that calls it where ONNX Runtime runs nothing on a GPU."""
    problem = _problem()
    if problem and os.environ.get(REQUIRED):
        pytest.fail(f"{REQUIRED} is set, and {problem}")
    if problem:
        pytest.skip(f"needs a GPU: {problem}")


@cache
def _problem() -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            OnnxModel(write_tiny_bundle(Path(folder) / "tiny"), provider="cuda", max_batch_size=1)
        except ProviderUnavailable as problem:
            return str(problem)
    return None
