"""On a real GPU what the other tests show with sessions that stand for one; without a GPU all of it is skipped."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch

from service.detector import OnnxDetector
from service.model import OnnxModel
from service.session import ProviderUnavailable
from tests.benchmarks.models import CIFAR, bundle_of
from tests.provider import needs_gpu
from tests.service.tiny_detector import HEIGHT, WIDTH, write_detection_bundle
from tests.service.tiny_detector import reference as detected
from tests.service.tiny_model import reference, write_tiny_bundle

HOLDS_A_MODEL = """
import sys
from pathlib import Path
from service.bundle import read_bundle
from service.model import OnnxModel

model = OnnxModel(read_bundle(Path(sys.argv[1])), provider="cuda", max_batch_size=2)
print(model.provider)
"""


@pytest.fixture(autouse=True)
def _gpu() -> None:
    needs_gpu()


@pytest.mark.parametrize("size", [1, 3, 6])
def test_branches_equal_the_reference_also_where_two_batches_run_at_once(tmp_path: Path, size: int) -> None:
    model = OnnxModel(write_tiny_bundle(tmp_path / "tiny"), provider="cuda", max_batch_size=6)
    batches = np.random.default_rng(size).integers(0, 256, (40, size, 8, 8, 3), dtype=np.uint8)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(model.branches, batches))
    for images, branches in zip(batches, found, strict=True):
        expected = reference(images, np.zeros(size), np.zeros(size))
        for name, actual in branches._asdict().items():
            np.testing.assert_allclose(actual, expected[name], rtol=1e-4, atol=1e-4)


def test_half_precision_is_served_where_the_bundle_has_it_and_keeps_its_parity(tmp_path: Path) -> None:
    model = OnnxModel(bundle_of(CIFAR, tmp_path, half=True), provider="cuda", max_batch_size=4)  # refuses what differs
    assert (model.provider, model.precision) == ("cuda", "fp16")


def test_batches_of_every_size_equal_single_pictures_by_graphs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = OnnxModel(bundle_of(CIFAR, tmp_path, half=True), provider="cuda", max_batch_size=16)
    assert "without CUDA graphs" not in caplog.text
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    alone = np.concatenate([model.branches(images[row : row + 1]).factual_logits for row in range(16)])
    for count in (16, 2, 8, 3, 16, 1, 5):
        found = model.branches(images[:count]).factual_logits
        np.testing.assert_allclose(found, alone[:count], rtol=1e-2, atol=1e-2)
        maps = model.branches_and_feature_map(images[:count])[1]  # by no graph, in memory that graphs use too
        assert np.isfinite(maps).all()


def test_models_are_loaded_and_let_go_beside_one_that_runs_and_none_disturbs_it(tmp_path: Path) -> None:
    bundle, images = bundle_of(CIFAR, tmp_path, half=True), np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3))
    model, batch, over = OnnxModel(bundle, provider="cuda", max_batch_size=8), images.astype(np.uint8), Event()
    expected = model.branches(batch)

    def run() -> int:
        runs = 0
        while not over.is_set():
            for count in (8, 1):
                found = model.branches(batch[:count])
                np.testing.assert_allclose(found.factual_logits, expected.factual_logits[:count], rtol=1e-2, atol=1e-2)
            model.branches_and_feature_map(batch)
            runs += 1
        return runs

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(run) for _ in range(2)]
        try:
            for _ in range(4):
                other = OnnxModel(bundle, provider="cuda", max_batch_size=8)
                np.testing.assert_allclose(other.branches(batch).factual_logits, expected.factual_logits, atol=1e-2)
                del other
        finally:
            over.set()
        assert all(each.result() > 20 for each in running)


def test_a_process_that_has_a_model_ends_as_any_other(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    command = [sys.executable, "-c", HOLDS_A_MODEL, str(bundle.path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "cuda\n", "")


def test_feature_maps_come_where_they_are_asked_for(tmp_path: Path) -> None:
    model = OnnxModel(write_tiny_bundle(tmp_path / "tiny"), provider="cuda", max_batch_size=4)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    branches, feature_map = model.branches_and_feature_map(images)
    np.testing.assert_allclose(branches.factual_logits, model.branches(images).factual_logits, rtol=1e-5, atol=1e-5)
    expected = (images.astype(np.float32) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(feature_map, expected.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 1.5, 3.0])
def test_detections_equal_the_reference(tmp_path: Path, alpha: float) -> None:
    model = OnnxDetector(write_detection_bundle(tmp_path / "tiny"), provider="cuda")
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, :9] = 200
    found, expected = model.detect(image, (HEIGHT, 9), alpha), detected(image, np.array((HEIGHT, 9), np.float32), alpha)
    assert found["count"] == expected["count"] > 0
    for name, actual in found.items():
        np.testing.assert_allclose(actual, expected[name], rtol=1e-4, atol=1e-4)


@pytest.fixture
def full() -> Iterator[None]:
    """Leave no memory on the GPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs a torch that fills a GPU")
    taken, size = [], 1 << 34
    while size >= 1 << 20:
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
    yield
    taken.clear()
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("full")
def test_a_gpu_without_memory_is_refused_with_the_remedy_and_auto_takes_the_cpu(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    with pytest.raises(ProviderUnavailable, match="does not run on cuda in a session for each batch size of 1, 2, 4"):
        OnnxModel(bundle, provider="cuda", max_batch_size=4)
    assert OnnxModel(bundle, provider="auto", max_batch_size=4).provider == "cpu"
