import gc
import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from service.bundle import Bundle, BundleError, Parity
from service.lanes import RUN_OPTIONS
from service.model import OnnxModel
from service.session import ProviderUnavailable
from tests.service.fake_cuda import SessionOnTheCpu
from tests.service.tiny_model import reference, tiny_parity, write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "tiny")


@pytest.mark.parametrize("size", [1, 3, 8])
def test_branches_equal_the_reference(bundle: Bundle, size: int) -> None:
    model = OnnxModel(bundle, provider="cpu", max_batch_size=8)
    images = np.random.default_rng(size).integers(0, 256, (size, 8, 8, 3), dtype=np.uint8)
    expected = reference(images, np.zeros(size), np.zeros(size))
    for name, actual in model.branches(images)._asdict().items():
        np.testing.assert_allclose(actual, expected[name], rtol=1e-4, atol=1e-4)


def test_a_batch_equals_single_pictures(bundle: Bundle) -> None:
    model = OnnxModel(bundle, provider="cpu")
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    together = model.branches(images).factual_logits
    alone = np.concatenate([model.branches(images[row : row + 1]).factual_logits for row in range(5)])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)


def test_more_parity_samples_than_a_batch_are_checked_in_parts(tmp_path: Path) -> None:
    OnnxModel(write_tiny_bundle(tmp_path / "tiny", parity=tiny_parity(11)), provider="cpu", max_batch_size=4)


@pytest.mark.parametrize("field", ["logits", "factual_logits", "counterfactual_logits", "confounder_cosine"])
def test_a_model_that_differs_from_its_parity_samples_is_refused(tmp_path: Path, field: str) -> None:
    wrong: Parity = replace(tiny_parity(), **{field: getattr(tiny_parity(), field) + np.float32(0.1)})
    with pytest.raises(BundleError, match=f"differs from the trained model on the parity samples: {field} by"):
        OnnxModel(write_tiny_bundle(tmp_path / "tiny", parity=wrong), provider="cpu")


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x08"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny", model=content)
    with pytest.raises(BundleError, match=r"model\.onnx (cannot be loaded|lacks)"):
        OnnxModel(bundle, provider="cpu")


def test_a_model_of_another_contract_is_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("image", "logits")]
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["logits"])], "g", tensors[:1], tensors[1:])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    bundle = write_tiny_bundle(tmp_path / "tiny", model=model.SerializeToString())
    with pytest.raises(BundleError, match="lacks the inputs or outputs confounder_cosine, counterfactual_logits, fact"):
        OnnxModel(bundle, provider="cpu")


def no_cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])


