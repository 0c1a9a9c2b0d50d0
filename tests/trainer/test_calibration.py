import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from tests.trainer.tiny import tiny_recipe
from trainer.calibration import fit_calibration, negative_log_likelihood, too_few_images
from trainer.config import AlphaConfig
from trainer.evaluate import evaluate_branches
from trainer.export import export_run
from trainer.inference import Branches
from trainer.runs import train_run

COUNTS = np.array([500, 200, 60, 15])


def overconfident(images: int, seed: int, *, alpha: float = 0.0, factor: float = 2.0) -> Branches:
    """Pictures whose labels follow the softmax of their logits at one alpha, divided by ``factor``."""
    generator = np.random.default_rng(seed)
    factual = generator.normal(scale=5, size=(images, len(COUNTS))).astype(np.float32)
    counterfactual = generator.normal(scale=1.5, size=(images, len(COUNTS))).astype(np.float32)
    chances = softmax((factual - alpha * counterfactual) / factor, axis=1)
    labels = (chances.cumsum(axis=1) < generator.random((images, 1))).sum(axis=1).clip(0, len(COUNTS) - 1)
    return Branches(factual, counterfactual, np.zeros((images, 2), np.float32), labels)


@pytest.mark.parametrize(("alpha", "factor"), [(0.0, 2.0), (1.5, 3.0), (0.0, 0.5)])
def test_the_temperature_that_made_the_labels_is_found(alpha: float, factor: float) -> None:
    calibration = fit_calibration(overconfident(6000, 1, alpha=alpha, factor=factor), COUNTS, AlphaConfig())
    assert calibration.temperature(alpha, 0.0) == pytest.approx(factor, rel=0.15)
    assert calibration.images == 6000


def test_other_pictures_are_better_calibrated_over_the_whole_range_of_both_knobs() -> None:
    calibration = fit_calibration(overconfident(4000, 1), COUNTS, AlphaConfig())
    evaluation = evaluate_branches(overconfident(4000, 2), COUNTS, AlphaConfig(), calibration)
    for strength in (0.0, 0.5, 1.0):
        for alpha in (0.0, 0.75, 1.5, 3.0):
            row = evaluation.at(alpha, strength)
            assert row["calibration_error_at_temperature"] < 0.07
            assert row["calibration_error_at_temperature"] < row["calibration_error"]
            assert row["negative_log_likelihood_at_temperature"] < row["negative_log_likelihood"]
            plain = evaluate_branches(overconfident(4000, 2), COUNTS, AlphaConfig()).at(alpha, strength)
            assert plain.items() <= row.items(), "accuracies are those without a temperature"


def test_each_class_counts_the_same_however_few_its_images() -> None:
    """One class is always told right and the rest at random: T depends on how much the sure class counts."""
    sure, guessed = np.full((900, 4), 0.0, np.float32), np.full((100, 4), 0.0, np.float32)
    sure[:, 0] = 4
    guessed[np.arange(100), np.arange(100) % 4] = 4
    labels = np.concatenate([np.zeros(900, dtype=np.int64), np.arange(100) // 25 % 3 + 1])
    factual = np.concatenate([sure, guessed])
    branches = Branches(factual, np.zeros_like(factual), np.zeros((1000, 1), np.float32), labels)
    balanced = fit_calibration(branches, np.array([500, 500, 500, 500]), AlphaConfig()).temperature(0.0, 0.0)
    by_image = min(
        np.linspace(0.5, 8, 400), key=lambda temperature: negative_log_likelihood(factual / temperature, labels)
    )
    assert balanced > 1.5 * by_image


def test_perfect_pictures_do_not_ask_for_a_temperature_of_nothing() -> None:
    factual = np.eye(4, dtype=np.float32)[np.arange(400) % 4] * 16
    branches = Branches(factual, np.zeros_like(factual), np.zeros((400, 1), np.float32), np.arange(400) % 4)
    assert 0.05 < fit_calibration(branches, COUNTS, AlphaConfig()).temperature(0.0, 0.0) <= 1


def test_too_few_validation_images_are_said() -> None:
    enough = np.repeat(np.arange(4), 15)
    assert too_few_images(enough, COUNTS) is None
    assert too_few_images(enough[:50], COUNTS) == "there are 5 validation images of few-shot classes, and it takes 10"
    assert "49 validation images, and it takes 50" in str(too_few_images(enough[-49:], COUNTS))
    assert "nothing was held out" in str(too_few_images(None, COUNTS))


def test_a_run_that_holds_images_out_is_exported_with_its_temperature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe("data.validation_share=0.3", "data.long_tail.imbalance_factor=10", "schedule.epochs=1")
    train_run(recipe, tmp_path / "run", device_name="cpu", resume=False)
    assert "T fitted on" in capsys.readouterr().err
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert report["not_calibrated_as"] is None
    assert {"temperature", "calibration_error_at_temperature"} <= set(report["calibration"][0])
    for name in ("ema", "dataset_mean"):
        manifest = export_run(tmp_path / "run", tmp_path / name, direction=name, fp16=False).manifest
        assert manifest.calibration is not None
        assert manifest.calibration.model_dump(mode="json") == report["directions"][name]["calibration"]


def test_a_run_that_holds_nothing_out_has_none_and_says_so(finished_run: Path, tmp_path: Path) -> None:
    report = json.loads((finished_run / "evaluation.json").read_text())
    assert report["directions"]["ema"]["calibration"] is None
    assert "data.validation_share" in report["not_calibrated_as"]
    assert export_run(finished_run, tmp_path / "b", direction="ema", fp16=False).manifest.calibration is None
