import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from service.tradeoff import (
    AccuracyCurve,
    accuracy_curve,
    best_alpha,
    correct_intervals,
    curve_from_intervals,
    upper_envelope,
    upper_envelopes,
)

LOW, HIGH = 0.0, 3.0
GRID = np.linspace(LOW, HIGH, 97)
Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


def lines(shape: st.SearchStrategy[tuple[int, ...]]) -> st.SearchStrategy[Pair]:
    """Logits as models give them (float32), and small integers, which meet in many ties."""
    floats = st.floats(-20, 20, width=32)
    integers = st.integers(-3, 3).map(float)

    def pair(drawn: tuple[tuple[int, ...], st.SearchStrategy[float]]) -> st.SearchStrategy[Pair]:
        arrays = hnp.arrays(np.float64, drawn[0], elements=drawn[1])
        return st.tuples(arrays, arrays)

    return st.tuples(shape, st.sampled_from([floats, integers])).flatmap(pair)


one_sample = lines(st.tuples(st.integers(1, 12)))
many_samples = lines(st.tuples(st.integers(1, 15), st.integers(1, 6)))


@given(one_sample)
def test_the_winner_has_the_largest_logit_everywhere(pair: Pair) -> None:
    factual, counterfactual = pair
    envelope = upper_envelope(factual, counterfactual, low=LOW, high=HIGH)
    for alpha in [*GRID, *envelope.breakpoints]:
        logits = factual - alpha * counterfactual
        assert logits[envelope.winner_at(alpha)] == pytest.approx(logits.max(), abs=1e-9)


@given(one_sample)
def test_between_breakpoints_the_winner_is_argmax_with_its_rule_for_ties(pair: Pair) -> None:
    factual, counterfactual = pair
    envelope = upper_envelope(factual, counterfactual, low=LOW, high=HIGH)
    edges = [LOW, *envelope.breakpoints, HIGH]
    for start, end, winner in zip(edges, edges[1:], envelope.winners, strict=False):
        if end - start > 1e-6:
            logits = factual - (start + end) / 2 * counterfactual
            runner_up = np.delete(logits, winner)
            if not len(runner_up) or abs(logits[winner] - runner_up.max()) > 1e-9:
                assert winner == logits.argmax()
    for alpha in (LOW, HIGH):
        assert envelope.winner_at(alpha) == (factual - alpha * counterfactual).argmax()


@given(one_sample)
def test_breakpoints_ascend_within_the_range_and_neighbours_differ(pair: Pair) -> None:
    envelope = upper_envelope(*pair, low=LOW, high=HIGH)
    assert (np.diff(envelope.breakpoints) >= 0).all()
    assert ((envelope.breakpoints >= LOW) & (envelope.breakpoints <= HIGH)).all()
    assert (np.diff(envelope.winners) != 0).all()
    assert len(envelope.winners) == len(envelope.breakpoints) + 1


@given(one_sample, st.floats(LOW, HIGH))
def test_the_stable_interval_holds_alpha_and_one_winner(pair: Pair, alpha: float) -> None:
    envelope = upper_envelope(*pair, low=LOW, high=HIGH)
    start, end = envelope.stable_interval(alpha)
    assert start <= alpha <= end
    assert envelope.winner_at((start + end) / 2) == envelope.winner_at(alpha)


@given(many_samples, st.floats(-1, 1), st.floats(1, 4))
def test_a_batch_has_the_envelopes_of_each_by_itself(pair: Pair, low: float, high: float) -> None:
    together = upper_envelopes(*pair, low=low, high=high)
    for envelope, factual, counterfactual in zip(together, *pair, strict=True):
        alone = upper_envelope(factual, counterfactual, low=low, high=high)
        assert (envelope.low, envelope.high) == (low, high)
        assert envelope.winners.tolist() == alone.winners.tolist()
        assert envelope.breakpoints.tolist() == alone.breakpoints.tolist()


def test_a_range_that_begins_above_zero_begins_with_its_own_winner() -> None:
    (envelope,) = upper_envelopes([[1.0, 0.0]], [[2.0, 0.0]], low=1.0, high=3.0)
    assert (envelope.winners.tolist(), envelope.breakpoints.tolist()) == ([1], [])


def test_where_three_lines_meet_the_steepest_wins_from_there() -> None:
    envelope = upper_envelope([2.0, 1.0, 0.0], [3.0, 2.0, 1.0], low=LOW, high=HIGH)
    assert (envelope.winners.tolist(), envelope.breakpoints.tolist()) == ([0, 2], [1.0])


