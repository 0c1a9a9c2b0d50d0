"""Lanes: runs on CUDA, each in a thread that alone uses its sessions, by a captured graph where the model has one.

A run launches some hundreds of kernels one by one, a graph all of them as one; what that gains is in the results of the
benchmarks. What ONNX Runtime asks for in return is kept here:

- a graph belongs to the thread that captured it, and to one session, whose memory it goes on using. So a lane has both
  to itself;
- inputs and outputs stay where they were while it was captured: they are copied there, and from there;
- while a thread captures, CUDA refuses others what may be unsafe, unless they have said that they take no part. Lanes
  say so, and run undisturbed. What opens a session or plans convolutions was seen to fail all the same: that is done,
  and sessions are let go, while nothing is captured.

It knows neither bundles nor what the model is for.
"""

import ctypes
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import finalize

import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

logger = logging.getLogger(__name__)

Arrays = list[NDArray[Any]]
Shapes = dict[str, list[int | str | None]]
"""By the names of inputs or outputs; a length is a name or None where it is free."""
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_THREAD_LOCAL = 1
"""CUDA's `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`."""

RUN_OPTIONS = onnxruntime.RunOptions()
"""One for all runs, and nothing set: for a run without any, ONNX Runtime makes one, in 3 us."""

_NO_GRAPH = onnxruntime.RunOptions()
_NO_GRAPH.add_run_config_entry("gpu_graph_id", "-1")

_PATIENCE = 10.0
"""Seconds that a lane may take to let its sessions go."""

_alone = Lock()
"""Held by whoever captures, or does what is not to be done beside a capture."""


class Lanes:
    """The lanes of one model: one takes batches of every size, the others full ones, which run beside it.

    A session on CUDA plans its convolutions anew whenever the size changes, which takes it 200 ms where the run takes 1
    to 6 (ResNeXt-50 on an H200), and may let go of what a graph of another size reads. So each sees one size alone, and
    holds the weights by itself.

    Args:
        open_session: opens a session on CUDA.
        sizes: how many pictures `image` may hold in a run, the largest last.
        count: of lanes, hence of runs at once.
    """

    def __init__(
        self, open_session: Callable[[], onnxruntime.InferenceSession], sizes: Sequence[int], count: int
    ) -> None:
        self._lanes: list[_Lane] = []
        try:
            for taken in (sizes, *(count - 1) * (sizes[-1:],)):
                self._lanes.append(lane := _Lane(taken))
                for size in taken:
                    lane.do(_open, open_session, size).result()
        except BaseException:
            self.close()
            raise
        self.inputs, self.outputs = self._lanes[0].do(_shapes).result()

    def close(self) -> None:
        """Let all sessions go, and wait until they are gone; nothing may be asked of the lanes any more."""
        for lane in self._lanes:
            lane.end()
        for lane in self._lanes:
            lane.wait()

    def prepare(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]], *, graph: bool) -> None:
        """Plan runs of this size and of these outputs; with a graph, have each be that from now on."""
        for lane in self._of_size(len(inputs["image"])):
            lane.do(_prepare, tuple(outputs), inputs, graph=graph).result()

    def run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]], turn: int | None = None) -> Arrays:
        """Return the outputs of one run; any thread may call it.

        Args:
            outputs, inputs: of the model.
            turn: which of the lanes that take the size; None: the one in which least waits.
        """
        lanes = self._of_size(len(inputs["image"]))
        lane = min(lanes, key=lambda lane: lane.waiting) if turn is None else lanes[turn]
        return lane.do(_run, tuple(outputs), inputs).result()

    def count(self, size: int) -> int:
        """Return how many lanes take batches of a size."""
        return len(self._of_size(size))

    def _of_size(self, size: int) -> "list[_Lane]":
        return [lane for lane in self._lanes if size in lane.sizes]


