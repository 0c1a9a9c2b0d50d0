"""Measuring runs on the training pictures that their long tail leaves out."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.benchmarks import left_out
from tests.benchmarks.left_out import STRENGTHS, best_knobs, splits_of
from tests.trainer.tiny import tiny_recipe
from trainer.checkpoint import finished_checkpoint
from trainer.config import AlphaConfig
from trainer.data import load_splits
from trainer.evaluate import Evaluation, evaluate_branches
from trainer.inference import Branches
from trainer.knobs import Knobs
from trainer.sources import load_source


def test_pictures_left_out_are_those_of_the_training_split_that_training_does_not_see() -> None:
    recipe = tiny_recipe()
    source, trained, left = load_source(recipe.data).train, load_splits(recipe).train, splits_of(recipe)
    assert len(left.train.labels) == len(trained.labels)
    assert 0 < len(left.test.labels) == len(source) - len(trained.labels)
    counts = [
        np.bincount(np.asarray(labels), minlength=10) for labels in (source.labels, trained.labels, left.test.labels)
    ]
    assert (counts[0] == counts[1] + counts[2]).all()


@pytest.mark.parametrize("lean", STRENGTHS)
def test_the_strength_is_chosen_that_takes_the_lean_to_frequent_classes_away(lean: float) -> None:
    labels, counts = np.arange(4).repeat(8), np.array([1000, 100, 10, 1])
    certain = np.linspace(0.1, 0.9, len(labels))[:, None] * np.eye(4)[labels]
    nothing = np.zeros_like(certain)
    branches = Branches(certain + lean * np.log(counts / counts.sum()), nothing, np.zeros((len(labels), 1)), labels)
    assert best_knobs(branches, counts, AlphaConfig()).prior_strength == lean


@pytest.mark.parametrize("test", [False, True])
def test_knobs_are_chosen_on_pictures_left_out_whatever_a_run_is_measured_on(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, test: bool
) -> None:
    chosen_on, measured_on = [], []

    def choose(branches: Branches, counts: NDArray[np.int64], alpha: AlphaConfig) -> Knobs:
        chosen_on.append(branches.labels)
        return Knobs(0.7, 0.25, "left out")

    def evaluate(branches: Branches, counts: NDArray[np.int64], alpha: AlphaConfig) -> Evaluation:
        measured_on.append((branches.labels, evaluate_branches(branches, counts, alpha)))
        return measured_on[-1][1]

    monkeypatch.setattr(left_out, "best_knobs", choose)
    monkeypatch.setattr(left_out, "evaluate_branches", evaluate)
    found = left_out.measure(finished_run, "digits", tmp_path, test=test)
    unseen, tested = splits_of(tiny_recipe()).test.labels, load_splits(tiny_recipe()).test.labels
    [[labels, evaluation]] = measured_on
    np.testing.assert_array_equal(np.sort(chosen_on), np.sort([unseen]))
    np.testing.assert_array_equal(np.sort(labels), np.sort(tested if test else unseen))
    alpha = finished_checkpoint(finished_run).alphas["ema"].value
    expected = {"plain": (0.0, 0.0), "TDE": (alpha, 0.0), "prior": (0.0, 1.0)}
    expected["alpha 0.70, strength 0.25: chosen on those left out"] = (0.7, 0.25)
    for what, knobs in expected.items():
        assert found[what] == round(100 * evaluation.at(*knobs)["balanced_accuracy"], 2)
    assert len(set(found.values())) > 1