def test_of_equal_lines_the_lowest_index_wins() -> None:
    envelope = upper_envelope([1.0, 1.0, 0.0], [0.5, 0.5, 0.0], low=LOW, high=HIGH)
    assert envelope.winners.tolist() == [0, 2]
    assert envelope.breakpoints.tolist() == [2.0]


def test_a_tie_at_the_lower_end_goes_to_the_lowest_index_for_that_point_alone() -> None:
    envelope = upper_envelope([1.0, 1.0], [1.0, 0.0], low=LOW, high=HIGH)
    assert envelope.winner_at(0.0) == 0
    assert envelope.winner_at(1e-9) == 1
    assert envelope.stable_interval(0.0) == (0.0, 0.0)


def test_an_envelope_outside_its_range_is_refused() -> None:
    envelope = upper_envelope([1.0, 0.0], [2.0, 0.0], low=LOW, high=HIGH)
    with pytest.raises(ValueError, match=r"alpha must lie in \[0.0, 3.0\], got 3.5"):
        envelope.winner_at(3.5)


@pytest.mark.parametrize(
    ("factual", "counterfactual", "message"),
    [
        ([1.0], [1.0, 2.0], "same shape"),
        ([], [], "not empty"),
        ([np.nan, 1.0], [1.0, 2.0], "finite"),
        ([1.0, 2.0], [np.inf, 2.0], "finite"),
        ([0.0, 1.0], [np.inf, 1.0], "finite"),
        ([np.inf, -np.inf], [1.0, 1.0], "finite"),
    ],
)
def test_lines_that_cannot_be_are_refused(factual: list[float], counterfactual: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        upper_envelope(factual, counterfactual, low=LOW, high=HIGH)
    if counterfactual and len(factual) == len(counterfactual):
        with pytest.raises(ValueError, match=message):
            upper_envelopes([[1.0, 2.0], factual], [[1.0, 2.0], counterfactual], low=LOW, high=HIGH)


def test_lines_whose_product_overflows_are_lines_all_the_same() -> None:
    steep = np.array([[1e200, -1e200], [1.0, 2.0]])
    for envelope in upper_envelopes(steep, steep, low=0.0, high=0.5):
        assert envelope.winner_at(0.0) in {0, 1}


BLAS = """
import time
import numpy as np
from threadpoolctl import threadpool_info
from service.tradeoff import upper_envelopes

lines = np.random.default_rng(0).normal(size=(2, 32, 1000))
upper_envelopes(*lines, low=0.0, high=3.0)
time.sleep(0.5)
begin = time.process_time(), time.thread_time()
for _ in range(20):
    upper_envelopes(*lines, low=0.0, high=3.0)
spent, here = time.process_time() - begin[0], time.thread_time() - begin[1]
print(max(library["num_threads"] for library in threadpool_info()), spent / here)
"""


def test_a_batch_of_many_classes_takes_no_other_core() -> None:
    wanted = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, "-c", BLAS]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=wanted).stdout.split()
    if said[0] != "2":
        pytest.skip("needs two cores, and OpenBLAS")
    assert float(said[1]) < 1.2


def brute_force(factual: NDArray[np.float64], counterfactual: NDArray[np.float64], alpha: float) -> NDArray[np.int64]:
    winners: NDArray[np.int64] = (factual - alpha * counterfactual).argmax(axis=1)
    return winners


def middles(curve: AccuracyCurve) -> NDArray[np.float64]:
    edges = np.concatenate([[curve.low], curve.breakpoints, [curve.high]])
    wide = np.diff(edges) > 1e-6
    centres: NDArray[np.float64] = ((edges[:-1] + edges[1:]) / 2)[wide]
    return centres


@settings(deadline=None)
@given(many_samples, st.data())
def test_the_curve_equals_argmax_at_every_alpha(pair: Pair, data: st.DataObject) -> None:
    factual, counterfactual = pair
    samples, classes = factual.shape
    labels = data.draw(hnp.arrays(np.int64, samples, elements=st.integers(0, classes - 1)))
    groups = data.draw(st.lists(st.sampled_from(["many", "medium", "few"]), min_size=classes, max_size=classes))
    curve = accuracy_curve(factual, counterfactual, labels, low=LOW, high=HIGH, shot_groups=groups)
    for alpha in middles(curve):
        logits = np.sort(factual - alpha * counterfactual, axis=1)
        if classes > 1 and (logits[:, -1] - logits[:, -2] < 1e-9).any():
            continue  # equal lines, whose order is another test, or rounding
        correct = brute_force(factual, counterfactual, alpha) == labels
        accuracies = curve.at(float(alpha))
        assert accuracies["overall"] == pytest.approx(correct.mean())
        recalls = [correct[labels == label].mean() for label in np.unique(labels)]
        assert accuracies["balanced"] == pytest.approx(np.mean(recalls))
        for group in set(np.array(groups)[labels].tolist()):
            assert accuracies[group] == pytest.approx(correct[np.array(groups)[labels] == group].mean())


