import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.tiny import patient
from trainer.alpha import choose_alpha
from trainer.config import AlphaConfig
from trainer.inference import Branches

COUNTS = [500, 50, 5]


def branches(factual: list[list[float]], counterfactual: list[list[float]], labels: list[int]) -> Branches:
    cosine = np.ones((len(labels), 2), np.float32)
    return Branches(np.array(factual, np.float32), np.array(counterfactual, np.float32), cosine, np.array(labels))


@patient
@given(st.lists(st.floats(0.34, 0.99), min_size=1, max_size=4))
def test_without_validation_the_mean_of_alpha_times_cosine_is_one(mean_cosine: list[float]) -> None:
    choice = choose_alpha(AlphaConfig(), mean_cosine, None, COUNTS)
    assert sum(choice.value * cosine for cosine in mean_cosine) / len(mean_cosine) == pytest.approx(1)
    assert (choice.chosen_by, choice.mean_cosine) == ("mean_cosine", mean_cosine)


@pytest.mark.parametrize("mean_cosine", [[0.1, 0.1], [0.0, 0.0], [-0.5, 0.2]])
def test_where_that_lies_beyond_the_range_its_end_is_taken(mean_cosine: list[float]) -> None:
    assert choose_alpha(AlphaConfig(maximum=2.5), mean_cosine, None, COUNTS).value == 2.5


def test_where_that_lies_below_the_range_its_beginning_is_taken() -> None:
    assert choose_alpha(AlphaConfig(minimum=1.5), [1.0], None, COUNTS).value == 1.5


def test_a_negative_minimum_is_no_obstacle() -> None:
    assert choose_alpha(AlphaConfig(minimum=-2), [0.5], None, COUNTS).value == 2.0


def test_the_recipes_value_wins_over_everything() -> None:
    config = AlphaConfig(choose="recipe", value=1.5)
    choice = choose_alpha(config, [0.9], branches([[0, 1, 0]], [[0, 1, 0]], [0]), COUNTS)
    assert (choice.value, choice.chosen_by) == (1.5, "recipe")


def test_on_validation_data_the_centre_of_the_best_stretch_is_taken() -> None:
    # Class 1 wins from alpha 0.5 on, class 2 from alpha 2 on.
    validation = branches([[2, 1, 0]], [[3, 1, 0.5]], [1])
    choice = choose_alpha(AlphaConfig(choose="validation"), [0.9], validation, COUNTS)
    assert (choice.value, choice.chosen_by) == (1.25, "validation")


def test_validation_accuracy_is_balanced_over_classes() -> None:
    # Three pictures of class 0 are right below alpha 1; one of class 1 is from there on, one of class 2 from 2 on.
    factual, counterfactual = [[1.0, 0.0, -9.0]] * 4 + [[2.0, -9.0, 0.0]], [[1.0, 0.0, 0.0]] * 5
    validation = branches(factual, counterfactual, [0, 0, 0, 1, 2])
    choice = choose_alpha(AlphaConfig(choose="validation"), [0.9], validation, COUNTS)
    assert choice.value == 2.5
