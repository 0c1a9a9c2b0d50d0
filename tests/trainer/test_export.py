import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from tests.trainer.tiny import tiny_recipe
from trainer import export
from trainer.checkpoint import AlphaChoice, finished_checkpoint
from trainer.errors import TrainerError
from trainer.export import describe, export_run, run_onnx
from trainer.graph import ServingGraph
from trainer.runs import read_evaluation


def test_the_bundle_holds_what_the_checkpoint_says(finished_run: Path, tmp_path: Path) -> None:
    checkpoint = finished_checkpoint(finished_run)
    manifest = export_run(finished_run, tmp_path / "bundle", direction="dataset_mean", fp16=False).manifest
    assert [info.train_count for info in manifest.classes] == checkpoint.class_counts
    assert manifest.alpha.default == checkpoint.alphas["dataset_mean"].value
    assert manifest.tde.direction == "dataset_mean"
    assert [model.precision for model in manifest.models] == ["fp32"]


@pytest.mark.parametrize("direction", ["ema", "dataset_mean"])
def test_the_manifest_says_of_tde_and_alpha_what_recipe_and_checkpoint_do(finished_run: Path, direction: str) -> None:
    torch.manual_seed(0)
    checkpoint = finished_checkpoint(finished_run)
    ema, mean = torch.rand(64), torch.rand(64)
    changed = replace(
        checkpoint,
        recipe=tiny_recipe("head={num_heads: 4, tau: 9, gamma: 0.25}", "alpha={minimum: 0.5, maximum: 2.5}"),
        model=checkpoint.model | {"head.momentum_direction": ema},
        dataset_mean=mean,
        alphas={"ema": AlphaChoice(1.25, "mean_cosine"), "dataset_mean": AlphaChoice(0.75, "validation")},
    )
    manifest = describe(changed, read_evaluation(finished_run), direction)
    cosine = float(ema @ mean / ema.norm() / mean.norm())
    assert manifest.tde is not None
    assert manifest.tde.model_dump() == {
        "num_heads": 4,
        "tau": 9.0,
        "gamma": 0.25,
        "direction": direction,
        "direction_cosine": pytest.approx(cosine, abs=1e-5),
    }
    default, chosen_by = {"ema": (1.25, "mean_cosine"), "dataset_mean": (0.75, "validation")}[direction]
    expected = {"default": default, "chosen_by": chosen_by, "minimum": 0.5, "maximum": 2.5}
    assert manifest.alpha.model_dump() == expected


def test_both_precisions_give_the_samples_outputs_at_any_batch_size(finished_run: Path, tmp_path: Path) -> None:
    bundle = export_run(finished_run, tmp_path / "bundle", direction="ema", fp16=True)
    parity = bundle.parity()
    for precision, tolerance in (("fp32", 5e-4), ("fp16", 2e-2)):
        session = ort.InferenceSession(str(bundle.model_path(precision)), providers=["CPUExecutionProvider"])
        whole = run_onnx(session, parity)
        assert max(parity.gaps(whole).values()) <= tolerance
        assert whole["feature_map"].ndim == 4
    assert bundle.model_path("fp16") == bundle.path / "model.fp16.onnx"
    assert casts_before_means(bundle.path / "model.onnx") == [None]
    assert casts_before_means(bundle.path / "model.fp16.onnx") == [onnx.TensorProto.FLOAT]


def casts_before_means(file: Path) -> list[int | None]:
    """Return for each mean of a graph to which type what it averages is cast."""
    nodes = onnx.load(file).graph.node
    casts = {node.output[0]: node.attribute[0].i for node in nodes if node.op_type == "Cast"}
    return [casts.get(node.input[0]) for node in nodes if node.op_type == "ReduceMean"]


def test_the_graph_tells_nothing_of_the_machine_that_made_it(finished_run: Path, tmp_path: Path) -> None:
    bundle = export_run(finished_run, tmp_path / "bundle", direction="ema", fp16=False)
    model = onnx.load(bundle.path / "model.onnx")
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert str(Path(__file__).parents[2]).encode() not in (bundle.path / "model.onnx").read_bytes()


def test_a_graph_that_differs_from_pytorch_makes_no_bundle(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = export.serving_graph
    calls: list[ServingGraph] = []

    def wrong(*arguments: object, **options: object) -> ServingGraph:
        graph = right(*arguments, **options)
        calls.append(graph)
        if len(calls) > 1:  # the first one computes what is expected
            graph.log_class_share += 0.1
        return graph

    monkeypatch.setattr(export, "serving_graph", wrong)
    with pytest.raises(TrainerError, match="parity of fp32 missed: logits"):
        export_run(finished_run, tmp_path / "bundle", direction="ema", fp16=False)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("samples.npz", lambda whole: whole[:400]),
        ("samples.npz", lambda whole: b""),
        ("tradeoff.npz", lambda whole: whole[:100]),
        ("tradeoff.png", lambda whole: whole[:3000]),
        ("evaluation.json", lambda whole: b"[]"),
        ("evaluation.json", lambda whole: b"{}"),
        ("evaluation.json", lambda whole: b'{"directions": {"ema": 1}, "test_images": 3}'),
    ],
)
def test_a_damaged_file_of_the_evaluation_is_refused_before_anything_is_exported(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(export, "export_onnx", pytest.fail)
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / name).write_bytes(content((run / name).read_bytes()))
    with pytest.raises(TrainerError, match=rf"run/{name}: .*run evaluate .*run"):
        export_run(run, tmp_path / "bundle", direction="ema", fp16=False)


def test_what_cannot_be_exported_is_said_before_anything_is_exported(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "export_onnx", pytest.fail)
    with pytest.raises(TrainerError, match="--direction 'up': must be one of ema, dataset_mean"):
        export_run(finished_run, tmp_path / "bundle", direction="up", fp16=False)
    partly = tmp_path / "partly"
    partly.mkdir()
    for name in ("checkpoint.safetensors", "evaluation.json"):
        (partly / name).write_bytes((finished_run / name).read_bytes())
    with pytest.raises(TrainerError, match=r"partly/tradeoff\.npz: is missing; run evaluate .*partly"):
        export_run(partly, tmp_path / "bundle", direction="ema", fp16=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainerError, match="cannot be written"):
        export_run(finished_run, tmp_path / "file" / "bundle", direction="ema", fp16=False)
    with pytest.raises(TrainerError, match="it is no bundle"):
        export_run(finished_run, finished_run, direction="ema", fp16=False)
    checkpoint = finished_checkpoint(finished_run)
    monkeypatch.setattr(export, "finished_checkpoint", lambda folder: replace(checkpoint, class_names=["\x1b"] * 10))
    with pytest.raises(
        TrainerError, match=r"^no bundle can hold this run: .* got '\\x1b'; clean the name; mend .*again$"
    ):
        export_run(finished_run, tmp_path / "bundle", direction="ema", fp16=False)
    assert np.load(finished_run / "tradeoff.npz")["overall"].size, "the run is as it was"
