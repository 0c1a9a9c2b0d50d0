import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from service.bundle import SAMPLES_FILE
from service.tradeoff import AccuracyCurve
from tests.trainer.tiny import folder_recipe, png, tiny_recipe, write_image_folder
from trainer.checkpoint import finished_checkpoint, load_checkpoint, save_checkpoint
from trainer.config import load_recipe
from trainer.data import load_splits
from trainer.errors import TrainerError
from trainer.evaluate import expected_calibration_error
from trainer.runs import (
    DIRECTIONS,
    direction_of,
    evaluate_run,
    read_evaluation,
    restore_model,
    train_run,
)
from trainer.showcase import write_pictures


def train(recipe_settings: tuple[str, ...], pictures: Path, folder: Path) -> Path:
    train_run(folder_recipe(pictures, *recipe_settings), folder, device_name="cpu", resume=False)
    return folder


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("pictures") / "small")


def test_a_run_leaves_checkpoint_recipe_evaluation_curve_and_plot(finished_run: Path) -> None:
    names = {"checkpoint.safetensors", "recipe.yaml", "evaluation.json", "tradeoff.npz", "tradeoff.png"}
    assert names <= {path.name for path in finished_run.iterdir()}
    assert load_recipe(str(finished_run / "recipe.yaml")) == tiny_recipe()
    with Image.open(finished_run / "tradeoff.png") as image:
        assert image.size == (1200, 750)
    with np.load(finished_run / "tradeoff.npz") as curve:
        assert set(curve.files) == {"breakpoints", "overall", "balanced", "many", "medium", "few"}
        assert len(curve["overall"]) == len(curve["breakpoints"]) + 1


def test_alpha_is_chosen_for_both_directions_without_the_test_split(finished_run: Path) -> None:
    checkpoint = finished_checkpoint(finished_run)
    assert set(checkpoint.alphas) == set(DIRECTIONS)
    for choice in checkpoint.alphas.values():
        assert choice.chosen_by == "mean_cosine"
        assert choice.value == pytest.approx(1 / np.mean(choice.mean_cosine))
    ema, mean = (direction_of(checkpoint, name) for name in DIRECTIONS)
    assert not torch.equal(ema, mean)
    report = read_evaluation(finished_run)
    assert report["direction_cosine"] == pytest.approx(float(torch.cosine_similarity(ema, mean, dim=0)), abs=1e-5)


def test_the_evaluation_says_what_the_restored_model_gives(finished_run: Path) -> None:
    checkpoint = finished_checkpoint(finished_run)
    splits, model = load_splits(checkpoint.recipe), restore_model(checkpoint, torch.device("cpu"))
    pixels = [np.asarray(Image.open(splits.test.picture(row)[0]).convert("RGB")) for row in range(len(splits.test))]
    with torch.inference_mode():
        logits, _ = model(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255)
    report = read_evaluation(finished_run)
    plain = report["directions"]["ema"]["accuracy"][0]
    assert (plain["alpha"], plain["prior_strength"], report["test_images"]) == (0.0, 0.0, len(splits.test))
    assert plain["accuracy"] == pytest.approx(float((logits.argmax(dim=1).numpy() == splits.test.labels).mean()))
    error = expected_calibration_error(logits.softmax(dim=1).double().numpy(), splits.test.labels)
    assert plain["calibration_error"] == pytest.approx(error, abs=1e-4)


def test_evaluating_again_adds_the_alphas_asked_for_and_changes_no_number(run_copy: Path) -> None:
    before = read_evaluation(run_copy)
    evaluate_run(run_copy, data=None, device_name="cpu", alphas=[-0.5, 2.25])
    after = read_evaluation(run_copy)
    rows = {(row["alpha"], row["prior_strength"]): row for row in after["directions"]["ema"]["accuracy"]}
    assert {(-0.5, 0.0), (2.25, 0.0), (2.25, 1.0)} <= set(rows)
    for row in before["directions"]["ema"]["accuracy"]:
        assert rows[row["alpha"], row["prior_strength"]] == pytest.approx(row)
    assert after["curve"] == before["curve"]


@pytest.mark.parametrize("alpha", [math.nan, math.inf])
def test_an_alpha_that_is_no_number_is_refused(finished_run: Path, alpha: float) -> None:
    with pytest.raises(TrainerError, match="--alpha: must be a finite number"):
        evaluate_run(finished_run, data=None, device_name="cpu", alphas=[alpha])


def test_other_classes_cannot_be_evaluated(run_copy: Path, pictures: Path) -> None:
    with pytest.raises(TrainerError, match=r"--data: its classes .* are not those that the model was trained on"):
        evaluate_run(run_copy, data=str(write_image_folder(run_copy / "p", train=60)), device_name="cpu", alphas=[])


