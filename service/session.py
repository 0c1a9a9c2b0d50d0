"""A session of ONNX Runtime on the provider that was asked for, or none at all.

It knows nothing of what the model is for.
"""

import ctypes
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import onnxruntime
from numpy.typing import NDArray

from service.bundle import Bundle, BundleError, Precision
from service.cores import available_cores
from service.onnx_file import reduced

logger = logging.getLogger(__name__)

Provider = Literal["cpu", "cuda"]
Asked = Literal["auto", "cpu", "cuda"]

EXECUTION_PROVIDERS: dict[Provider, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


CUDA_OPTIONS = {"use_tf32": "0"}
"""TF32 would cost parity in fp32. On an H200, ResNeXt-50 in batches of 32, images/s (tests/benchmarks/RESULTS.md):

- `prefer_nhwc`: with it 3,638 in one run at a time, 3,936 in two at once, as the service runs them, and 1,733 in fp32;
  without it 2,555 to 3,230, 3,945 to 4,246 and 2,256.
- `cudnn_conv_algo_search` by heuristics: 3,317 in one run at a time. What two at once or sizes in turn gain is unknown.
- `enable_cuda_graph`: 5,093. ONNX Runtime captures a graph for each thread that runs a session, in a mode in which CUDA
  refuses all other threads calls that may be unsafe: those that serve while a reload warms up. What the service gains
  is not known yet: `tests/benchmarks/gpu_graphs.py` is there to measure it.
"""


class ProviderUnavailable(Exception):  # noqa: N818 - as all domain errors here
    """The execution provider that was asked for does not run on this machine."""


_WARNING, _ERROR, _FATAL = 2, 3, 4
"""Of ONNX Runtime's severities, of which the first is its default."""
RUN_OPTIONS = onnxruntime.RunOptions()
"""One for all runs, and nothing set: for a run without any, ONNX Runtime makes one, in 3 us."""


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
    """A bundle's model file on one device: on the CPU in one session, on CUDA in one for each size of a batch.

    A session on CUDA plans its convolutions anew whenever the size changes, which takes it 200 ms where the run takes 2
    to 8 (ResNeXt-50 on an H200). So each sees one size alone, and holds the weights by itself.

    Args:
        bundle: a verified bundle.
        asked: `auto` takes CUDA where nothing is known to speak against it, and says in the log what does.
        threads: threads within an operator; None: the cores that this process may really use.
        outputs: those that will be asked for; nothing that leads to others alone is run. None: all.
        sizes: how many pictures `image` may hold in a run on CUDA; the CPU takes any.

    Raises:
        ProviderUnavailable: CUDA does not run, or has no room for so many sessions.
        BundleError: the file is no model.
    """

    def __init__(
        self,
        bundle: Bundle,
        asked: Asked,
        threads: int | None,
        outputs: Sequence[str] | None = None,
        sizes: Sequence[int] = (1,),
    ) -> None:
        self.provider, self.precision, self.path, sessions = _start(
            bundle, asked, threads or available_cores(), outputs, sizes
        )
        self._session = sessions[0]
        self._session_of_size = dict(zip(sizes, sessions, strict=False))
        self.inputs = {value.name: value for value in self._session.get_inputs()}
        self.outputs = {value.name: value for value in self._session.get_outputs()}

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
        """
        if wrong := {name: gap for name, gap in gaps.items() if gap > tolerance}:
            shown = ", ".join(f"{name} by {gap:.2g}" for name, gap in wrong.items())
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
        """
        quiet = self.provider == "cuda" and not logger.isEnabledFor(logging.DEBUG)
        try:
            if quiet:
                onnxruntime.set_default_logger_severity(_FATAL)
            yield
        except BundleError:
            raise
        except Exception as error:  # ONNX Runtime's own errors have no common base
            if self.provider == "cpu":
                raise
            raise _does_not_run(self.path, list(self._session_of_size), error) from error
        finally:
            if quiet:
                onnxruntime.set_default_logger_severity(_WARNING)

    def run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the outputs of one run; any thread may call it."""
        if self.provider == "cpu":
            results: list[NDArray[Any]] = self._session.run(outputs, inputs, RUN_OPTIONS)
            return results
        session = self._session_of_size[len(inputs["image"])]
        binding = session.io_binding()  # copies in and out once, and nothing that was not asked for
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name in outputs:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        bound: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
        return bound


def _start(
    bundle: Bundle, asked: Asked, threads: int, outputs: Sequence[str] | None, sizes: Sequence[int]
) -> tuple[Provider, Precision, Path, list[onnxruntime.InferenceSession]]:
    provider = _choose(asked)
    precision: Precision = "fp16" if provider == "cuda" and bundle.model_path("fp16") else "fp32"
    path = bundle.model_path(precision)
    assert path is not None, "every bundle has an fp32 model"
    with nullcontext(path) if outputs is None else reduced(path, outputs) as file:
        if provider == "cpu":
            return provider, precision, path, [_open(file, path, provider, threads)]
        return provider, precision, path, _open_on_cuda(file, path, threads, sizes)


def _open_on_cuda(file: Path, path: Path, threads: int, sizes: Sequence[int]) -> list[onnxruntime.InferenceSession]:
    try:
        return [_open(file, path, "cuda", threads) for _ in sizes]
    except BundleError as error:
        _open(file, path, "cpu", threads)  # refuses the file if that is at fault
        raise _does_not_run(path, sizes, error.__cause__) from error


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


def _open(file: Path, path: Path, provider: Provider, threads: int) -> onnxruntime.InferenceSession:
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
        chosen = [(EXECUTION_PROVIDERS["cuda"], dict(CUDA_OPTIONS))]
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
