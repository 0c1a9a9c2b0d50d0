"""A session of ONNX Runtime on the provider that was asked for, or none at all.

It knows nothing of what the model is for.
"""

import ctypes
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import onnxruntime
from numpy.typing import NDArray

from service.bundle import Bundle, BundleError, Precision
from service.cores import available_cores
from service.lanes import RUN_OPTIONS, Lanes, shapes_of
from service.onnx_file import reduced

logger = logging.getLogger(__name__)

Provider = Literal["cpu", "cuda"]
Asked = Literal["auto", "cpu", "cuda"]

EXECUTION_PROVIDERS: dict[Provider, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


CUDA_OPTIONS = {"use_tf32": "0"}
"""TF32 would cost parity in fp32; what others do is in the results of the benchmarks."""

LANES = 2
"""Runs at once on CUDA: while one is copied there or back another computes, and a third would add little (2 %)."""


class ProviderUnavailable(Exception):  # noqa: N818 - as all domain errors here
    """The execution provider that was asked for does not run on this machine."""


class NoGraph(Exception):  # noqa: N818 - as all domain errors here
    """The model does not become a CUDA graph."""


_WARNING, _ERROR, _FATAL = 2, 3, 4
"""Of ONNX Runtime's severities, of which the first is its default."""


def start_on(asked: Asked, start: Callable[[Asked], None]) -> None:
    """Start a model where it was asked for.

    Args:
        asked: `cuda` refuses to start without it; `auto` takes it where the model runs there, and says in the log why
            it does not.
        start: loads, warms and checks the model.

    Raises:
        ProviderUnavailable: CUDA was asked for and does not run the model.
    """
    try:
        start(asked)
    except ProviderUnavailable as problem:
        if asked != "auto":
            raise
        logger.warning("provider auto: the model runs on the CPU, since %s", problem)
    else:
        return
    start("cpu")


class OnnxSession:
    """A bundle's model file on one device: on the CPU in one session, on CUDA in one for each lane and size of a batch.

    Args:
        bundle: a verified bundle.
        asked: `auto` takes CUDA where nothing is known to speak against it, and says in the log what does.
        threads: threads within an operator; None: the cores that this process may really use.
        outputs: those that will be asked for; nothing that leads to others alone is run. None: all.
        sizes: how many pictures `image` may hold in a run on CUDA; the CPU takes any.
        lanes: runs at once on CUDA; those beside the first are of the largest size.
        graphs: whether runs on CUDA are to become graphs.

    Attributes:
        inputs, outputs: of the model, and their shapes.

    Raises:
        ProviderUnavailable: CUDA does not run, or has no room for so many sessions.
        NoGraph: a graph is asked for, and the model does not open with one; it may without.
        BundleError: the file is no model.
    """

    def __init__(
        self,
        bundle: Bundle,
        asked: Asked,
        threads: int | None,
        outputs: Sequence[str] | None = None,
        sizes: Sequence[int] = (1,),
        *,
        lanes: int = 1,
        graphs: bool = False,
    ) -> None:
        self.provider = _choose(asked)
        self.precision, self.path = _model_file(bundle, self.provider)
        self._sizes, self._graphs = sizes, graphs and self.provider == "cuda"
        with nullcontext(self.path) if outputs is None else reduced(self.path, outputs) as file:
            opens = partial(_open, file, self.path, threads=threads or available_cores())
            if self.provider == "cpu":
                self._session = opens("cpu")
                self.inputs, self.outputs = shapes_of(self._session)
                return
            try:
                self._lanes = Lanes(partial(opens, "cuda", graphs=self._graphs), sizes, lanes)
            except ProviderUnavailable:
                raise
            except Exception as error:
                reason = error.__cause__ if isinstance(error, BundleError) else error
                if self._graphs:
                    raise NoGraph(str(reason)) from error
                opens("cpu")  # refuses the file if that is at fault
                raise _does_not_run(self.path, sizes, reason) from error
            self.inputs, self.outputs = self._lanes.inputs, self._lanes.outputs

    def refuse_without(self, inputs: set[str], outputs: set[str]) -> None:
        """Refuse a model that lacks an input or an output.

        Raises:
            BundleError: which.
        """
        if missing := sorted((inputs - set(self.inputs)) | (outputs - set(self.outputs))):
            raise BundleError(f"{self.path} lacks the inputs or outputs {', '.join(missing)}; export the bundle again")

    def refuse_gaps(self, gaps: Mapping[str, float], tolerance: float) -> None:
        """Refuse a model whose outputs differ from those expected of it.

        Raises:
            BundleError: by how much.
            NoGraph: likewise, where runs are graphs.
        """
        if wrong := {name: gap for name, gap in gaps.items() if gap > tolerance}:
            shown = ", ".join(f"{name} by {gap:.2g}" for name, gap in wrong.items())
            if self._graphs:
                raise NoGraph(f"its answers to the parity samples differ: {shown}")
            raise BundleError(
                f"{self.path} on {self.provider} differs from the trained model on the parity samples: {shown}, and "
                f"at most {tolerance} is tolerated in {self.precision}; export the bundle again or choose another "
                "provider"
            )

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Take the failure of a first run for what speaks against the device, such as that its memory is full.

        On CUDA such a run writes an error for each fusion that cuDNN has no plan for, 36 for a ResNeXt-50 at one size,
        and does without it. That fills no log, unless it is one for debugging.

        Raises:
            ProviderUnavailable: a run failed on CUDA.
            NoGraph: likewise, where runs were to be graphs.
        """
        quiet = self.provider == "cuda" and not logger.isEnabledFor(logging.DEBUG)
        try:
            if quiet:
                onnxruntime.set_default_logger_severity(_FATAL)
            yield
        except (BundleError, NoGraph):
            raise
        except Exception as error:  # ONNX Runtime's own errors have no common base
            if self.provider == "cpu":
                raise
            if self._graphs:
                raise NoGraph(str(error)) from error
            raise _does_not_run(self.path, self._sizes, error) from error
        finally:
            if quiet:
                onnxruntime.set_default_logger_severity(_WARNING)

    def first_run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> None:
        """Have runs of these outputs and of this size be as quick as they can be from now on."""
        if self.provider == "cuda":
            self._lanes.prepare(outputs, inputs, graph=self._graphs)
        else:
            self.run(outputs, inputs)

    def close(self) -> None:
        """Let go of what there is on CUDA, and wait until it is gone; the session is of no use any more."""
        if self.provider == "cuda":
            self._lanes.close()

    def turns(self, size: int) -> range:
        """Return a number for each way in which batches of this size are run."""
        return range(1 if self.provider == "cpu" else self._lanes.count(size))

    def run(
        self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]], turn: int | None = None
    ) -> list[NDArray[Any]]:
        """Return the outputs of one run; any thread may call it.

        Args:
            outputs, inputs: of the model.
            turn: one of `turns`; None: whichever is free.
        """
        if self.provider == "cuda":
            return self._lanes.run(outputs, inputs, turn)
        results: list[NDArray[Any]] = self._session.run(outputs, inputs, RUN_OPTIONS)
        return results


def _model_file(bundle: Bundle, provider: Provider) -> tuple[Precision, Path]:
    precision: Precision = "fp16" if provider == "cuda" and bundle.model_path("fp16") else "fp32"
    path = bundle.model_path(precision)
    assert path is not None, "every bundle has an fp32 model"
    return precision, path


def _does_not_run(path: Path, sizes: Sequence[int], error: BaseException | None) -> ProviderUnavailable:
    fewer = "lower EVENKEEL_MAX_BATCH_SIZE" if len(sizes) > 1 else "make room"
    return ProviderUnavailable(
        f"{path} does not run on cuda in a session for each batch size of {', '.join(map(str, sizes))}: "
        f"{' '.join(str(error).split())}; {fewer} if the GPU's memory is full, or ask for cpu; "
        "EVENKEEL_LOG_LEVEL=debug shows what CUDA's libraries write"
    )


def _choose(provider: Asked) -> Provider:
    if provider == "cpu":
        return "cpu"
    problem = _cuda_problem()
    if problem is None:
        return "cuda"
    if provider == "cuda":
        raise ProviderUnavailable(
            f"the provider cuda was asked for, and {problem}; install evenkeel[service,gpu] and the NVIDIA driver, "
            "or ask for cpu"
        )
    logger.info("provider auto: the model runs on the CPU, since %s", problem)
    return "cpu"


def _cuda_problem() -> str | None:
    """Return why CUDA cannot run, or None if nothing speaks against it; the session has the last word."""
    if EXECUTION_PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        return "this build of ONNX Runtime has no CUDA"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"there is no NVIDIA driver ({error})"
    devices = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(devices)) != 0 or devices.value == 0:
        return "the NVIDIA driver finds no GPU"
    return None


def _open(
    file: Path, path: Path, provider: Provider, threads: int, *, graphs: bool = False
) -> onnxruntime.InferenceSession:
    """Open a file, which is `path` or what was made of it."""
    onnxruntime.disable_telemetry_events()  # some builds report to their makers; a service tells nobody of itself
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores serve the event loop too
    # What goes wrong is raised too, and logged as everything is; only CUDA's libraries say more than their exceptions.
    debugs_cuda = provider == "cuda" and logger.isEnabledFor(logging.DEBUG)
    options.log_severity_level = _ERROR if debugs_cuda else _FATAL
    chosen: list[Any] = [EXECUTION_PROVIDERS[provider]]
    if provider == "cuda":
        onnxruntime.preload_dlls()
        chosen = [(EXECUTION_PROVIDERS["cuda"], {**CUDA_OPTIONS, "enable_cuda_graph": str(int(graphs))})]
    try:
        session = onnxruntime.InferenceSession(file, options, providers=chosen)
    except Exception as error:  # ONNX Runtime's own errors have no common base
        raise BundleError(f"{path} cannot be loaded by ONNX Runtime: {error}; export the bundle again") from error
    if session.get_providers()[0] != EXECUTION_PROVIDERS[provider]:
        raise ProviderUnavailable(
            f"the provider {provider} was asked for, and ONNX Runtime runs {session.get_providers()[0]} instead, "
            "for the reason that it has just written above; install evenkeel[service,gpu], or ask for cpu"
        )
    return session
