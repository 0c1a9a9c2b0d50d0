"""Lanes with what stands for a GPU; tests/service/test_gpu.py has the real one."""

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import finalize, ref

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from service.lanes import RUN_OPTIONS, Lanes, _alone, take_no_part_in_captures
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


def threads_of(open_some: Callable[[], Lanes]) -> tuple[Lanes, set[threading.Thread]]:
    """Return lanes and their threads."""
    before = set(threading.enumerate())
    lanes = open_some()
    return lanes, {thread for thread in set(threading.enumerate()) - before if thread.name == "cuda"}


@contextmanager
def without_collection() -> Iterator[None]:
    """Have nothing let go of but what nobody knows any more."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


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


def test_a_graph_refuses_what_it_would_take_for_something_else(model: Path, cuda: list[SessionOnTheCpu]) -> None:
    lanes = open_lanes(model, 2)
    lanes.prepare(OUTPUTS, batch(2), graph=True)
    right = batch(2)
    for wrong in (right["image"].astype(np.int64), right["image"].reshape(2, 4, 16, 3)):
        with pytest.raises(ValueError, match=r"the graph takes \{'image': \(dtype\('uint8'\), \(2, 8, 8, 3\)\)"):
            lanes.run(OUTPUTS, {**right, "image": wrong})
    assert len(lanes.run(OUTPUTS, right)[0]) == 2


def test_sessions_go_with_the_lanes_also_after_a_run_that_failed_and_while_nothing_is_captured(
    model: Path, cuda: list[SessionOnTheCpu]
) -> None:
    with without_collection():
        lanes, threads = threads_of(lambda: open_lanes(model, 1, 2))
        gone: list[tuple[bool, bool]] = []
        for session in cuda:
            finalize(session, lambda: gone.append((threading.current_thread() in threads, _alone.locked())))
        cuda.clear()
        del session
        for size in (1, 2, 2):
            try:
                lanes.run(("no_such_output",), batch(size))
            except Exception as error:
                assert "no_such_output" in str(error)
        del lanes
        for thread in threads:
            thread.join(PATIENCE)
        assert gone == [(True, True)] * 3


def test_lanes_that_are_closed_have_no_session_left(model: Path, cuda: list[SessionOnTheCpu]) -> None:
    lanes, threads = threads_of(lambda: open_lanes(model, 1, 2))
    known = [ref(session) for session in cuda]
    cuda.clear()
    lanes.close()
    assert [session() for session in known] == [None] * 3
    assert not any(thread.is_alive() for thread in threads)
    with pytest.raises(RuntimeError, match="the lane has ended"):
        lanes.run(OUTPUTS, batch(1))


def test_a_lane_that_hangs_is_left_to_itself_and_the_log_says_so(
    model: Path, cuda: list[SessionOnTheCpu], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr("service.lanes._PATIENCE", 0.1)
    lanes = open_lanes(model, 1)
    gate = Gate(monkeypatch, cuda[0])
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(lanes.run, OUTPUTS, batch(1))
        assert gate.reached.acquire(timeout=PATIENCE)
        lanes.close()
        assert caplog.text.count("has not let its sessions go in 0.1 s") == 1
        gate.is_open.set()
        hanging.result(PATIENCE)


def test_where_one_session_does_not_open_none_is_left_though_the_error_is_kept(
    model: Path, cuda: list[SessionOnTheCpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnxruntime.InferenceSession
    known: list[ref[Any]] = []

    def opened(*arguments: Any) -> Any:
        if len(known) == 2:
            raise RuntimeError("out of memory")
        known.append(ref(session := real(*arguments)))
        cuda.clear()
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    with without_collection(), pytest.raises(RuntimeError, match="out of memory") as kept:
        open_lanes(model, 1, 2)
    assert kept.value
    assert [session() for session in known] == [None, None]


def test_a_driver_that_refuses_threads_that_take_no_part_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SimpleNamespace(cuThreadExchangeStreamCaptureMode=lambda mode: 801)
    monkeypatch.setattr("service.lanes.ctypes.CDLL", lambda name: driver)
    with pytest.raises(
        RuntimeError, match="the NVIDIA driver answers cuThreadExchangeStreamCaptureMode with error 801"
    ):
        take_no_part_in_captures()


def test_nothing_is_opened_or_let_go_while_a_graph_is_captured_but_runs_go_on(
    model: Path, cuda: list[SessionOnTheCpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving, capturing = open_lanes(model, 1), open_lanes(model, 1)
    serving.prepare(OUTPUTS, batch(1), graph=True)
    leaving, threads = threads_of(lambda: open_lanes(model, 1))
    gate = Gate(monkeypatch, captures=True)
    with ThreadPoolExecutor(2) as pool:
        capture = pool.submit(capturing.prepare, OUTPUTS, batch(1), graph=True)
        assert gate.reached.acquire(timeout=PATIENCE)
        del leaving
        opening = pool.submit(open_lanes, model, 1)
        for seed in range(20):
            serving.run(OUTPUTS, batch(1, seed))
        assert (len(cuda), opening.done()) == (6, False)
        assert all(thread.is_alive() for thread in threads), "one has ended, and with it its session"
        gate.is_open.set()
        capture.result(PATIENCE)
        opening.result(PATIENCE)
    assert len(cuda) == 8
