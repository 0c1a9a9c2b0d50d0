import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from service.bundle import Bundle, read_bundle
from service.detector import OnnxDetector
from tests.end_to_end.background_exemption import exemption
from tests.provider import needs_gpu
from tests.trainer.detection.annotated import document, tiny_recipe, write
from trainer.__main__ import main
from trainer.checkpoint import load_checkpoint, save_checkpoint, task_of
from trainer.curves import draw_run
from trainer.detection import export
from trainer.detection.checkpoints import detection_checkpoint, finished_detection_checkpoint
from trainer.detection.data import load_detection_splits
from trainer.detection.detecting import detect_split
from trainer.detection.evaluate import evaluate_detector
from trainer.detection.export import export_detector
from trainer.detection.runs import evaluate_detector_run, restore_detector, train_detector
from trainer.detection.training import DetectorTraining
from trainer.detection.types import Batch
from trainer.errors import TrainerError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write(folder, document())
    return folder


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, evaluated. Not to be written to."""
    folder = tmp_path_factory.mktemp("runs") / "squares"
    train_detector(tiny_recipe(pictures), folder, device_name="cpu", resume=False)
    return folder


def report_of(folder: Path, name: str = "evaluation.json") -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / name).read_text(), parse_constant=pytest.fail)
    return report


def test_a_run_leaves_checkpoint_recipe_evaluation_samples_and_plots(run: Path) -> None:
    names = {"checkpoint.safetensors", "recipe.yaml", "evaluation.json", "tradeoff.png", "curves.png", "samples.npz"}
    assert names <= {path.name for path in run.iterdir()}
    assert list(run.glob("events.out.tfevents.*"))
    checkpoint = finished_detection_checkpoint(run)
    assert (checkpoint.class_names, checkpoint.class_counts) == (["red", "green", "blue"], [4, 3, 1])
    assert checkpoint.shot_groups == ["many", "medium", "few"]
    assert checkpoint.sample_images is not None
    assert checkpoint.sample_sizes is not None
    assert (checkpoint.sample_images.shape, checkpoint.sample_sizes.shape) == ((4, 64, 64, 3), (4, 2))
    assert {"class_1", "mask_3", "objectness"} <= set(checkpoint.history[0].loss_parts)
    for record in checkpoint.history:
        assert sum(record.loss_parts.values()) == pytest.approx(np.mean(record.losses), rel=1e-5)
    with np.load(run / "samples.npz") as samples:
        assert (samples["images"].shape, samples["sizes"].dtype) == ((4, 64, 64, 3), np.float32)
    with Image.open(run / "tradeoff.png") as image:
        assert image.size == (1650, 690)


def test_the_report_has_each_measure_at_each_alpha(run: Path) -> None:
    report = report_of(run)
    assert (report["task"], report["split"], report["pictures"], report["rules"]) == ("detection", "test", 4, "lvis")
    assert report["curve"]["alpha"] == [0, 1.5, 3]
    for kind in ("box", "mask"):
        assert set(report["curve"][kind]) == {"AP", "AP50", "AP75", "APr", "APc", "APf"}
        assert all(len(values) == 3 for values in report["curve"][kind].values())


def test_directions_move_and_stay_finite(run: Path) -> None:
    directions = [value for name, value in detection_checkpoint(run).model.items() if "momentum_direction" in name]
    assert len(directions) == 3
    assert all(one.isfinite().all() and one.any() for one in directions)


def test_a_run_resumed_within_its_second_epoch_is_like_an_unbroken_one(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(pictures, "checkpoint_steps=1")
    training = DetectorTraining(recipe, load_detection_splits(recipe.data), CPU)
    own_step, left = training._step, iter(range(3))

    def stop_in_time(batch: Batch, rate: float) -> dict[str, torch.Tensor]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return own_step(batch, rate)

    training._step = stop_in_time  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        training.run(tmp_path)
    stopped = detection_checkpoint(tmp_path)
    assert (stopped.epoch, stopped.step) == (1, 1)
    torch.manual_seed(12345)
    train_detector(recipe, tmp_path, device_name="cpu", resume=True)
    resumed, unbroken = detection_checkpoint(tmp_path), detection_checkpoint(run)
    assert [record.losses for record in resumed.history] == [record.losses for record in unbroken.history]
    assert [record.loss_parts for record in resumed.history] == [record.loss_parts for record in unbroken.history]
    assert all(torch.equal(resumed.model[name], value) for name, value in unbroken.model.items())
    assert report_of(tmp_path)["curve"] == report_of(run)["curve"]


def test_a_run_is_gone_on_with_by_the_same_recipe_alone(run: Path, pictures: Path) -> None:
    with pytest.raises(TrainerError, match="holds a run already"):
        train_detector(tiny_recipe(pictures), run, device_name="cpu", resume=False)
    with pytest.raises(TrainerError, match=r"another recipe \(detector.head.tau: 16.0 then, 8.0 now\)"):
        train_detector(tiny_recipe(pictures, "detector.head.tau=8"), run, device_name="cpu", resume=True)


def test_the_table_shows_the_alphas_that_were_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    evaluate_detector_run(folder, data=None, device_name="cpu", alphas=[0.625, 2.0], split="test", steps=3)
    said = capsys.readouterr().err
    assert {"0", "0.625", "2", "1.5"} <= set(re.findall(r"[│ ]+([\d.]+) +│ +box ", said)), said


def test_a_run_whose_pictures_became_fewer_names_them(run: Path, pictures: Path, tmp_path: Path) -> None:
    folder, moved = shutil.copytree(run, tmp_path / "run"), shutil.copytree(pictures, tmp_path / "pictures")
    recipe, lost = tiny_recipe(moved), moved / "99.png"
    whole = lost.read_bytes()

    def resume() -> None:
        train_detector(recipe, folder, device_name="cpu", resume=True)

    def forget_rows() -> None:
        """Make the run one of before rows were kept."""
        checkpoint = detection_checkpoint(folder)
        checkpoint.training_rows = None
        save_checkpoint(checkpoint, folder)

    said = (
        rf"other training data; missing, damaged or outside their folder now: 1 of its 4 pictures; put in place {lost}$"
    )
    for forget in (bool, forget_rows):
        forget()
        for damage in (lost.unlink, lambda: lost.write_bytes(whole[:60])):
            damage()
            with pytest.raises(TrainerError, match=said):
                resume()
            lost.write_bytes(whole)
    resume()


def test_both_splits_can_be_evaluated_at_more_alphas(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    evaluate_detector_run(folder, data=None, device_name="cpu", alphas=[-0.5], split="train", steps=4)
    report = report_of(folder, "evaluation-train.json")
    assert (report["split"], report["curve"]["alpha"]) == ("train", [-0.5, 0, 1, 1.5, 2, 3])
    assert report_of(folder) == report_of(run)
    draw_run(folder, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()
    for alpha, split, said in ((math.nan, "test", "--alpha: must be a finite"), (1.0, "val", "--split 'val'")):
        with pytest.raises(TrainerError, match=said):
            evaluate_detector_run(folder, data=None, device_name="cpu", alphas=[alpha], split=split)
    renamed = document()
    renamed["categories"][0]["name"] = "cyan"
    write(tmp_path / "others", renamed)
    with pytest.raises(TrainerError, match=r"--data: its classes \(3: .*cyan.*\) are not those .* \(3: .*blue"):
        evaluate_detector_run(folder, data=str(tmp_path / "others"), device_name="cpu", alphas=[], split="test")


def test_the_report_says_what_detections_one_alpha_at_a_time_give(run: Path) -> None:
    checkpoint = finished_detection_checkpoint(run)
    model, split = restore_detector(checkpoint, CPU), load_detection_splits(checkpoint.recipe.data).test
    together = detect_split(model, split, checkpoint.recipe, [0.0, 1.5], CPU)
    for alpha, its in zip((0.0, 1.5), together, strict=True):
        for row, found in enumerate(its):
            pixels = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
            with Image.open(split.file(row)) as image:
                size, box = checkpoint.recipe.input.geometry(*image.size)
                pixels[0] = torch.from_numpy(np.array(image.resize(size, Image.Resampling.BILINEAR).crop(box)))
                scale = image.width / size[0]
            (alone,) = model.detect(pixels, torch.tensor([size[::-1]], dtype=torch.float32), alpha)
            assert np.allclose(found.boxes, alone.boxes.numpy() * scale, atol=1e-3)
            assert np.allclose(found.scores, alone.scores.numpy(), atol=1e-6)
            assert found.labels.tolist() == alone.labels.tolist()
    assert evaluate_detector(checkpoint, model, split, [], CPU)["curve"] == report_of(run)["curve"]


def test_alpha_moves_nothing_from_or_to_the_background_of_a_trained_runs_proposals(run: Path) -> None:
    found = exemption(run, data=None, split="train", alphas=[0.0, 1.5, 3.0], pictures=2)
    assert found.holds()
    assert found.proposals > 50
    assert found.moved > 1e-3
    plain = exemption(run, data=None, split="train", alphas=[0.0])
    assert (plain.background, plain.moved) == (pytest.approx(0, abs=1e-7), 0)


def test_an_unfinished_detector_and_the_wrong_task_are_refused(run: Path, tmp_path: Path) -> None:
    assert task_of(run) == "detection"
    with pytest.raises(TrainerError, match="is a run of task 'detection', and this is not for that task"):
        load_checkpoint(run)
    checkpoint = detection_checkpoint(run)
    checkpoint.alphas, checkpoint.epoch = {}, 1
    save_checkpoint(checkpoint, tmp_path)
    with pytest.raises(TrainerError, match="training has done 1 of 2 epochs"):
        finished_detection_checkpoint(tmp_path)


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_detector(run, tmp_path_factory.mktemp("bundles") / "squares")


def test_a_run_becomes_a_verified_bundle(run: Path, bundle: Bundle) -> None:
    manifest = read_bundle(bundle.path).manifest
    checkpoint = finished_detection_checkpoint(run)
    assert manifest.task == "detection"
    described = [(one.name, one.train_count, one.shot_group) for one in manifest.classes]
    assert described == [("red", 4, "many"), ("green", 3, "medium"), ("blue", 1, "few")]
    assert manifest.detection is not None
    assert manifest.detection.stages == len(checkpoint.recipe.detector.cascade.ious)
    assert manifest.alpha.default == checkpoint.alphas["ema"].value
    parity = bundle.detection_parity()
    assert len(parity.images) >= 3
    assert len(set(parity.alpha.tolist())) == len(parity.images)
    assert {"evaluation.json", "tradeoff.png", "samples.npz"} <= {path.name for path in bundle.path.iterdir()}


def test_a_trained_detector_runs_on_a_gpu_with_its_parity(bundle: Bundle) -> None:
    needs_gpu()
    parity = bundle.detection_parity()
    model = OnnxDetector(bundle, provider="cuda")  # refuses what differs
    sizes = parity.image_size.tolist()
    assert any(model.detect(image, size, 0.0)["count"] for image, size in zip(parity.images, sizes, strict=True))


def test_a_graph_that_differs_from_pytorch_makes_no_bundle(
    run: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_graph(graph: object, height: int, width: int, file: Path) -> None:
        shutil.copy(bundle.path / "model.onnx", file)

    def other_weights(*arguments: Any) -> Any:
        model = restore_detector(*arguments)
        for stage in model.cascade.stages:
            torch.nn.init.normal_(stage.classifier.weight)  # type: ignore[union-attr]
        return model

    monkeypatch.setattr(export, "export_graph", another_graph)
    monkeypatch.setattr(export, "restore_detector", other_weights)
    with pytest.raises(TrainerError, match="no bundle was written"):
        export_detector(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_detector_has_one_direction(run: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="--direction 'dataset_mean': must be ema for a detector"):
        export_detector(run, tmp_path / "bundle", direction="dataset_mean")


def test_another_direction_is_refused_with_what_a_detector_has(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evenkeel-trainer", "export", str(run), "--direction", "mean"])
    with pytest.raises(SystemExit):
        main()
    assert "--direction 'mean': must be ema for a detector" in capsys.readouterr().err


def test_a_run_that_no_bundle_can_hold_is_refused_in_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "export_graph", pytest.fail)
    folder = shutil.copytree(run, tmp_path / "run")
    checkpoint = detection_checkpoint(folder)
    checkpoint.class_names[1] = "a\nb"
    save_checkpoint(checkpoint, folder)
    with pytest.raises(
        TrainerError, match=r"^no bundle can hold this run: .* got 'a\\nb'; clean the name; mend .*again$"
    ):
        export_detector(folder, tmp_path / "bundle")


def test_objects_too_small_at_any_size_are_counted_and_refused_if_none_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, document())
    small = "augment={smallest_object: 27, shortest_sides: [24, 72]}"
    train_detector(
        tiny_recipe(tmp_path, small, "schedule={epochs: 1}"), tmp_path / "run", device_name="cpu", resume=False
    )
    said = capsys.readouterr().err.replace("\n", " ")
    assert "augment.smallest_object=27 leaves out 4 of 8 training objects" in said
    with pytest.raises(TrainerError, match=r"smallest_object=1000 leaves out all 8 .* at most 24 pixels .*; lower it"):
        train_detector(
            tiny_recipe(tmp_path, "augment.smallest_object=1000"), tmp_path / "none", device_name="cpu", resume=False
        )
    assert not (tmp_path / "none").exists()
