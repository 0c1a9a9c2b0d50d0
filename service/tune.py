"""Which knobs would have served a client best, from its own labelled predictions, and how sure that is.

The accuracy over alpha is exact (`service.replay`), at each of a row of prior strengths where both knobs are tuned.
What is recommended was chosen on the very labels that measure it, so its gain there flatters; the gain that is expected
is therefore measured on predictions that a choice has not seen. It knows neither database nor HTTP.

    resample the predictions with replacement (bootstrap); choose the knobs on the resample; measure them against the
    current ones on the predictions that the resample left out. The mean over resamples is the gain to expect.

Source: Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapters 13 and 17.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.manifest import SHOT_GROUPS
from service.objectives import Objective
from service.replay import Replay
from service.scoring import Knobs
from service.tradeoff import AccuracyCurve, Floats, centre_of_best

Which = Literal["alpha", "both"]

FEWEST_LABELS = 50
FEWEST_LABELS_OF_A_GROUP = 10

_RESAMPLES = 200
_ALPHAS = 61
_STRENGTHS = 17


@dataclass(frozen=True)
class Floor:
    """What an objective demands of an accuracy first; the accuracy at the current and at the best knobs."""

    least: float
    before: float
    after: float

    @property
    def met_before(self) -> bool:
        """Whether the current knobs meet it."""
        return self.before >= self.least

    @property
    def met_after(self) -> bool:
        """Whether the best knobs meet it."""
        return self.after >= self.least


@dataclass(frozen=True, eq=False)
class Tuning:
    """What labels say of the knobs.

    Attributes:
        objective: what was asked for.
        labels: how many labelled predictions there are; by_group: of each shot group.
        current, best: the knobs in use, and those that would have been best; where none meet the floors, the nearest.
        before, after: accuracies at either, by name.
        floors: what comes first, by the accuracy's name.
        alpha_interval, strength_interval: where 95% of resamples would have put the best knobs.
        gain: what the best gain in what the objective makes large, on these labels, whatever its floors say;
            gain_interval: 95% of resamples.
        expected_gain: the same on labels that the choice has not seen.
        keep: why the current knobs should stay; None: they should change.
        curve: the exact accuracy over alpha at the best prior_strength.
    """

    objective: Objective
    labels: int
    by_group: Mapping[str, int]
    current: Knobs
    best: Knobs
    before: Mapping[str, float]
    after: Mapping[str, float]
    floors: Mapping[str, Floor]
    alpha_interval: tuple[float, float]
    strength_interval: tuple[float, float]
    gain: float
    gain_interval: tuple[float, float]
    expected_gain: float
    keep: str | None
    curve: AccuracyCurve


def labels_lacking(replay: Replay, objective: Objective) -> str | None:
    """Return why the labels do not suffice for the objective, or None if they do."""
    counts = labels_by_group(replay)
    looked_at = objective.groups(replay.shot_groups)
    lacking = [group for group in SHOT_GROUPS if group in looked_at and counts[group] < FEWEST_LABELS_OF_A_GROUP]
    if len(replay) < FEWEST_LABELS:
        return f"{len(replay)} labelled predictions are too few: at least {FEWEST_LABELS} are needed"
    if lacking:
        return (
            f"{counts[lacking[0]]} labels of {lacking[0]}-shot classes are too few for this objective: "
            f"at least {FEWEST_LABELS_OF_A_GROUP} are needed"
        )
    return None


def labels_by_group(replay: Replay) -> dict[str, int]:
    """Return how many labels each shot group has."""
    groups = np.array(replay.shot_groups)[replay.labels]
    return {group: int((groups == group).sum()) for group in SHOT_GROUPS}


def tune(replay: Replay, objective: Objective, current: Knobs, *, which: Which = "alpha", seed: int = 0) -> Tuning:
    """Find the knobs within the replay's rectangle that would have served best.

    Args:
        replay: the labelled predictions; enough of them (`labels_lacking`).
        objective: what to make large.
        current: the knobs in use; its alpha and prior_strength lie within the rectangle.
        which: alpha alone, at the current prior_strength, or both.
        seed: of the resampling.
    """
    best = _best(replay, objective, current, which)
    chances = _bootstrap(replay, objective, current, best, which=which, generator=np.random.default_rng(seed))
    before, after = _accuracies(replay, current), _accuracies(replay, best)
    keep = (
        _out_of_reach(objective, best, after, which)
        or _no_better(objective, before, after)
        or _uncertain(objective, chances)
    )
    return Tuning(
        objective=objective,
        labels=len(replay),
        by_group=labels_by_group(replay),
        current=current,
        best=best,
        before=before,
        after=after,
        floors={
            name: Floor(least, before.get(name, 0.0), after.get(name, 0.0)) for name, least in objective.floors.items()
        },
        alpha_interval=_quantiles(chances.alphas),
        strength_interval=_quantiles(chances.strengths),
        gain=float(objective.mean(_whole(after)) - objective.mean(_whole(before))),
        gain_interval=_quantiles(chances.gains),
        expected_gain=float(chances.unseen_gains.mean()),
        keep=keep,
        curve=replay.curve(best.prior_strength),
    )


def _out_of_reach(objective: Objective, best: Knobs, after: Mapping[str, float], which: Which) -> str | None:
    """Return that no knobs meet the floors, and how near they come; None: some do."""
    if not objective.lack(_whole(after)) > 0:
        return None
    none = "no alpha within the bounds reaches" if which == "alpha" else "no knobs within the bounds reach"
    floors = " and ".join(f"{name} >= {least:g}" for name, least in objective.floors.items())
    reached = [(name, after.get(name, 0.0)) for name in objective.floors]
    nearest = ", ".join(f"{name} {value:.3f}" for name, value in reached)
    what = f"the highest is {reached[0][1]:.3f}" if len(reached) == 1 else f"together; the nearest is {nearest}"
    where = f"alpha {best.alpha:.3g}" + ("" if which == "alpha" else f", prior_strength {best.prior_strength:.3g}")
    return f"{none} {floors}{';' if len(reached) == 1 else ''} {what} at {where}"


def _no_better(objective: Objective, before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    if objective.values(_whole(after)) > objective.values(_whole(before)):
        return None
    return "no other setting would have done better on these labels"


def _uncertain(objective: Objective, chances: "_Chances") -> str | None:
    """Return why the labels may lie; None: they are sure enough."""
    low, high = _quantiles(chances.advantages)
    unseen = float(chances.unseen_advantages.mean())
    if low <= 0 and objective.floors:
        return f"that it is better is uncertain: {(chances.advantages > 0).mean():.1%} of resamples say so, not 97.5%"
    if low <= 0:
        return f"the gain is uncertain: 95% of resamples lie between {low:+.3f} and {high:+.3f}"
    if unseen <= 0:
        return f"a choice is no better on labels that it has not seen ({float(chances.unseen_gains.mean()):+.3f})"
    return None


def _strengths(replay: Replay, current: Knobs, which: Which) -> Floats:
    if which == "alpha":
        return np.array([current.prior_strength])
    row = np.linspace(0.0, replay.rectangle.max_prior_strength, _STRENGTHS)
    return np.unique(np.append(row, current.prior_strength))


def _best(replay: Replay, objective: Objective, current: Knobs, which: Which) -> Knobs:
    """Return the centre of the best stretch of alpha at the best prior_strength; of equals the nearest to now.

    Where nothing is better than the current knobs, these are the best.
    """
    found: list[tuple[float, float, Knobs]] = []
    for strength in _strengths(replay, current, which).tolist():
        curve = replay.curve(strength)
        values = objective.values(_steps(curve))
        knobs = Knobs(centre_of_best(curve, values), strength)
        found.append((float(values.max()), -abs(strength - current.prior_strength), knobs))
    value, _, best = max(found, key=lambda each: each[:2])
    return best if value > objective.values(_whole(_accuracies(replay, current))) else current


def _steps(curve: AccuracyCurve) -> dict[str, Floats]:
    steps = {"overall": curve.overall, "balanced": curve.balanced, **curve.by_group}
    return {name: steps.get(name, np.zeros_like(curve.overall)) for name in ("overall", "balanced", *SHOT_GROUPS)}


def _accuracies(replay: Replay, knobs: Knobs) -> dict[str, float]:
    return replay.curve(knobs.prior_strength).at(knobs.alpha)


def _whole(accuracies: Mapping[str, float]) -> dict[str, Floats]:
    """Return the accuracies with 0 for the shot groups that have no label."""
    return {name: np.array(accuracies.get(name, 0.0)) for name in ("overall", "balanced", *SHOT_GROUPS)}


@dataclass(frozen=True, eq=False)
class _Chances:
    """What each resample says, [B].

    Attributes:
        alphas, strengths: which knobs are best on it.
        gains: of the best knobs on all labels, on it, in what the objective makes large; advantages: floors first.
        unseen_gains, unseen_advantages: the same of the knobs that are best on it, on the labels that it left out.
    """

    alphas: Floats
    strengths: Floats
    gains: Floats
    advantages: Floats
    unseen_gains: Floats
    unseen_advantages: Floats


def _bootstrap(
    replay: Replay, objective: Objective, current: Knobs, best: Knobs, *, which: Which, generator: np.random.Generator
) -> _Chances:
    """Resample on a grid of knobs, the current and the best among them."""
    low, high = replay.rectangle.low, replay.rectangle.high
    alphas = np.unique(np.concatenate([np.linspace(low, high, _ALPHAS), [current.alpha, best.alpha]]))
    strengths = np.unique(np.append(_strengths(replay, current, which), best.prior_strength))
    right = np.concatenate([_right(replay, strength, alphas) for strength in strengths], axis=1)  # [N, S * A]

    def place(knobs: Knobs) -> int:
        return int(strengths.searchsorted(knobs.prior_strength) * len(alphas) + alphas.searchsorted(knobs.alpha))

    samples = len(replay)
    drawn = generator.multinomial(samples, np.full(samples, 1 / samples), size=_RESAMPLES).astype(np.float32)
    seen = _grid_accuracies(replay, objective, right, drawn)
    unseen = _grid_accuracies(replay, objective, right, (drawn == 0).astype(np.float32))
    values, unseen_values = objective.values(seen), objective.values(unseen)
    means, unseen_means = objective.mean(seen), objective.mean(unseen)
    chosen = np.array([np.flatnonzero(row == row.max()) for row in values], dtype=object)
    middle = np.array([int(places[len(places) // 2]) for places in chosen])
    rows, now = np.arange(_RESAMPLES), place(current)
    return _Chances(
        alphas=alphas[middle % len(alphas)],
        strengths=strengths[middle // len(alphas)],
        gains=means[:, place(best)] - means[:, now],
        advantages=values[:, place(best)] - values[:, now],
        unseen_gains=unseen_means[rows, middle] - unseen_means[:, now],
        unseen_advantages=unseen_values[rows, middle] - unseen_values[:, now],
    )


def _right(replay: Replay, strength: float, alphas: Floats) -> NDArray[np.float32]:
    """Return 1 where a prediction would have been right, [N, A]; at the highest alpha, as just below it."""
    start, end = replay.intervals(strength)
    ends = np.where(end >= replay.rectangle.high, np.inf, end)[:, None]
    right: NDArray[np.float32] = ((start[:, None] <= alphas) & (alphas < ends) & (start < end)[:, None]).astype("f4")
    return right


def _grid_accuracies(
    replay: Replay, objective: Objective, right: NDArray[np.float32], weights: NDArray[np.float32]
) -> dict[str, Floats]:
    """Return the accuracies that count at each knob of the grid for each weighting of the predictions, [B, G]."""
    groups = np.array(replay.shot_groups)[replay.labels]
    names = {*objective.weights, *objective.floors}
    accuracies: dict[str, Floats] = {}
    for name in names:
        if name == "balanced":
            classes, own = np.unique(replay.labels, return_inverse=True)
            totals = weights @ np.eye(len(classes), dtype=np.float32)[own]  # [B, classes]
            weighted = np.where(weights > 0, weights / np.maximum(totals, 1e-9)[:, own], 0)
        else:
            weighted = weights if name == "overall" else weights * (groups == name)
        accuracies[name] = ((weighted @ right) / np.maximum(weighted.sum(axis=1, keepdims=True), 1e-9)).round(6)
    return accuracies


def _quantiles(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
