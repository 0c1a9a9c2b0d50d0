"""What the service takes for a GPU: sessions that say they are on CUDA, and run on the CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import pytest


class SessionOnTheCpu:
    """A session that says it is where it was asked to be, and remembers how many pictures each run with a binding had.

    Args:
        real: runs the model.
        provider: what it says.
    """

    def __init__(self, real: Any, provider: str) -> None:
        self._real, self._provider = real, provider
        self.sizes: list[int] = []

    def get_providers(self) -> list[str]:
        return [self._provider]

    def get_inputs(self) -> Any:
        return self._real.get_inputs()

    def get_outputs(self) -> Any:
        return self._real.get_outputs()

    def run(self, *arguments: Any) -> Any:
        return self._real.run(*arguments)

    def io_binding(self) -> Any:
        return self._real.io_binding()

    def run_with_iobinding(self, binding: Any) -> None:
        self._real.run_with_iobinding(binding)
        self.sizes.append(len(binding.copy_outputs_to_cpu()[0]))


def sessions_on_cuda(monkeypatch: pytest.MonkeyPatch) -> list[SessionOnTheCpu]:
    """Make it seem as if there were a GPU; return the sessions as they are opened."""
    opened: list[SessionOnTheCpu] = []
    onnxruntime_session = onnxruntime.InferenceSession

    def open_session(path: Path, options: Any, providers: Sequence[Any]) -> SessionOnTheCpu:
        asked = providers[0] if isinstance(providers[0], str) else providers[0][0]
        opened.append(SessionOnTheCpu(onnxruntime_session(path, options, ["CPUExecutionProvider"]), asked))
        return opened[-1]

    monkeypatch.setattr("service.session._cuda_problem", lambda: None)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    return opened
