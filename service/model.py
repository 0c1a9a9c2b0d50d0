"""OnnxModel: the bundle's model in ONNX Runtime, on the provider that was asked for, warm and checked, or not at all.

It knows nothing of queues or HTTP, and nothing of knobs beyond the parity check: `branches` gives both branch
logits, from which any alpha follows.
"""

import ctypes
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.bundle import PARITY_TOLERANCE, Bundle, BundleError, Manifest, Precision
from service.cores import available_cores
from service.scoring import Branches

logger = logging.getLogger(__name__)

Provider = Literal["cpu", "cuda"]

_EXECUTION_PROVIDERS: dict[Provider, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_INPUTS = {"image", "alpha", "prior_strength"}
_BRANCHES = ("factual_logits", "counterfactual_logits", "confounder_cosine")
_CHECKED = ("logits", *_BRANCHES)
_FEATURE_MAP = "feature_map"


class ProviderUnavailable(Exception):  # noqa: N818 - as all domain errors here
    """The execution provider that was asked for does not run on this machine."""


class Model(Protocol):
    """What the app needs of a model."""

    @property
    def manifest(self) -> Manifest:
        """What the model is."""

    @property
    def provider(self) -> str:
        """What runs it."""

    @property
    def precision(self) -> str:
        """The precision of its weights."""

    def branches(self, images: NDArray[np.uint8]) -> Branches:
        """Return both branch logits and the cosines of N pictures, uint8 [N, H, W, 3]."""

    @property
    def feature_map_shape(self) -> tuple[int, ...] | None:
        """The shape of one picture's feature map, -1 where it is free; None: there is no such output."""

    def branches_and_feature_map(self, images: NDArray[np.uint8]) -> tuple[Branches, NDArray[np.float32]]:
        """Return the same and the feature maps [N, D, h, w], which cost a copy."""


class OnnxModel:
    """One session on one device.

    Args:
        bundle: a verified bundle.
        provider: `cuda` refuses to start without it; `auto` takes it where it runs, and says so in the log.
        threads: threads within an operator; None: the cores that this process may really use.
        max_batch_size: the largest batch that will be run.

    Raises:
        ProviderUnavailable: CUDA was asked for and does not run.
        BundleError: the file is no such model, or fails the parity check.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: Literal["auto", "cpu", "cuda"],
        threads: int | None = None,
        max_batch_size: int = 32,
    ) -> None:
        self.manifest = bundle.manifest
        begin = perf_counter()
        self.provider, self.precision, path, self._session = _start(bundle, provider, threads or available_cores())
        self._batch_sizes = _batch_sizes(self.provider, max_batch_size)
        self._check_contract(path)
        loaded = perf_counter()
        self._warm_up()
        warm = perf_counter()
        self._check_parity(bundle, path)
        logger.info(
            "%s %s runs on %s in %s: loaded in %.2f s, warm in %.2f s, parity checked in %.2f s",
            *(self.manifest.name, self.manifest.version, self.provider, self.precision),
            *(loaded - begin, warm - loaded, perf_counter() - warm),
        )

    def branches(self, images: NDArray[np.uint8]) -> Branches:
        """Return both branch logits and the cosines of N pictures, uint8 [N, H, W, 3]."""
        return Branches(*self._run(_BRANCHES, images))

    def branches_and_feature_map(self, images: NDArray[np.uint8]) -> tuple[Branches, NDArray[np.float32]]:
        """Return the same and the feature maps [N, D, h, w]."""
        *branches, feature_map = self._run((*_BRANCHES, _FEATURE_MAP), images)
        return Branches(*branches), feature_map

    def _run(
        self, outputs: tuple[str, ...], images: NDArray[np.uint8], knobs: NDArray[np.float32] | None = None
    ) -> list[NDArray[Any]]:
        count = len(images)
        size = count
        if self.provider == "cuda":
            size = next(size for size in self._batch_sizes if size >= count)
        if size > count:
            images = np.concatenate([images, np.zeros((size - count, *images.shape[1:]), np.uint8)])
        alpha = strength = np.zeros(size, np.float32)
        if knobs is not None:
            alpha, strength = (np.pad(knob, (0, size - count)) for knob in knobs)
        inputs = {"image": np.ascontiguousarray(images), "alpha": alpha, "prior_strength": strength}
        found = self._call(outputs, inputs)
        return found if size == count else [output[:count] for output in found]

    def _call(self, outputs: tuple[str, ...], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        if self.provider == "cpu":
            results: list[NDArray[Any]] = self._session.run(outputs, inputs)
            return results
        binding = self._session.io_binding()  # copies in and out once, and nothing that was not asked for
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name in outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        bound: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
        return bound

    def _check_contract(self, path: Path) -> None:
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = {value.name: value for value in self._session.get_outputs()}
        if missing := sorted((_INPUTS - set(inputs)) | (set(_CHECKED) - set(outputs))):
            raise BundleError(f"{path} lacks the inputs or outputs {', '.join(missing)}; export the bundle again")
        self.feature_map_shape = _shape_of_one(outputs[_FEATURE_MAP].shape) if _FEATURE_MAP in outputs else None
        classes = outputs["logits"].shape[-1]
        if isinstance(classes, int) and classes != len(self.manifest.classes):
            raise BundleError(
                f"{path} has {classes} classes and the manifest {len(self.manifest.classes)}; export the bundle again"
            )

    def _warm_up(self) -> None:
        spec = self.manifest.input
        for size in self._batch_sizes:
            self.branches(np.zeros((size, spec.height, spec.width, 3), np.uint8))

    def _check_parity(self, bundle: Bundle, path: Path) -> None:
        parity = bundle.parity()
        knobs = np.stack([parity.alpha, parity.prior_strength])
        parts = [
            self._run(_CHECKED, parity.images[rows], knobs[:, rows])
            for rows in _slices(len(parity.images), self._batch_sizes[-1])
        ]
        outputs = {
            name: np.concatenate(arrays) for name, arrays in zip(_CHECKED, zip(*parts, strict=True), strict=True)
        }
        tolerance = PARITY_TOLERANCE[self.precision]
        if wrong := {name: gap for name, gap in parity.gaps(outputs).items() if gap > tolerance}:
            gaps = ", ".join(f"{name} by {gap:.2g}" for name, gap in wrong.items())
            raise BundleError(
                f"{path} on {self.provider} differs from the trained model on the parity samples: {gaps}, and at most "
                f"{tolerance} is tolerated in {self.precision}; export the bundle again or choose another provider"
            )


def _start(
    bundle: Bundle, asked: Literal["auto", "cpu", "cuda"], threads: int
) -> tuple[Provider, Precision, Path, onnxruntime.InferenceSession]:
    provider = _choose(asked)
    precision: Precision = "fp16" if provider == "cuda" and bundle.model_path("fp16") else "fp32"
    path = bundle.model_path(precision)
    assert path is not None, "every bundle has an fp32 model"
    try:
        return provider, precision, path, _open(path, provider, threads)
    except ProviderUnavailable as problem:
        if asked != "auto":
            raise
        logger.warning("provider auto: the model runs on the CPU, since %s", problem)
        return _start(bundle, "cpu", threads)


def _choose(provider: Literal["auto", "cpu", "cuda"]) -> Provider:
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
    if _EXECUTION_PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        return "this build of ONNX Runtime has no CUDA"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"there is no NVIDIA driver ({error})"
    devices = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(devices)) != 0 or devices.value == 0:
        return "the NVIDIA driver finds no GPU"
    return None


def _open(path: Path, provider: Provider, threads: int) -> onnxruntime.InferenceSession:
    onnxruntime.disable_telemetry_events()  # some builds report to their makers; a service tells nobody of itself
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores serve the event loop too
    options.log_severity_level = 3
    chosen: list[Any] = [_EXECUTION_PROVIDERS[provider]]
    if provider == "cuda":
        onnxruntime.preload_dlls()
        chosen = [(_EXECUTION_PROVIDERS["cuda"], {"use_tf32": "0"})]  # TF32 would cost parity in fp32
    try:
        session = onnxruntime.InferenceSession(path, options, providers=chosen)
    except Exception as error:  # ONNX Runtime's own errors have no common base
        raise BundleError(f"{path} cannot be loaded by ONNX Runtime: {error}; export the bundle again") from error
    if session.get_providers()[0] != _EXECUTION_PROVIDERS[provider]:
        raise ProviderUnavailable(
            f"the provider {provider} was asked for, and ONNX Runtime runs {session.get_providers()[0]} instead, "
            "for the reason that it has just written above; install evenkeel[service,gpu], or ask for cpu"
        )
    return session


def _batch_sizes(provider: Provider, largest: int) -> list[int]:
    """Return the batch sizes that are warmed up; on CUDA every batch is padded to one of them.

    A new size costs CUDA a search for the best kernels, and the CPU nothing but the padding.
    """
    if provider == "cpu":
        return sorted({1, largest})
    powers = [1 << exponent for exponent in range(largest.bit_length())]
    return sorted({*powers, largest})


def _shape_of_one(shape: list[int | str | None]) -> tuple[int, ...]:
    return tuple(length if isinstance(length, int) else -1 for length in shape[1:])


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
