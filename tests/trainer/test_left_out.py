"""Measuring runs on the training pictures that their long tail leaves out."""

from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.left_out import STRENGTHS, best_knobs, measure, splits_of
from tests.trainer.tiny import tiny_recipe
from trainer.config import AlphaConfig
from trainer.data import load_splits
from trainer.inference import Branches
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


def test_a_run_is_measured_under_every_choice_and_the_one_made_here_is_the_best(
    finished_run: Path, tmp_path: Path
) -> None:
    found = measure(finished_run, "digits", tmp_path)
    [chosen] = [what for what in found if what.endswith("chosen on those left out")]
    assert all(0 < value <= found[chosen] for what, value in found.items() if what != "both")
    tested = measure(finished_run, "digits", tmp_path, test=True)
    assert tested.keys() == found.keys()
    assert tested != found
