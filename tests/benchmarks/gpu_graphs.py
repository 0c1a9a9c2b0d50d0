"""Runs that replay CUDA graphs, in place of the service's own: to see over HTTP whether they would pay.

ONNX Runtime keeps a graph for each session and each thread that runs it, for inputs and outputs that stay where they
are. So each of two lanes has a thread, and for each size of a batch a session, which captures before anything is
served: while one captures, CUDA refuses other threads what may be unsafe. A reload would need more than this has.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime import OrtValue

from service import session
from service.session import RUN_OPTIONS, OnnxSession

LANES = 2
_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
Arrays = list[NDArray[Any]]


class CapturedSession(OnnxSession):
    """An `OnnxSession` for one choice of outputs: those that are asked for first."""

    def __init__(self, *opening: Any) -> None:
        session.CUDA_OPTIONS["enable_cuda_graph"] = "1"
        super().__init__(*opening)
        self._lanes = SimpleQueue[_Lane]()
        self._wanted: tuple[str, ...] = ()
        for sessions in (self, *(OnnxSession(*opening) for _ in range(LANES - 1))):
            self._lanes.put(_Lane(sessions, self.provider))

    def run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return the outputs of one run; any thread may call it."""
        if not self._wanted:
            self._capture(outputs, inputs)
        if tuple(outputs) != self._wanted:
            raise ValueError(f"{outputs} were asked for, and {self._wanted} are captured")
        lane = self._lanes.get()
        try:
            return lane.run(outputs, inputs)
        finally:
            self._lanes.put(lane)

    def _capture(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> None:
        self._wanted = tuple(outputs)
        for _ in range(LANES):
            lane = self._lanes.get()
            for size in self._session_of_size:
                lane.capture(self._wanted, {name: np.repeat(array[:1], size, axis=0) for name, array in inputs.items()})
            self._lanes.put(lane)


class _Lane:
    """A thread and what it alone runs."""

    def __init__(self, sessions: OnnxSession, device: str) -> None:
        self._sessions, self._device = sessions, device
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lane")
        self._captured: dict[int, _Captured] = {}

    def capture(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> None:
        size = len(inputs["image"])
        one = self._sessions._session_of_size.get(size, self._sessions._session)
        self._captured[size] = self._pool.submit(_Captured, one, self._device, outputs, inputs).result()
        for _ in range(2):
            self.run(outputs, inputs)

    def run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        if (size := len(inputs["image"])) not in self._captured:  # the CPU takes any size
            self.capture(outputs, inputs)
        return self._pool.submit(self._captured[size].replay, inputs).result()


class _Captured:
    """A session, and where it reads and writes."""

    def __init__(self, one: Any, device: str, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> None:
        self._session, self._binding = one, one.io_binding()
        self._inputs = {name: OrtValue.ortvalue_from_numpy(array, device, 0) for name, array in inputs.items()}
        known, size = {value.name: value for value in one.get_outputs()}, len(inputs["image"])
        self._outputs = [
            OrtValue.ortvalue_from_shape_and_type([size, *known[name].shape[1:]], _TYPES[known[name].type], device, 0)
            for name in outputs
        ]
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in zip(outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)

    def replay(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        for name, array in inputs.items():
            self._inputs[name].update_inplace(array)
        self._session.run_with_iobinding(self._binding, RUN_OPTIONS)
        return [value.numpy() for value in self._outputs]