@settings(deadline=None)
@given(many_samples, st.data())
def test_a_sample_is_right_where_its_envelope_says_so(pair: Pair, data: st.DataObject) -> None:
    # Lines that part by less than rounding are equal to one who computes logits, and not to one who compares slopes.
    factual, counterfactual = (array.round(6) for array in pair)
    labels = data.draw(hnp.arrays(np.int64, len(factual), elements=st.integers(0, factual.shape[1] - 1)))
    starts, ends = correct_intervals(factual, counterfactual, labels, low=LOW, high=HIGH)
    for row, label in enumerate(labels):
        envelope = upper_envelope(factual[row], counterfactual[row], low=LOW, high=HIGH)
        edges = np.array([LOW, *envelope.breakpoints, HIGH])
        right = (envelope.winners == label) & (np.diff(edges) > 0)
        if right.any():
            assert starts[row] == pytest.approx(edges[:-1][right].min(), abs=1e-9)
            assert ends[row] == pytest.approx(edges[1:][right].max(), abs=1e-9)
        else:
            assert ends[row] - starts[row] == pytest.approx(0.0, abs=1e-9)


def test_equal_lines_leave_the_higher_index_never_right() -> None:
    start, end = correct_intervals([[1.0, 1.0]] * 2, [[0.0, 0.0]] * 2, [0, 1], low=LOW, high=HIGH)
    assert (start.tolist(), end.tolist()) == ([0.0, 0.0], [3.0, 0.0])


def test_on_a_breakpoint_accuracy_is_that_of_the_stretch_that_begins_there() -> None:
    curve = accuracy_curve([[1.0, 0.0], [1.0, 0.0]], [[2.0, 0.0], [1.0, 0.0]], [0, 1], low=LOW, high=HIGH)
    assert [curve.at(alpha)["overall"] for alpha in (0.0, 0.5, 0.75, 1.0, 3.0)] == [0.5, 0.0, 0.0, 0.5, 0.5]


def test_groups_without_samples_are_left_out() -> None:
    curve = accuracy_curve([[1.0, 0.0]], [[0.0, 0.0]], [0], low=LOW, high=HIGH, shot_groups=["many", "few"])
    assert list(curve.by_group) == ["many"]
    with pytest.raises(ValueError, match="objective must be one of overall, balanced, many, got 'few'"):
        best_alpha(curve, "few")


def test_the_best_alpha_is_the_centre_of_the_longest_best_stretch() -> None:
    curve = curve_from_intervals([0.0, 1.0, 2.0], [0.5, 1.5, 3.0], labels=[0, 0, 0], num_classes=1, low=LOW, high=HIGH)
    assert best_alpha(curve) == 2.5


def test_of_equally_long_best_stretches_the_smaller_alpha_wins() -> None:
    curve = curve_from_intervals([0.5, 2.0], [1.0, 2.5], labels=[0, 0], num_classes=1, low=LOW, high=HIGH)
    assert best_alpha(curve) == 0.75


def test_equally_high_neighbours_count_as_one_stretch() -> None:
    curve = curve_from_intervals([0.0, 1.0, 2.0], [1.0, 2.0, 2.5], labels=[0, 0, 0], num_classes=1, low=LOW, high=HIGH)
    assert best_alpha(curve) == 1.25


@pytest.mark.parametrize("labels", [[2], [-1], [0.0], [0, 1]])
def test_labels_that_do_not_fit_are_refused(labels: list[float]) -> None:
    with pytest.raises(ValueError, match="labels must"):
        accuracy_curve([[1.0, 0.0]], [[1.0, 0.0]], labels, low=LOW, high=HIGH)


def test_a_test_set_of_ten_thousand_takes_seconds_at_most() -> None:
    generator = np.random.default_rng(0)
    factual, counterfactual = generator.normal(size=(2, 10_000, 100))
    labels = generator.integers(0, 100, 10_000)
    begin = time.perf_counter()
    curve = accuracy_curve(factual, counterfactual, labels, low=LOW, high=HIGH, shot_groups=["few"] * 100)
    assert time.perf_counter() - begin < 5
    alpha = 1.2345
    assert curve.at(alpha)["overall"] == pytest.approx(
        (brute_force(factual, counterfactual, alpha) == labels).mean(), abs=1e-12
    )