class _Lane:
    """A thread, and the sessions that are opened, run and let go in it; it ends with the last who knows the lane."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = frozenset(sizes)
        self._has_ended = False
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[_Sessions], Any]] | None] = SimpleQueue()
        self._under_way: set[Future[Any]] = set()
        # A queue, and no pool of threads: garbage may be collected while this thread holds the locks of a pool.
        finalize(self, self._queue.put, None).atexit = False
        self._thread = Thread(target=_serve, args=(self._queue,), name="cuda", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How much there is to do, what is being done among it."""
        return len(self._under_way)

    def end(self) -> None:
        """Have the thread end once it has done what there is to do; nothing more is taken."""
        self._has_ended = True
        self._queue.put(None)

    def wait(self) -> None:
        """Wait for its end, but not for ever: a device can hang."""
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            logger.warning("a thread on cuda has not let its sessions go in %g s: it is left to itself", _PATIENCE)

    def do(
        self,
        call: "Callable[Concatenate[_Sessions, Arguments], Result]",
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Future[Result]:
        """Have the thread make a call with its sessions and with these arguments, once it is free.

        Raises:
            RuntimeError: the lane has ended.
        """
        if self._has_ended:
            raise RuntimeError("the lane has ended")
        work: Future[Result] = Future()
        self._under_way.add(work)
        work.add_done_callback(self._under_way.discard)
        self._queue.put((work, lambda sessions: call(sessions, *arguments, **named)))
        return work


def _serve(queue: "SimpleQueue[tuple[Future[Any], Callable[[_Sessions], Any]] | None]") -> None:
    sessions: _Sessions = {}
    while (work := queue.get()) is not None:
        _make(*work, sessions)
        del work
    with _alone:
        sessions.clear()


def _make(work: Future[Result], call: "Callable[[_Sessions], Result]", sessions: "_Sessions") -> None:
    try:
        work.set_result(call(sessions))
    except BaseException as error:
        work.set_exception(error)
        del work, call  # the error knows this frame


class _Session:
    """A session for batches of one size, and its graph, if there is one.

    Args:
        session: on CUDA.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self._captured: tuple[str, ...] = ()
        self._inputs: dict[str, OrtValue] = {}
        self._taken: dict[str, tuple[Any, ...]] = {}  # their shapes and types
        self._outputs: list[OrtValue] = []

    def prepare(self, outputs: tuple[str, ...], inputs: Mapping[str, NDArray[Any]], *, graph: bool) -> None:
        """Run once, which plans the convolutions, and for a graph once more, into it."""
        found = self._run(outputs, inputs)
        if not graph:
            return
        self._taken = {name: (array.dtype, array.shape) for name, array in inputs.items()}
        self._binding = self.session.io_binding()
        for name, array in inputs.items():
            self._inputs[name] = OrtValue.ortvalue_from_numpy(array, "cuda", 0)
            self._binding.bind_ortvalue_input(name, self._inputs[name])
        for name, array in zip(outputs, found, strict=True):
            self._outputs.append(OrtValue.ortvalue_from_numpy(array, "cuda", 0))
            self._binding.bind_ortvalue_output(name, self._outputs[-1])
        self.session.run_with_iobinding(self._binding, RUN_OPTIONS)
        self._captured = outputs

    def run(self, outputs: tuple[str, ...], inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return the outputs: by the graph if it has them, else as if there were none."""
        if outputs != self._captured:
            return self._run(outputs, inputs)
        if (given := {name: (array.dtype, array.shape) for name, array in inputs.items()}) != self._taken:
            raise ValueError(f"the graph takes {self._taken}, and is given {given}")  # a copy would not see it
        for name, array in inputs.items():
            self._inputs[name].update_inplace(array)
        self.session.run_with_iobinding(self._binding, RUN_OPTIONS)
        return [output.numpy() for output in self._outputs]

    def _run(self, outputs: tuple[str, ...], inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        binding = self.session.io_binding()  # copies in and out once, and nothing that was not asked for
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name in outputs:
            binding.bind_output(name)
        self.session.run_with_iobinding(binding, _NO_GRAPH)
        found: Arrays = binding.copy_outputs_to_cpu()
        return found


_Sessions = dict[int, _Session]
"""By the size of their batches."""


def _open(sessions: _Sessions, open_session: Callable[[], onnxruntime.InferenceSession], size: int) -> None:
    with _alone:
        sessions[size] = _Session(open_session())
        take_no_part_in_captures()


def _prepare(sessions: _Sessions, outputs: tuple[str, ...], inputs: Mapping[str, NDArray[Any]], *, graph: bool) -> None:
    with _alone:
        sessions[len(inputs["image"])].prepare(outputs, inputs, graph=graph)


def _run(sessions: _Sessions, outputs: tuple[str, ...], inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    return sessions[len(inputs["image"])].run(outputs, inputs)


def _shapes(sessions: _Sessions) -> tuple[Shapes, Shapes]:
    return shapes_of(next(iter(sessions.values())).session)


def shapes_of(session: onnxruntime.InferenceSession) -> tuple[Shapes, Shapes]:
    """Return the shapes of a session's inputs and outputs."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    return {value.name: value.shape for value in inputs}, {value.name: value.shape for value in outputs}


def take_no_part_in_captures() -> None:
    """Have this thread do as it likes while another captures, and not disturb it.

    Raises:
        RuntimeError: the driver refuses.
    """
    mode = ctypes.c_int(_THREAD_LOCAL)
    if refusal := ctypes.CDLL("libcuda.so.1").cuThreadExchangeStreamCaptureMode(ctypes.byref(mode)):
        raise RuntimeError(f"the NVIDIA driver answers cuThreadExchangeStreamCaptureMode with error {refusal}")
