import gc
import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from service.bundle import Bundle, BundleError, Parity
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
    with pytest.raises(ProviderUnavailable, match="ONNX Runtime runs CPUExecutionProvider instead"):
        OnnxModel(bundle, provider="cuda")


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

    def run_if_there_is_room(session: SessionOnTheCpu, binding: Any) -> None:
        if len(session.sizes) >= count:
            raise RuntimeError("CUDA failure 2: out of memory")
        run(session, binding)

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


@pytest.mark.parametrize("provider", ["cuda", "auto"])
def test_a_file_that_is_no_model_is_no_fault_of_the_gpu(
    tmp_path: Path, cuda: list[SessionOnTheCpu], provider: Any
) -> None:
    with pytest.raises(BundleError, match=r"model\.onnx cannot be loaded"):
        OnnxModel(write_tiny_bundle(tmp_path / "tiny", model=b"no model"), provider=provider)


def test_what_is_not_asked_of_a_file_is_left_out_once_for_all_sessions(
    bundle: Bundle, cuda: list[SessionOnTheCpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[Path] = []
    opened_by(monkeypatch, lambda path, _: files.append(path))
    OnnxModel(bundle, provider="cuda", max_batch_size=4)
    assert len(files) == 3
    assert len({*files, bundle.model_path("fp32")}) == 2


def test_on_cuda_a_session_never_sees_a_batch_of_another_size(bundle: Bundle, cuda: list[SessionOnTheCpu]) -> None:
    model = OnnxModel(bundle, provider="cuda", max_batch_size=6)
    warm = [session.sizes for session in cuda]
    assert [set(sizes) for sizes in warm] == [{1}, {2}, {4}, {6}]
    samples = len(bundle.parity().images)
    assert [len(sizes) for sizes in warm] == [1 + -(-samples // size) for size in (1, 2, 4, 6)]  # warmed, then checked

    for session in cuda:
        session.sizes.clear()
    for count in (3, 1, 6, 5, 2):
        images = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        expected = reference(images, np.zeros(count), np.zeros(count))
        for name, actual in model.branches(images)._asdict().items():
            np.testing.assert_allclose(actual, expected[name], rtol=1e-4, atol=1e-4)
    assert [session.sizes for session in cuda] == [[1], [2], [4], [6, 6]]


def test_a_model_on_cuda_leaves_no_session_behind(bundle: Bundle, cuda: list[SessionOnTheCpu]) -> None:
    model = OnnxModel(bundle, provider="cuda", max_batch_size=2)
    known = [weakref.ref(session) for session in cuda]
    assert len(known) == 2
    cuda.clear()
    del model
    gc.collect()
    assert not any(reference() for reference in known)


@pytest.mark.parametrize("wrong", [1, 2, 4])
def test_on_cuda_each_size_is_checked_for_parity(
    bundle: Bundle, cuda: list[SessionOnTheCpu], monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    real = onnxruntime.IOBinding.copy_outputs_to_cpu

    def copied(binding: onnxruntime.IOBinding) -> list[Any]:
        outputs = real(binding)
        return [output + np.float32(0.1) if len(output) == wrong else output for output in outputs]

    monkeypatch.setattr(onnxruntime.IOBinding, "copy_outputs_to_cpu", copied)
    with pytest.raises(BundleError, match="on cuda differs from the trained model"):
        OnnxModel(bundle, provider="cuda", max_batch_size=4)


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
    assert (fatal, opened, runs) == (4, 3, 0), "why a session does not open is still written"
    assert (warning, all_runs > 3) == (2, True), "and what fails later"
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
