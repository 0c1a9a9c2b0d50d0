"""What the service takes for a GPU: sessions that say they are on CUDA, and run on the CPU."""

from collections.abc import Sequence
from pathlib import Path
from threading import get_ident, local
from typing import Any

import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxruntime import OrtValue

from service.lanes import RUN_OPTIONS


class _Thread(local):
    takes_no_part = False


_THREAD = _Thread()


class SessionOnTheCpu:
    """A session that says it is where it was asked to be, and remembers how many pictures each run with a binding had.

    What a graph asks for is kept as CUDA and ONNX Runtime do: only the thread that captured it has it, it reads and
    writes where it did then, and who runs has said to take no part in captures.

    Args:
        real: runs the model.
        provider: what it says.
        graphs: whether runs become a graph, unless they say that they are none.

    Attributes:
        graph: where the graph reads and writes, once it is captured.
    """

    def __init__(self, real: Any, provider: str, *, graphs: bool = False) -> None:
        self._real, self._provider, self._graphs = real, provider, graphs
        self._thread = get_ident()
        self.graph: Any = None
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

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        if get_ident() != self._thread:
            raise RuntimeError("the session belongs to another thread")
        if not _THREAD.takes_no_part:
            raise RuntimeError("operation not permitted when stream is capturing")
        if self._graphs and options is RUN_OPTIONS:
            self.graph = binding = self.graph or binding
        self._real.run_with_iobinding(binding)
        self.sizes.append(len(binding.copy_outputs_to_cpu()[0]))


class _OnTheDevice:
    """Values that share no memory with the arrays that they come from, or become."""

    @staticmethod
    def ortvalue_from_numpy(array: NDArray[Any], device: str, number: int) -> Any:
        assert (device, number) == ("cuda", 0)
        value = OrtValue.ortvalue_from_numpy(array.copy(), "cpu", 0)
        value.numpy = lambda: OrtValue.numpy(value).copy()
        return value


def sessions_on_cuda(monkeypatch: pytest.MonkeyPatch) -> list[SessionOnTheCpu]:
    """Make it seem as if there were a GPU; return the sessions as they are opened."""
    opened: list[SessionOnTheCpu] = []
    onnxruntime_session = onnxruntime.InferenceSession

    def open_session(path: Path, options: Any, providers: Sequence[Any]) -> SessionOnTheCpu:
        asked, chosen = (providers[0], {}) if isinstance(providers[0], str) else providers[0]
        real = onnxruntime_session(path, options, ["CPUExecutionProvider"])
        opened.append(SessionOnTheCpu(real, asked, graphs=chosen.get("enable_cuda_graph") == "1"))
        return opened[-1]

    monkeypatch.setattr("service.session._cuda_problem", lambda: None)
    monkeypatch.setattr("service.lanes.OrtValue", _OnTheDevice)
    monkeypatch.setattr("service.lanes.take_no_part_in_captures", lambda: setattr(_THREAD, "takes_no_part", True))
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    return opened
