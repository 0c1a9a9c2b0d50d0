from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from service.bundle import ActivationMaps
from tests.trainer.tiny import tiny_recipe
from trainer.checkpoint import Checkpoint, finished_checkpoint
from trainer.errors import TrainerError
from trainer.explain import NoActivationMaps, activation_maps, explain_run
from trainer.export import export_run, run_onnx
from trainer.model import LongTailClassifier


def test_maps_of_the_exported_graph_sum_to_its_logits(finished_run: Path, tmp_path: Path) -> None:
    bundle = export_run(finished_run, tmp_path / "bundle", direction="dataset_mean", fp16=False)
    maps = ActivationMaps.load(bundle.path / "classifier.npz")
    outputs = run_onnx(ort.InferenceSession(str(bundle.path / "model.onnx")), bundle.parity())
    alphas = bundle.parity().alpha
    expected = outputs["factual_logits"] - alphas[:, None] * outputs["counterfactual_logits"]
    for feature_map, alpha, logits in zip(outputs["feature_map"], alphas, expected, strict=True):
        found = maps.of(feature_map, float(alpha), range(len(logits))).sum(axis=(1, 2))
        np.testing.assert_allclose(found, logits, atol=1e-5)


def untrained(finished_run: Path, *settings: str) -> Checkpoint:
    checkpoint = finished_checkpoint(finished_run)
    checkpoint.recipe = tiny_recipe(*settings)
    checkpoint.model = LongTailClassifier(checkpoint.recipe, 10).state_dict()
    checkpoint.model["head.momentum_direction"].normal_()
    return checkpoint


@pytest.mark.parametrize(
    ("classifier", "divisor"), [("deconfounded", [0, 1]), ("cosine", [0, 1]), ("capsule", [1, 1]), ("linear", [1, 0])]
)
def test_every_classifier_has_maps(finished_run: Path, classifier: str, divisor: list[int]) -> None:
    maps = activation_maps(untrained(finished_run, f"head.classifier={classifier}"))
    assert maps.divisor.tolist() == divisor


def test_a_network_that_pools_in_another_way_is_refused_and_exported_without(finished_run: Path) -> None:
    checkpoint = untrained(finished_run, "backbone.name=test_vit", "input.height=160", "input.width=160")
    assert checkpoint.sample_images is not None
    checkpoint.sample_images = checkpoint.sample_images[:2].repeat(1, 20, 20, 1)
    with pytest.raises(NoActivationMaps, match="features of test_vit are not the average of its feature map"):
        activation_maps(checkpoint)


def test_the_grid_has_a_row_for_each_picture(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explain_run(finished_run, tmp_path / "grid.png", alpha=None, count=2)
    explain_run(finished_run, tmp_path / "deep" / "taller.png", alpha=2.0, count=3)
    heights = []
    for name in ("grid.png", "deep/taller.png"):
        with Image.open(tmp_path / name) as image:
            heights.append(image.size[1])
    assert heights[1] == pytest.approx(1.5 * heights[0], abs=2)
    assert "3 pictures; half of the evidence for the true class lies on" in capsys.readouterr().err


def test_what_cannot_be_drawn_is_refused(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="--alpha: must be a finite number, got nan"):
        explain_run(finished_run, tmp_path / "grid.png", alpha=float("nan"), count=1)
    with pytest.raises(TrainerError, match=r"--output .*grid\.what: the name must end in \.png, \.svg, \.pdf"):
        explain_run(finished_run, tmp_path / "grid.what", alpha=None, count=1)
    with pytest.raises(TrainerError, match=r"--output .*: is a folder; name a file in it, such as .*figure\.png"):
        explain_run(finished_run, tmp_path, alpha=None, count=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainerError, match=r"file: cannot be written"):
        explain_run(finished_run, tmp_path / "file" / "grid.png", alpha=None, count=1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
