import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.scoring import Branches, Knobs, Score, score

CLASSES = 6
LOG_SHARE = np.log(np.array([50, 30, 10, 5, 3, 2]) / 100)
targets = st.none() | hnp.arrays(np.float64, CLASSES, elements=st.floats(-3, 3))
knobs = st.builds(Knobs, st.floats(0, 3), st.floats(0, 4), targets)


def branches(samples: int, seed: int = 0) -> Branches:
    generator = np.random.default_rng(seed)
    factual, counterfactual = generator.normal(scale=5, size=(2, samples, CLASSES)).astype(np.float32)
    return Branches(factual, counterfactual, generator.uniform(-1, 1, (samples, 2)).astype(np.float32))


def scores(of: Branches, chosen: list[Knobs]) -> list[Score]:
    return score(of, chosen, log_class_share=LOG_SHARE, low=0.0, high=3.0)


@given(st.lists(knobs, min_size=1, max_size=8), st.integers(0, 100))
def test_each_row_is_the_formula_at_its_own_knobs(chosen: list[Knobs], seed: int) -> None:
    of = branches(len(chosen), seed)
    for row, (result, (alpha, strength, target)) in enumerate(zip(scores(of, chosen), chosen, strict=True)):
        offset = -strength * LOG_SHARE + (0.0 if target is None else target)
        factual, counterfactual = (array[row].astype(np.float64) for array in of[:2])
        logits = factual - alpha * counterfactual + offset
        np.testing.assert_allclose(result.logits, logits, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(result.probabilities.sum(), 1.0)
        assert (np.diff(result.logits[result.ranking]) <= 0).all()
        assert result.ranking[0] == result.logits.argmax()
        assert result.plain_winner == (of.factual_logits[row] + offset).argmax()
        assert result.confounder_cosine == pytest.approx(of.confounder_cosine[row].mean(), abs=1e-6)


@given(st.lists(knobs, min_size=2, max_size=8), st.integers(0, 100))
def test_a_batch_of_mixed_knobs_equals_separate_calls_bit_for_bit(chosen: list[Knobs], seed: int) -> None:
    of = branches(len(chosen), seed)
    for row, together in enumerate(scores(of, chosen)):
        (alone,) = scores(Branches(*(array[row : row + 1] for array in of)), [chosen[row]])
        np.testing.assert_array_equal(together.logits, alone.logits)
        np.testing.assert_array_equal(together.ranking, alone.ranking)
        np.testing.assert_array_equal(together.envelope.breakpoints, alone.envelope.breakpoints)


@given(knobs, st.integers(0, 100))
def test_the_envelope_agrees_with_the_served_winner(chosen: Knobs, seed: int) -> None:
    (result,) = scores(branches(1, seed), [chosen])
    assert result.envelope.winner_at(chosen.alpha) == result.ranking[0]
    low, high = result.envelope.stable_interval(chosen.alpha)
    assert low <= chosen.alpha <= high


def test_of_equal_logits_the_lower_index_ranks_first() -> None:
    factual = np.float32([[1, 0, 0, 1, 0, 0, 1, 0, 0, 1]])
    of = Branches(factual, np.zeros_like(factual), np.zeros((1, 1), np.float32))
    (result,) = score(of, [Knobs(1.0)], log_class_share=np.log(np.full(10, 0.1)), low=0.0, high=3.0)
    assert result.ranking.tolist() == [0, 3, 6, 9, 1, 2, 4, 5, 7, 8]


def test_enormous_logits_give_probabilities_all_the_same() -> None:
    of = Branches(np.full((1, 6), 1e30, np.float32), np.zeros((1, 6), np.float32), np.zeros((1, 2), np.float32))
    assert np.isfinite(scores(of, [Knobs(1.0)])[0].probabilities).all()


def test_a_nan_from_the_model_is_an_error_not_an_answer() -> None:
    of = branches(2)
    of.factual_logits[1, 2] = np.nan
    with pytest.raises(ValueError, match="finite"):
        scores(of, [Knobs(0.0), Knobs(1.0)])