def test_a_folder_that_holds_a_run_is_not_overwritten(finished_run: Path) -> None:
    with pytest.raises(TrainerError, match=r"holds a run already; go on with --resume, or name another folder"):
        train_run(tiny_recipe(), finished_run, device_name="cpu", resume=False)


def test_resuming_a_finished_run_trains_no_more(run_copy: Path) -> None:
    before = load_checkpoint(run_copy)
    (run_copy / "evaluation.json").unlink()
    train_run(tiny_recipe(), run_copy, device_name="cpu", resume=True)
    after = load_checkpoint(run_copy)
    assert after.history == before.history
    assert after.alphas == before.alphas
    assert read_evaluation(run_copy)["test_images"] == 535


def test_an_unfinished_run_is_refused_with_its_epochs(tmp_path: Path, finished_run: Path) -> None:
    checkpoint = load_checkpoint(finished_run)
    checkpoint.alphas, checkpoint.epoch = {}, 1
    save_checkpoint(checkpoint, tmp_path)
    with pytest.raises(TrainerError, match=r"training has done 1 of 2 epochs; finish it with train --resume"):
        finished_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [None, "", "{", "[1"])
def test_an_evaluation_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(TrainerError, match=r"evaluation.json: cannot be read .*; run evaluate"):
        read_evaluation(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(TrainerError, match=r"cannot be written \(.*use another folder"):
            train_run(tiny_recipe(), place, device_name="cpu", resume=False)


@pytest.mark.parametrize(
    ("settings", "chosen_by"),
    [
        (("batch_size=1000",), "mean_cosine"),
        (("alpha={minimum: -2, maximum: 1}",), "mean_cosine"),
        (("alpha={choose: recipe, value: 1, minimum: 0.5}",), "recipe"),
        (("data.validation_share=0.4", "alpha={choose: validation, minimum: -1}"), "validation"),
        (("schedule={epochs: 1, warmup_epochs: 1, decay: cosine}",), "mean_cosine"),
        (("precision=bf16", "head.num_heads=1", "data.in_memory=false", "data.num_workers=0"), "mean_cosine"),
    ],
)
def test_unusual_recipes_run_to_their_end(
    tmp_path: Path, pictures: Path, settings: tuple[str, ...], chosen_by: str
) -> None:
    folder = train(settings, pictures, tmp_path / "run")
    assert finished_checkpoint(folder).alphas["ema"].chosen_by == chosen_by
    report = json.loads((folder / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert report["directions"]["ema"]["chosen_by"] == chosen_by


def test_a_broken_test_picture_costs_no_training(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "pictures")
    broken = folder / "test" / "class 2" / "1.png"
    broken.write_bytes(png(0)[:-30])
    with pytest.raises(TrainerError, match=f"^{broken}: cannot be read"):
        train((), folder, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists(), "it shows before training begins"


def test_samples_are_test_pictures_as_png_named_by_class(finished_run: Path, tmp_path: Path) -> None:
    files = write_pictures(finished_run, tmp_path / "out", count=4)
    splits = load_splits(tiny_recipe())
    pictures = [np.asarray(Image.open(splits.test.picture(row)[0]).convert("RGB")) for row in range(len(splits.test))]
    assert len(files) == len(set(files)) == 4
    for number, file in enumerate(files):
        rows = [row for row, pixels in enumerate(pictures) if (np.asarray(Image.open(file)) == pixels).all()]
        names = {f"{number}-{splits.class_names[splits.test.labels[row]].replace(' ', '-')}" for row in rows}
        assert file.stem in names


def test_samples_of_a_run_without_any_name_the_remedy(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / SAMPLES_FILE).unlink()
    with pytest.raises(TrainerError, match="run evaluate"):
        write_pictures(run, tmp_path / "out", count=1)


def test_samples_go_nowhere_that_cannot_be_written(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainerError, match="cannot be written"):
        write_pictures(finished_run, tmp_path / "file", count=1)


def test_a_curve_in_the_report_is_that_of_the_file(finished_run: Path) -> None:
    report = read_evaluation(finished_run)
    with np.load(finished_run / "tradeoff.npz") as saved:
        parts = {name: saved[name] for name in saved.files}
    groups = {name: parts[name] for name in ("many", "medium", "few")}
    curve = AccuracyCurve(0.0, 3.0, parts["breakpoints"], parts["overall"], parts["balanced"], groups)
    for place in (0, 120, 300):
        assert report["curve"]["overall"][place] == curve.at(report["curve"]["alpha"][place])["overall"]
