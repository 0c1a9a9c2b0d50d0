from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.charts import text_chart
from service.errors import InvalidParameter
from service.objectives import parse_objective
from service.replay import Rectangle, Replay, candidates
from service.scoring import Knobs
from service.tune import labels_lacking, tune

CLASSES = 9
COUNTS = np.array([500, 300, 200, 80, 50, 30, 10, 8, 5])
GROUPS = ["many"] * 3 + ["medium"] * 3 + ["few"] * 3
SHARE = np.log(COUNTS / COUNTS.sum())
RECTANGLE = Rectangle(0.0, 3.0, 2.0)


def traffic(samples: int, *, seed: int = 0, bias: float = 1.0) -> Replay:
    """Each class alike, by a model that leans to frequent classes: alpha near `bias` takes the lean away."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, samples)
    lean = 2.0 * (SHARE - SHARE.mean())
    factual = generator.normal(scale=1.5, size=(samples, CLASSES)) + bias * lean
    factual[np.arange(samples), labels] += 3
    counterfactual = np.broadcast_to(lean, factual.shape)
    kept = candidates(
        factual.astype(np.float32), counterfactual.astype(np.float32), log_class_share=SHARE, rectangle=RECTANGLE
    )
    return Replay.of(kept, labels.tolist(), log_class_share=SHARE, shot_groups=GROUPS, rectangle=RECTANGLE)


@pytest.mark.parametrize("text", ["overall", "balanced", "many=1,medium=1,few=1", "few>=0.5 then overall"])
def test_the_best_alpha_is_found_and_holds_on_other_pictures(text: str) -> None:
    objective = parse_objective(text)
    tuning = tune(traffic(500), objective, Knobs(0.0))
    assert tuning.keep is None
    assert 0.6 < tuning.best.alpha < 1.4
    low, high = tuning.alpha_interval
    assert low - 0.1 <= tuning.best.alpha <= high + 0.1
    fresh = traffic(2000, seed=1)
    before, after = (fresh.curve().at(alpha) for alpha in (0.0, tuning.best.alpha))
    assert after["few"] > before["few"] + 0.2
    assert after["overall"] - before["overall"] == pytest.approx(
        tuning.after["overall"] - tuning.before["overall"], abs=0.08
    )


def test_both_knobs_are_found_and_never_worse_than_alpha_alone() -> None:
    replay, objective = traffic(400, bias=1.5), parse_objective("overall")
    alone = tune(replay, objective, Knobs(0.0))
    both = tune(replay, objective, Knobs(0.0), which="both")
    assert both.after["overall"] >= alone.after["overall"]
    assert both.after["overall"] == pytest.approx(
        (replay.winners(both.best.alpha, both.best.prior_strength) == replay.labels).mean()
    )


def test_a_chart_shows_the_alpha_in_use_where_the_curve_is_that_of_its_prior_strength() -> None:
    tuning = tune(traffic(400), parse_objective("overall"), Knobs(0.0))
    assert "; : now, | best" in text_chart(tuning)
    chart = text_chart(replace(tuning, best=Knobs(1.0, 0.5)))
    assert ":" not in chart
    assert chart.endswith("; | best; all at prior_strength 0.5, now it is 0")


def test_what_is_best_already_is_kept() -> None:
    replay, objective = traffic(500), parse_objective("overall")
    best = tune(replay, objective, Knobs(0.0)).best
    assert "no other setting" in (tune(replay, objective, best).keep or "")


def test_a_gain_that_may_be_chance_is_no_reason_to_change() -> None:
    kept = [tune(traffic(60, seed=seed), parse_objective("overall"), Knobs(1.0)).keep for seed in range(8)]
    assert sum(reason is not None for reason in kept) >= 7


def test_too_few_labels_are_named() -> None:
    assert "49 labelled predictions are too few" in (labels_lacking(traffic(49), parse_objective("overall")) or "")
    lacking = labels_lacking(traffic(51), parse_objective("few>=0.5 then overall"))
    assert lacking is None
    rare = traffic(60)
    assert labels_lacking(rare, parse_objective("overall")) is None


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from(["overall", "balanced", "few"]))
def test_no_alpha_of_a_grid_beats_the_best(seed: int, name: str) -> None:
    replay = traffic(80, seed=seed)
    objective = parse_objective(name)
    tuning = tune(replay, objective, Knobs(0.5))
    for alpha in np.linspace(0, 3, 61):
        correct = replay.winners(float(alpha), 0.0) == replay.labels
        truth = np.array(GROUPS)[replay.labels]
        if name == "overall":
            value = correct.mean()
        elif name == "balanced":
            value = np.mean([correct[replay.labels == label].mean() for label in np.unique(replay.labels)])
        else:
            value = correct[truth == "few"].mean()
        assert value <= tuning.after[name] + 1e-9


@pytest.mark.parametrize(
    "text", ["", "best", "many=0", "many=1,many=2", "few>=2 then overall", "few>=0.4", "few>=0.4 then", "few=1;many=1"]
)
def test_an_objective_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="cannot be read"):
        parse_objective(text)


def test_an_objective_knows_the_groups_that_it_looks_at() -> None:
    assert parse_objective("few>=0.4,many>=.5 then overall").groups(GROUPS) == {"few", "many"}
    assert parse_objective("overall").groups(GROUPS) == set()
    for text in ("balanced", "balanced>=0.5 then overall", "few>=0.4 then balanced"):
        assert parse_objective(text).groups(GROUPS) == {"many", "medium", "few"}
        assert parse_objective(text).groups(["many", "few"]) == {"many", "few"}


@pytest.mark.parametrize("text", ["balanced", "balanced>=0.5 then overall"])
def test_balanced_needs_labels_of_every_shot_group_of_the_model(text: str) -> None:
    whole = traffic(300)
    many = whole.labels < 3
    one_group = replace(
        whole,
        classes=whole.classes[many],
        heights=whole.heights[many],
        slopes=whole.slopes[many],
        labels=whole.labels[many],
    )
    assert len(one_group) >= 50
    assert labels_lacking(one_group, parse_objective("overall")) is None
    assert "0 labels of medium-shot classes are too few" in (labels_lacking(one_group, parse_objective(text)) or "")
    assert labels_lacking(whole, parse_objective(text)) is None


def test_a_floor_that_no_alpha_meets_is_named_and_nothing_changes() -> None:
    replay, objective = traffic(500), parse_objective("few>=0.99 then overall")
    tuning = tune(replay, objective, Knobs(0.0))
    highest = replay.curve().by_group["few"].max()
    assert highest < 0.99
    assert tuning.after["few"] == highest
    expected = f"no alpha within the bounds reaches few >= 0.99; the highest is {highest:.3f} at alpha"
    assert (tuning.keep or "").startswith(expected)
    floor = tuning.floors["few"]
    assert (floor.least, floor.before, floor.after) == (0.99, tuning.before["few"], highest)
    assert not (floor.met_before or floor.met_after)
    both = tune(replay, parse_objective("few>=0.99,many>=0.99 then overall"), Knobs(0.0), which="both").keep or ""
    assert both.startswith(
        "no knobs within the bounds reach few >= 0.99 and many >= 0.99 together; the nearest is few "
    )
    assert ", prior_strength " in both


def test_a_gain_is_one_in_accuracy_whatever_the_floors_lacked() -> None:
    tuning = tune(traffic(500), parse_objective("few>=0.5 then many"), Knobs(0.0))
    assert tuning.keep is None
    assert (tuning.floors["few"].met_before, tuning.floors["few"].met_after) == (False, True)
    assert tuning.gain == pytest.approx(tuning.after["many"] - tuning.before["many"])
    low, high = tuning.gain_interval
    assert low <= tuning.gain <= high < 0.2
    assert abs(tuning.expected_gain) < 0.2


def test_where_nothing_is_better_the_best_is_the_current() -> None:
    replay, objective = traffic(500), parse_objective("overall")
    found = tune(replay, objective, Knobs(0.0)).best
    edges = replay.curve().breakpoints
    nearby = Knobs(float((found.alpha + edges[edges > found.alpha][0]) / 2))
    tuning = tune(replay, objective, nearby)
    assert nearby.alpha != found.alpha
    assert (tuning.best, tuning.gain) == (nearby, 0.0)
    assert "no other setting" in (tuning.keep or "")
