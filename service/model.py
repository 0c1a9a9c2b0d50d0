"""OnnxModel: the bundle's model in ONNX Runtime, on the provider that was asked for, warm and checked, or not at all.

It knows nothing of queues or HTTP, and nothing of knobs beyond the parity check: `branches` gives both branch
logits, from which any alpha follows. So the graph's own logits are not run.
"""

import logging
from math import ceil
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.bundle import PARITY_TOLERANCE, Bundle, BundleError, Manifest, Parity
from service.scoring import Branches
from service.session import LANES, Asked, NoGraph, OnnxSession, start_on

logger = logging.getLogger(__name__)

_KNOBS = ("alpha", "prior_strength")
_BRANCHES = ("factual_logits", "counterfactual_logits", "confounder_cosine")
_FEATURE_MAP = "feature_map"
OUTPUTS = (*_BRANCHES, _FEATURE_MAP)
"""What is asked of a model file; its logits follow from the branches."""


class Served(Protocol):
    """What the app needs of a model, whatever its task."""

    @property
    def manifest(self) -> Manifest:
        """What the model is."""

    @property
    def provider(self) -> str:
        """What runs it."""

    @property
    def precision(self) -> str:
        """The precision of its weights."""


class Model(Served, Protocol):
    """What the app needs of a classifier."""

    def branches(self, images: NDArray[np.uint8]) -> Branches:
        """Return both branch logits and the cosines of N pictures, uint8 [N, H, W, 3]."""

    @property
    def feature_map_shape(self) -> tuple[int, ...] | None:
        """The shape of one picture's feature map, -1 where it is free; None: there is no such output."""

    def branches_and_feature_map(self, images: NDArray[np.uint8]) -> tuple[Branches, NDArray[np.float32]]:
        """Return the same and the feature maps [N, D, h, w], which cost a copy."""


class OnnxModel:
    """A classifier on one device.

    Args:
        bundle: a verified bundle.
        provider: `cuda` refuses to start without it; `auto` takes it where the model runs there, and says in the log
            why it does not.
        threads: threads within an operator; None: the cores that this process may really use.
        max_batch_size: the largest batch that will be run.

    Raises:
        ProviderUnavailable: CUDA was asked for and does not run the model.
        BundleError: the file is no such model, or fails the parity check.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: Asked,
        threads: int | None = None,
        max_batch_size: int = 32,
    ) -> None:
        self.manifest = bundle.manifest
        start_on(provider, lambda asked: self._start(bundle, asked, threads, max_batch_size))

    def _start(self, bundle: Bundle, asked: Asked, threads: int | None, max_batch_size: int) -> None:
        try:
            self._load(bundle, asked, threads, max_batch_size, graphs=True)
        except NoGraph as problem:
            reason = " ".join(str(problem).split())
        else:
            return
        if session := vars(self).pop("_session", None):
            session.close()  # there may be no room for both
        self._load(bundle, asked, threads, max_batch_size, graphs=False)
        logger.warning(
            "%s runs on cuda without CUDA graphs, more slowly, since %s; if the GPU's memory was full, lower "
            "EVENKEEL_MAX_BATCH_SIZE",
            *(self.manifest.name, reason),
        )

    def _load(self, bundle: Bundle, asked: Asked, threads: int | None, max_batch_size: int, *, graphs: bool) -> None:
        begin = perf_counter()
        sizes = _cuda_sizes(max_batch_size)
        self._session = OnnxSession(bundle, asked, threads, OUTPUTS, sizes, lanes=LANES, graphs=graphs)
        self.provider, self.precision = self._session.provider, self._session.precision
        self._batch_sizes = sizes if self.provider == "cuda" else sorted({1, max_batch_size})
        self._check_contract()
        loaded = perf_counter()
        with self._session.trial():
            self._warm_up()
            warm = perf_counter()
            self._check_parity(bundle)
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

    def _run(self, outputs: tuple[str, ...], images: NDArray[np.uint8], turn: int | None = None) -> list[NDArray[Any]]:
        count = len(images)
        size = count
        if self.provider == "cuda":
            size = next(size for size in self._batch_sizes if size >= count)
        if size > count:
            images = np.concatenate([images, np.zeros((size - count, *images.shape[1:]), np.uint8)])
        found = self._session.run(outputs, self._inputs(images), turn)
        return found if size == count else [output[:count] for output in found]

    def _inputs(self, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        knobs = {name: np.zeros(len(images), np.float32) for name in self._knobs}
        return {"image": np.ascontiguousarray(images), **knobs}

    def _check_contract(self) -> None:
        self._session.refuse_without({"image"}, set(_BRANCHES))
        outputs, path = self._session.outputs, self._session.path
        self._knobs = [name for name in _KNOBS if name in self._session.inputs]  # some graphs count a knob's rows
        self.feature_map_shape = _shape_of_one(outputs[_FEATURE_MAP]) if _FEATURE_MAP in outputs else None
        classes = outputs["factual_logits"][-1]
        if isinstance(classes, int) and classes != len(self.manifest.classes):
            raise BundleError(
                f"{path} has {classes} classes and the manifest {len(self.manifest.classes)}; export the bundle again"
            )

    def _warm_up(self) -> None:
        spec = self.manifest.input
        for size in self._batch_sizes:
            images = np.zeros((size, spec.height, spec.width, 3), np.uint8)
            self._session.first_run(_BRANCHES, self._inputs(images))

    def _check_parity(self, bundle: Bundle) -> None:
        """Check every session on CUDA, as each has kernels of its own, and the CPU once."""
        parity, log_class_share = bundle.parity(), self.manifest.log_class_share()
        once = min(self._batch_sizes[-1], len(parity.images))
        for size in self._batch_sizes if self.provider == "cuda" else [once]:
            for turn in self._session.turns(size):
                branches = self._branches_in_batches(parity.images, size, turn)
                logits = _logits(branches, parity, log_class_share)
                gaps = parity.gaps({**branches._asdict(), "logits": logits})
                self._session.refuse_gaps(gaps, PARITY_TOLERANCE[self.precision])

    def _branches_in_batches(self, images: NDArray[np.uint8], size: int, turn: int) -> Branches:
        """Return the branches of N pictures, run in full batches of this size: the last begins again at the first."""
        count = len(images)
        rows = np.arange(ceil(count / size) * size).reshape(-1, size) % count
        parts = [self._run(_BRANCHES, images[batch], turn) for batch in rows]
        return Branches(*(np.concatenate(part)[:count] for part in zip(*parts, strict=True)))


def _logits(branches: Branches, parity: Parity, log_class_share: NDArray[np.float64]) -> NDArray[Any]:
    """Apply the samples' knobs, as they are applied to every answer; none where the branches have another shape."""
    factual, counterfactual, _ = branches
    if not factual.shape == counterfactual.shape == parity.logits.shape:
        return factual[:0]
    logits: NDArray[Any] = factual - parity.alpha[:, None] * counterfactual
    return logits - parity.prior_strength[:, None] * log_class_share


def _cuda_sizes(largest: int) -> list[int]:
    """Return the sizes that a batch is padded to on CUDA, each of which costs a session; the CPU takes any size."""
    powers = [1 << exponent for exponent in range(largest.bit_length())]
    return sorted({*powers, largest})


def _shape_of_one(shape: list[int | str | None]) -> tuple[int, ...]:
    return tuple(length if isinstance(length, int) else -1 for length in shape[1:])
