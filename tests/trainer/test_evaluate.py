import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.bundle import shot_group_of
from tests.trainer.tiny import patient
from trainer.config import AlphaConfig
from trainer.evaluate import Evaluation, evaluate_branches, expected_calibration_error, sampled_curve
from trainer.inference import Branches
from trainer.plots import plot_tradeoff

COUNTS = np.array([400, 101, 100, 20, 19, 1])


def make_evaluation(seed: int, *, rows: int = 40, alpha: AlphaConfig | None = None) -> Evaluation:
    generator = np.random.default_rng(seed)
    factual, counterfactual = (generator.normal(size=(rows, len(COUNTS))).astype(np.float32) for _ in range(2))
    labels = generator.integers(0, len(COUNTS), rows)
    branches = Branches(factual, counterfactual, np.ones((rows, 2), np.float32), labels)
    return evaluate_branches(branches, COUNTS, alpha or AlphaConfig())


def by_hand(evaluation: Evaluation, alpha: float, strength: float = 0.0) -> dict[str, float]:
    """Every accuracy by loops over pictures."""
    right: dict[str, list[bool]] = {}
    by_class: dict[int, list[bool]] = {}
    log_share = np.log(COUNTS / COUNTS.sum())
    branches = evaluation.branches
    for factual, counterfactual, label in zip(branches.factual, branches.counterfactual, branches.labels, strict=True):
        winner = max(
            range(len(factual)), key=lambda c: factual[c] - alpha * counterfactual[c] - strength * log_share[c]
        )
        for key in ("accuracy", f"{shot_group_of(int(COUNTS[label]))}_shot_accuracy"):
            right.setdefault(key, []).append(winner == label)
        by_class.setdefault(int(label), []).append(winner == label)
    means = {key: sum(values) / len(values) for key, values in right.items()}
    recalls = [sum(values) / len(values) for values in by_class.values()]
    return means | {"balanced_accuracy": sum(recalls) / len(recalls)}


@patient
@given(st.integers(0, 1000), st.floats(-1, 4), st.sampled_from([0.0, 0.75, 1.0]))
def test_accuracies_are_those_counted_by_hand(seed: int, alpha: float, strength: float) -> None:
    evaluation = make_evaluation(seed)
    measured = evaluation.at(alpha, strength)
    expected = by_hand(evaluation, alpha, strength)
    assert {name: measured[name] for name in expected} == pytest.approx(expected)
    assert (measured["alpha"], measured["prior_strength"]) == (alpha, strength)


@patient
@given(st.integers(0, 1000), st.floats(0, 3))
def test_the_curve_is_the_accuracy_at_every_alpha(seed: int, alpha: float) -> None:
    evaluation = make_evaluation(seed)
    expected = by_hand(evaluation, alpha)
    curve = evaluation.curve.at(alpha)
    assert curve["overall"] == pytest.approx(expected["accuracy"])
    assert curve["balanced"] == pytest.approx(expected["balanced_accuracy"])
    for group in ("many", "medium", "few"):
        if group in curve:
            assert curve[group] == pytest.approx(expected[f"{group}_shot_accuracy"])


def test_the_optimum_is_no_worse_than_any_alpha() -> None:
    evaluation = make_evaluation(3)
    best = evaluation.optimum()
    assert best["overall"] == pytest.approx(by_hand(evaluation, best["alpha"])["accuracy"])
    assert best["overall"] >= max(by_hand(evaluation, alpha)["accuracy"] for alpha in np.linspace(0, 3, 61))


def test_classes_without_test_pictures_are_left_out_of_the_balance() -> None:
    factual = np.zeros((2, 6), np.float32)
    factual[:, 1] = 1
    branches = Branches(factual, np.zeros_like(factual), np.ones((2, 2), np.float32), np.array([1, 4]))
    measured = evaluate_branches(branches, COUNTS, AlphaConfig()).at(0.0)
    assert measured["balanced_accuracy"] == 0.5
    assert (measured["many_shot_accuracy"], measured["few_shot_accuracy"]) == (1.0, 0.0)
    assert "medium_shot_accuracy" not in measured


@patient
@given(st.integers(0, 1000), st.integers(1, 200), st.integers(2, 6))
def test_the_calibration_error_is_that_of_a_plain_loop(seed: int, rows: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(classes, 0.3), rows)
    labels = generator.integers(0, classes, rows)
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        confidence = max(row)
        bins[min(int(confidence * 15), 14)].append((confidence, row.index(confidence) == label))
    expected = sum(
        len(members) / rows * abs(np.mean([right for _, right in members]) - np.mean([sure for sure, _ in members]))
        for members in bins
        if members
    )
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-8)


def test_certainty_that_is_always_right_is_perfectly_calibrated() -> None:
    assert expected_calibration_error(np.eye(4), np.arange(4)) == 0.0
    assert expected_calibration_error(np.eye(4), np.roll(np.arange(4), 1)) == 1.0


def test_the_sampled_curve_reads_the_exact_one_and_is_json() -> None:
    evaluation = make_evaluation(5)
    sampled = json.loads(json.dumps(sampled_curve(evaluation.curve)))
    assert len(sampled["alpha"]) == 301
    assert (sampled["alpha"][0], sampled["alpha"][-1]) == (0.0, 3.0)
    for place in (0, 77, 300):
        assert sampled["overall"][place] == evaluation.curve.at(sampled["alpha"][place])["overall"]
    assert {"balanced", "many", "medium", "few"} <= set(sampled)


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (-2.0, 1.0), (0.5, 2.0), (-3.0, -1.0)])
def test_the_plot_is_a_png_over_any_range_of_alpha(tmp_path: Path, low: float, high: float) -> None:
    evaluation = make_evaluation(7, alpha=AlphaConfig(minimum=low, maximum=high))
    file = tmp_path / "plot.png"
    plot_tradeoff(evaluation, (low + high) / 2, "the trade-off", file)
    with Image.open(file) as image:
        assert (image.format, image.size) == ("PNG", (1200, 750))
        assert len(image.convert("RGB").getcolors(2**20) or []) > 50