def test_cuda_that_is_not_there_is_refused_with_the_reason(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    no_cuda_build(monkeypatch)
    with pytest.raises(ProviderUnavailable, match="cuda was asked for, and this build of ONNX Runtime has no CUDA"):
        OnnxModel(bundle, provider="cuda")


def test_a_session_that_fell_back_silently_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    fallen_back(monkeypatch)
    opened: list[Path] = []
    opened_by(monkeypatch, lambda path, _: opened.append(path))
    with pytest.raises(ProviderUnavailable, match="ONNX Runtime runs CPUExecutionProvider instead"):
        OnnxModel(bundle, provider="cuda")
    assert len(opened) == 1, "without a graph it would not be otherwise"


def test_auto_takes_the_cpu_where_cuda_fails_and_says_so(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    fallen_back(monkeypatch)
    assert OnnxModel(bundle, provider="auto").provider == "cpu"
    assert "provider auto: the model runs on the CPU" in caplog.text


def opened_by(monkeypatch: pytest.MonkeyPatch, before: Callable[[Path, str], None]) -> None:
    """Have something done before each session is opened, which is told the file and the provider."""
    open_session = onnxruntime.InferenceSession

    def opened(path: Path, options: Any, providers: list[Any]) -> Any:
        before(path, providers[0] if isinstance(providers[0], str) else providers[0][0])
        return open_session(path, options, providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)


def no_room_for_a_third_session(monkeypatch: pytest.MonkeyPatch, cuda: list[SessionOnTheCpu]) -> None:
    def before(path: Path, provider: str) -> None:
        if provider == "CUDAExecutionProvider" and len(cuda) == 2:
            raise RuntimeError("CUDA failure 2:\nout of memory")

    opened_by(monkeypatch, before)


def no_room_for_the_first_run(monkeypatch: pytest.MonkeyPatch, cuda: list[SessionOnTheCpu]) -> None:
    no_room_for_runs_after(0, monkeypatch)


def no_room_for_the_parity_check(monkeypatch: pytest.MonkeyPatch, cuda: list[SessionOnTheCpu]) -> None:
    no_room_for_runs_after(1, monkeypatch)


def no_room_for_runs_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SessionOnTheCpu.run_with_iobinding

    def run_if_there_is_room(session: SessionOnTheCpu, binding: Any, options: Any) -> None:
        if len(session.sizes) >= count:
            raise RuntimeError("CUDA failure 2: out of memory")
        run(session, binding, options)

    monkeypatch.setattr(SessionOnTheCpu, "run_with_iobinding", run_if_there_is_room)


@pytest.mark.parametrize(
    "shortage", [no_room_for_a_third_session, no_room_for_the_first_run, no_room_for_the_parity_check]
)
def test_a_gpu_too_small_for_the_sessions_is_named_and_auto_takes_the_cpu(
    bundle: Bundle, cuda: list[SessionOnTheCpu], monkeypatch: pytest.MonkeyPatch, caplog: Any, shortage: Any
) -> None:
    shortage(monkeypatch, cuda)
    said = (
        "does not run on cuda in a session for each batch size of 1, 2, 4, 6: CUDA failure 2: out of memory; "
        "lower EVENKEEL_MAX_BATCH_SIZE if the GPU's memory is full, or ask for cpu"
    )
    with pytest.raises(ProviderUnavailable, match=said):
        OnnxModel(bundle, provider="cuda", max_batch_size=6)
    cuda.clear()
    model = OnnxModel(bundle, provider="auto", max_batch_size=6)
    assert model.provider == "cpu"
    assert f"provider auto: the model runs on the CPU, since {bundle.model_path('fp32')} {said}" in caplog.text
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    expected = reference(images, np.zeros(5), np.zeros(5))
    np.testing.assert_allclose(model.branches(images).factual_logits, expected["factual_logits"], rtol=1e-4, atol=1e-4)


def test_a_driver_that_lets_no_thread_stay_out_of_captures_is_as_good_as_none(
    bundle: Bundle, cuda: list[SessionOnTheCpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise RuntimeError("the NVIDIA driver answers with error 801")

    monkeypatch.setattr("service.lanes.take_no_part_in_captures", refuse)
    with pytest.raises(
        ProviderUnavailable, match=r"does not run on cuda .*: the NVIDIA driver answers with error 801; "
    ):
        OnnxModel(bundle, provider="cuda", max_batch_size=4)
    assert OnnxModel(bundle, provider="auto", max_batch_size=4).provider == "cpu"


@pytest.mark.parametrize("flaw", ["a capture", "an opening"])
def test_nothing_is_left_of_sessions_with_graphs_when_those_without_are_opened(
    bundle: Bundle, cuda: list[SessionOnTheCpu], monkeypatch: pytest.MonkeyPatch, flaw: str
) -> None:
    known: list[weakref.ref[Any]] = []
    left: list[int] = []
    real, run = onnxruntime.InferenceSession, SessionOnTheCpu.run_with_iobinding

    def opened(path: Path, options: Any, providers: list[Any]) -> Any:
        has_graph = providers[0][1]["enable_cuda_graph"] == "1"
        if not has_graph:
            left.append(sum(session() is not None for session in known))
        if has_graph and len(known) == 3 and flaw == "an opening":
            raise RuntimeError("out of memory")
        session = real(path, options, providers)
        cuda.clear()
        if has_graph:
            known.append(weakref.ref(session))
        return session

    def run_but_not_the_last(session: SessionOnTheCpu, binding: Any, options: Any) -> None:
        if options is RUN_OPTIONS and session is known[-1]():
            raise RuntimeError("out of memory")
        run(session, binding, options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    monkeypatch.setattr(SessionOnTheCpu, "run_with_iobinding", run_but_not_the_last)
    assert OnnxModel(bundle, provider="cuda", max_batch_size=4).provider == "cuda"
    assert (len(known), left) == (3 + (flaw == "a capture"), [0, 0, 0, 0])


@pytest.mark.parametrize("provider", ["cuda", "auto"])
def test_a_file_that_is_no_model_is_no_fault_of_the_gpu(
    tmp_path: Path, cuda: list[SessionOnTheCpu], provider: Any, caplog: Any
) -> None:
    with pytest.raises(BundleError, match=r"model\.onnx cannot be loaded"):
        OnnxModel(write_tiny_bundle(tmp_path / "tiny", model=b"no model"), provider=provider)
    assert not caplog.text


def test_what_is_not_asked_of_a_file_is_left_out_once_for_all_sessions(
    bundle: Bundle, cuda: list[SessionOnTheCpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[Path] = []
    opened_by(monkeypatch, lambda path, _: files.append(path))
    OnnxModel(bundle, provider="cuda", max_batch_size=4)
    assert len(files) == 4
    assert len({*files, bundle.model_path("fp32")}) == 2


def test_on_cuda_a_session_never_sees_a_batch_of_another_size(bundle: Bundle, cuda: list[SessionOnTheCpu]) -> None:
    model = OnnxModel(bundle, provider="cuda", max_batch_size=6)
    warm = [session.sizes for session in cuda]
    assert [set(sizes) for sizes in warm] == [{1}, {2}, {4}, {6}, {6}]
    samples = len(bundle.parity().images)
    parts = [-(-samples // size) for size in (1, 2, 4, 6, 6)]
    assert [len(sizes) for sizes in warm] == [2 + count for count in parts]  # planned, captured, then checked

    for session in cuda:
        session.sizes.clear()
    for count in (3, 1, 6, 5, 2):
        assert_branches(model, count)
    assert [session.sizes for session in cuda] == [[1], [2], [4], [6, 6], []]


def assert_branches(model: OnnxModel, count: int) -> None:
    """See that the branches of so many pictures are right."""
    images = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    expected = reference(images, np.zeros(count), np.zeros(count))
    for name, actual in model.branches(images)._asdict().items():
        np.testing.assert_allclose(actual, expected[name], rtol=1e-4, atol=1e-4)


def test_on_cuda_branches_come_by_a_graph_and_stay_what_they_are_when_it_runs_again(
    bundle: Bundle, cuda: list[SessionOnTheCpu]
) -> None:
    model = OnnxModel(bundle, provider="cuda", max_batch_size=2)
    graphs = [session.graph for session in cuda]
    assert all(graphs)
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 8, 8, 3), dtype=np.uint8)
    first = model.branches(images[0])
    branches, feature_map = model.branches_and_feature_map(images[1])  # which no graph gives
    model.branches(images[2])
    for found, given in ((first, images[0]), (branches, images[1])):
        expected = reference(given, np.zeros(2), np.zeros(2))
        for name, actual in found._asdict().items():
            np.testing.assert_allclose(actual, expected[name], rtol=1e-4, atol=1e-4)
    pixels = (images[1].astype(np.float32) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(feature_map, pixels.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-4)
    assert [session.graph for session in cuda] == graphs


def no_graph_at_all(monkeypatch: pytest.MonkeyPatch, cuda: list[SessionOnTheCpu]) -> str:
    open_session = onnxruntime.InferenceSession

    def opened(path: Path, options: Any, providers: list[Any]) -> Any:
        if providers[0][1]["enable_cuda_graph"] == "1":
            raise RuntimeError("This session cannot use the graph capture feature")
        return open_session(path, options, providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    return "This session cannot use the graph capture feature"


def no_capture(monkeypatch: pytest.MonkeyPatch, cuda: list[SessionOnTheCpu]) -> str:
    run = SessionOnTheCpu.run_with_iobinding

    def run_but_into_no_graph(session: SessionOnTheCpu, binding: Any, options: Any) -> None:
        if options is RUN_OPTIONS:
            raise RuntimeError("operation not permitted when stream is capturing")
        run(session, binding, options)

    monkeypatch.setattr(SessionOnTheCpu, "run_with_iobinding", run_but_into_no_graph)
    return "operation not permitted when stream is capturing"


def a_wrong_graph(monkeypatch: pytest.MonkeyPatch, cuda: list[SessionOnTheCpu]) -> str:
    run = SessionOnTheCpu.run_with_iobinding

    def run_graphs_wrongly(session: SessionOnTheCpu, binding: Any, options: Any) -> None:
        if session.graph:
            run_on_black_pictures(session, binding)
        run(session, binding, options)

    monkeypatch.setattr(SessionOnTheCpu, "run_with_iobinding", run_graphs_wrongly)
    return "its answers to the parity samples differ: logits by"


def run_on_black_pictures(session: SessionOnTheCpu, binding: Any) -> None:
    binding.bind_cpu_input("image", np.zeros((session.sizes[0], 8, 8, 3), np.uint8))


@pytest.mark.parametrize("flaw", [no_graph_at_all, no_capture, a_wrong_graph])
def test_a_model_that_becomes_no_graph_runs_on_cuda_without_one_and_the_log_says_why(
    bundle: Bundle, cuda: list[SessionOnTheCpu], monkeypatch: pytest.MonkeyPatch, caplog: Any, flaw: Any
) -> None:
    reason = flaw(monkeypatch, cuda)
    model = OnnxModel(bundle, provider="cuda", max_batch_size=4)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert said[0].startswith(f"tiny runs on cuda without CUDA graphs, more slowly, since {reason}")
    assert model.provider == "cuda"
    for count in (4, 1, 3):
        assert_branches(model, count)
    assert all(session.graph is None for session in cuda[-4:])


def test_a_model_on_cuda_leaves_no_session_behind(bundle: Bundle, cuda: list[SessionOnTheCpu]) -> None:
    before = set(threading.enumerate())
    model = OnnxModel(bundle, provider="cuda", max_batch_size=2)
    known = [weakref.ref(session) for session in cuda]
    threads = set(threading.enumerate()) - before
    assert (len(known), len(threads)) == (3, 2)
    cuda.clear()
    del model
    gc.collect()
    for thread in threads:  # in which the sessions are let go
        thread.join(10)
    assert not any(reference() for reference in known)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("wrong", range(4))
def test_on_cuda_each_session_is_checked_for_parity(
    bundle: Bundle, cuda: list[SessionOnTheCpu], monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    run = SessionOnTheCpu.run_with_iobinding

    def run_wrongly(session: SessionOnTheCpu, binding: Any, options: Any) -> None:
        if cuda.index(session) % 4 == wrong and session.sizes:  # of those for 1, 2, 4 and once more 4; with a graph
            run_on_black_pictures(session, binding)  # and without
        run(session, binding, options)

    monkeypatch.setattr(SessionOnTheCpu, "run_with_iobinding", run_wrongly)
    with pytest.raises(BundleError, match="on cuda differs from the trained model"):
        OnnxModel(bundle, provider="cuda", max_batch_size=4)
    assert len(cuda) == 8


def test_on_cuda_fusions_without_a_plan_fill_no_log(
    bundle: Bundle, cuda: list[SessionOnTheCpu], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_to: list[tuple[int, int, int]] = []
    monkeypatch.setattr(
        onnxruntime,
        "set_default_logger_severity",
        lambda level: set_to.append((level, len(cuda), sum(len(one.sizes) for one in cuda))),
    )
    with caplog.at_level(logging.INFO, "service.session"):
        OnnxModel(bundle, provider="cuda", max_batch_size=4)
    (fatal, opened, runs), (warning, _, all_runs) = set_to
    assert (fatal, opened, runs) == (4, 4, 0), "why a session does not open is still written"
    assert (warning, all_runs > 4) == (2, True), "and what fails later"
    with caplog.at_level(logging.DEBUG, "service.session"):
        OnnxModel(bundle, provider="cuda", max_batch_size=4)
    assert len(set_to) == 2


def test_the_cpu_has_one_session(bundle: Bundle, cuda: list[SessionOnTheCpu]) -> None:
    OnnxModel(bundle, provider="cpu", max_batch_size=4)
    assert len(cuda) == 1


def fallen_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver seems fine, and yet ONNX Runtime quietly opens a session on the CPU."""
    real = onnxruntime.InferenceSession
    monkeypatch.setattr("service.session._cuda_problem", lambda: None)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, options, providers: real(path, options, ["CPUExecutionProvider"])
    )
