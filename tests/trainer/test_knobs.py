import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.tiny import patient
from trainer.config import AlphaConfig, LossConfig
from trainer.inference import Branches
from trainer.knobs import STRENGTHS, choose_knobs, lean_left, lean_of

COUNTS = np.array([200, 60, 20, 6, 2])
LOG_SHARE = np.log(COUNTS / COUNTS.sum())


def make_branches(seed: int, *, rows: int = 60, slope: float = 0.5) -> Branches:
    """Branches whose mean counterfactual logit rises by just this slope."""
    generator = np.random.default_rng(seed)
    factual, noise = (generator.normal(size=(rows, len(COUNTS))) for _ in range(2))
    counterfactual = noise - noise.mean(axis=0) + slope * LOG_SHARE
    return Branches(factual, counterfactual, np.ones((rows, 1)), generator.integers(0, len(COUNTS), rows))


@patient
@given(st.floats(-2, 2), st.integers(0, 100))
def test_the_lean_is_the_slope_of_the_mean_counterfactual_over_the_log_share(slope: float, seed: int) -> None:
    counterfactual = make_branches(seed, slope=slope).counterfactual
    assert lean_of(counterfactual, COUNTS) == pytest.approx(slope, abs=1e-9)
    assert lean_of(counterfactual + 7, COUNTS) == pytest.approx(slope, abs=1e-9)


def test_classes_that_are_all_as_frequent_have_no_lean() -> None:
    assert lean_of(np.ones((3, 4)), np.full(4, 9)) == 0.0


@patient
@given(st.floats(0.2, 2), st.floats(0.05, 1))
def test_each_knob_takes_half_of_the_lean(slope: float, lean: float) -> None:
    knobs = choose_knobs(AlphaConfig(), make_branches(0, slope=slope), None, COUNTS, lean)
    assert knobs.alpha * slope == pytest.approx(lean / 2)
    assert knobs.prior_strength == pytest.approx(lean / 2)


def test_what_alpha_may_not_take_is_left_to_the_prior() -> None:
    knobs = choose_knobs(AlphaConfig(maximum=1.5), make_branches(0, slope=0.1), None, COUNTS, 1.0)
    assert (knobs.alpha, knobs.prior_strength) == (1.5, pytest.approx(0.85))
    knobs = choose_knobs(AlphaConfig(), make_branches(0, slope=-0.5), None, COUNTS, 1.0)
    assert (knobs.alpha, knobs.prior_strength) == (0.0, 1.0)
    knobs = choose_knobs(AlphaConfig(minimum=1.0), make_branches(0, slope=2.0), None, COUNTS, 1.0)
    assert (knobs.alpha, knobs.prior_strength) == (1.0, 0.0)


def test_where_no_lean_is_left_nothing_is_taken() -> None:
    knobs = choose_knobs(AlphaConfig(), make_branches(0), None, COUNTS, 0.0)
    assert (knobs.alpha, knobs.prior_strength) == (0.0, 0.0)


def test_the_lean_that_is_left_is_what_the_loss_did_not_add() -> None:
    lefts = {
        LossConfig(): 1.0,
        LossConfig(name="focal"): 1.0,
        LossConfig(name="balanced_softmax"): 0.0,
        LossConfig(name="logit_adjustment", tau=0.25): 0.75,
        LossConfig(name="logit_adjustment", tau=2.0): 0.0,
    }
    assert {config: lean_left(config) for config in lefts} == lefts


@pytest.mark.parametrize("seed", range(3))
def test_with_validation_no_other_pair_on_a_grid_is_better_there(seed: int) -> None:
    train, validation = make_branches(seed), make_branches(seed + 50)

    def balanced(alpha: float, strength: float) -> float:
        logits = validation.factual - alpha * validation.counterfactual - strength * LOG_SHARE
        right = logits.argmax(axis=1) == validation.labels
        return float(np.mean([right[validation.labels == label].mean() for label in range(len(COUNTS))]))

    knobs = choose_knobs(AlphaConfig(), train, validation, COUNTS, 1.0)
    assert knobs.chosen_by == "validation"
    best = max(balanced(alpha, strength) for alpha in np.linspace(0, 3, 61) for strength in STRENGTHS)
    assert balanced(knobs.alpha, knobs.prior_strength) >= best - 1e-9
