"""Hand-written stand-ins: a model that answers from the first pixel, and pictures that hold it."""

import io
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.bundle import Manifest
from service.detector import Outputs
from service.manifest import content_version
from service.scoring import Branches
from tests.service.conftest import CLASSES, make_draft
from tests.service.tiny_detector import make_detection_draft, reference


def make_manifest(**changes: Any) -> Manifest:
    content: dict[str, Any] = make_draft(**changes).model_dump(mode="json")
    content |= {
        "schema_version": 1,
        "models": [{"path": "model.onnx", "precision": "fp32", "sha256": "0" * 64}],
        "files": [{"path": "parity.npz", "sha256": "0" * 64}],
    }
    return Manifest.model_validate(content | {"version": content_version(content)})


def make_detection_manifest(**changes: Any) -> Manifest:
    content: dict[str, Any] = make_detection_draft(**changes).model_dump(mode="json")
    content |= {
        "schema_version": 2,
        "models": [{"path": "model.onnx", "precision": "fp32", "sha256": "0" * 64}],
        "files": [{"path": "parity.npz", "sha256": "0" * 64}],
    }
    return Manifest.model_validate(content | {"version": content_version(content)})


class FakeModel:
    """The red of the first pixel, divided by ten, is the class that wins at alpha 0.

    Its counterfactual logit is 2 and everyone else's 0, so the class after it wins from alpha 1 on.
    """

    provider = "cpu"
    precision = "fp32"
    feature_map_shape = (3, 8, 8)

    def __init__(self) -> None:
        self.manifest = make_manifest()
        self.batches: list[int] = []
        self.failing: Callable[[NDArray[np.uint8]], bool] = lambda images: False
        self.gate = threading.Event()
        self.gate.set()

    def branches(self, images: NDArray[np.uint8]) -> Branches:
        self.gate.wait(20)
        self.batches.append(len(images))
        if self.failing(images):
            raise RuntimeError("out of memory")
        plain = images[:, 0, 0, 0] // 10
        factual = np.zeros((len(images), CLASSES), np.float32)
        counterfactual = np.zeros_like(factual)
        rows = np.arange(len(images))
        factual[rows, plain] = 3
        factual[rows, (plain + 1) % CLASSES] = 1
        counterfactual[rows, plain] = 2
        return Branches(factual, counterfactual, np.full((len(images), 2), 0.5, np.float32))

    def branches_and_feature_map(self, images: NDArray[np.uint8]) -> tuple[Branches, NDArray[np.float32]]:
        """The feature map is the picture."""
        return self.branches(images), images.transpose(0, 3, 1, 2).astype(np.float32)


class FakeDetector:
    """The tiny detector in numpy: how red a picture is times a line over alpha is the score of each of five things."""

    provider = "cpu"
    precision = "fp32"

    def __init__(self) -> None:
        self.manifest = make_detection_manifest()
        self.runs: list[tuple[tuple[int, int], float]] = []
        self.threads: set[str] = set()
        self.spoil: Callable[[Outputs], None] = lambda outputs: None
        self.gate = threading.Event()
        self.gate.set()

    def detect(self, image: NDArray[np.uint8], size: tuple[int, int], alpha: float) -> Outputs:
        self.gate.wait(20)
        self.runs.append((size, alpha))
        self.threads.add(threading.current_thread().name)
        outputs = reference(image, np.array(size, np.float32), alpha)
        self.spoil(outputs)
        return outputs


def picture(winner: int = 0, *, size: tuple[int, int] = (8, 8), kind: str = "PNG", **options: Any) -> bytes:
    """The file of a plain picture that makes the fake model see this winner (exactly so in PNG)."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (winner * 10, 0, 0)).save(buffer, kind, **options)
    return buffer.getvalue()
