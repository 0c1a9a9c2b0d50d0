"""Lanes with what stands for a GPU; tests/service/test_gpu.py has the real one."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from service.lanes import RUN_OPTIONS, Lanes
from tests.service.fake_cuda import SessionOnTheCpu
from tests.service.tiny_model import write_tiny_bundle

OUTPUTS = ("factual_logits", "confounder_cosine")
PATIENCE = 10


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny").path / "model.onnx"


def open_lanes(model: Path, *sizes: int) -> Lanes:
    providers = [("CUDAExecutionProvider", {"enable_cuda_graph": "1"})]
    return Lanes(lambda: onnxruntime.InferenceSession(model, None, providers), sizes, 2)


def batch(size: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    images = np.random.default_rng(seed).integers(0, 256, (size, 8, 8, 3), dtype=np.uint8)
    return {"image": images, "alpha": np.zeros(size, np.float32), "prior_strength": np.zeros(size, np.float32)}


class Gate:
    """Holds up runs of some sessions until it is opened.

    Attributes:
        reached: so many runs are held up.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *held: SessionOnTheCpu, captures: bool = False) -> None:
        self.reached = threading.Semaphore(0)
        self.is_open = threading.Event()
        run = SessionOnTheCpu.run_with_iobinding

        def run_once_open(session: SessionOnTheCpu, binding: Any, options: Any) -> None:
            if session in held or (captures and options is RUN_OPTIONS and session.graph is None):
                self.reached.release()
                assert self.is_open.wait(PATIENCE)
            run(session, binding, options)

        monkeypatch.setattr(SessionOnTheCpu, "run_with_iobinding", run_once_open)


def test_two_full_batches_run_beside_each_other_and_one_that_is_not_full_in_the_first_lane_alone(
    model: Path, cuda: list[SessionOnTheCpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = open_lanes(model, 1, 2)
    one, full, beside = cuda
    assert [lanes.count(size) for size in (1, 2, 3)] == [1, 2, 0]
    expected = lanes.run(OUTPUTS, batch(2))
    gate = Gate(monkeypatch, full, beside)
    with ThreadPoolExecutor(3) as pool:
        two = [pool.submit(lanes.run, OUTPUTS, batch(2)) for _ in range(2)]
        for _ in two:
            assert gate.reached.acquire(timeout=PATIENCE)
        alone = pool.submit(lanes.run, OUTPUTS, batch(1))
        assert one.sizes == []
        gate.is_open.set()
        for run in two:
            for found, wanted in zip(run.result(PATIENCE), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)
        alone.result(PATIENCE)
    assert (one.sizes, full.sizes, beside.sizes) == ([1], [2, 2], [2])


def test_a_run_that_fails_is_told_to_who_asked_and_the_lane_goes_on(model: Path, cuda: list[SessionOnTheCpu]) -> None:
    lanes = open_lanes(model, 1)
    with pytest.raises(Exception, match="no_such_output"):
        lanes.run(("no_such_output",), batch(1))
    with pytest.raises(Exception, match="image"):
        lanes.run(OUTPUTS, {"image": np.zeros((1, 8), np.uint8)})
    assert len(lanes.run(OUTPUTS, batch(1))[0]) == 1


def test_nothing_is_opened_or_let_go_while_a_graph_is_captured_but_runs_go_on(
    model: Path, cuda: list[SessionOnTheCpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving, leaving, capturing = (open_lanes(model, 1) for _ in range(3))
    serving.capture(OUTPUTS, batch(1))
    before = set(threading.enumerate())
    gate = Gate(monkeypatch, captures=True)
    with ThreadPoolExecutor(2) as pool:
        capture = pool.submit(capturing.capture, OUTPUTS, batch(1))
        assert gate.reached.acquire(timeout=PATIENCE)
        del leaving
        opening = pool.submit(open_lanes, model, 1)
        for seed in range(20):
            serving.run(OUTPUTS, batch(1, seed))
        assert (len(cuda), opening.done()) == (6, False)
        assert not before - set(threading.enumerate()), "a thread has ended, and with it its sessions"
        gate.is_open.set()
        capture.result(PATIENCE)
        opening.result(PATIENCE)
    assert len(cuda) == 8
