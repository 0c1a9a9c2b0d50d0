"""The plan of the long trainings, without training any."""

import time

import pytest

from tests.benchmarks.gpu_training import PLAN, SMOKED, OutOfTime, budget
from trainer.methods import recipe_of


def test_every_training_of_the_plan_is_a_recipe_with_its_settings_and_none_is_twice() -> None:
    recipes = [
        recipe_of(entry.recipe, method, seed, list(entry.settings))
        for entry in PLAN
        for method in entry.methods
        if method not in {"crt", "lws", "tau_norm", "ncm"}  # of the linear one
        for seed in entry.seeds
    ]
    assert len({recipe.model_dump_json() for recipe in recipes}) == len(recipes) > 20
    assert set(SMOKED) < {entry.title for entry in PLAN}
    assert {recipe.schedule.epochs for recipe in recipes} == {200, 400, 800}


def test_the_time_budget_ends_what_runs_as_an_interruption_would() -> None:
    with pytest.raises(KeyboardInterrupt) as ended, budget(0.001):
        time.sleep(5)
    assert ended.type is OutOfTime
    with budget(0.001):
        pass
    time.sleep(0.1)  # nothing comes afterwards
