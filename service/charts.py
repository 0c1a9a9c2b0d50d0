"""A trade-off as a chart: in letters for the terminal, or as a picture where matplotlib is installed."""

from pathlib import Path

import numpy as np

from service.tradeoff import AccuracyCurve
from service.tune import Tuning

_LETTERS = {"overall": "o", "balanced": "b", "many": "M", "medium": "m", "few": "f"}
_COLOURS = {"overall": "black", "balanced": "tab:purple", "many": "tab:blue", "medium": "tab:orange", "few": "tab:red"}


def text_chart(tuning: Tuning, *, width: int = 64, height: int = 16) -> str:
    """Return accuracy over alpha in letters: o overall, b balanced, M many, m medium, f few.

    The curve is that at the best prior_strength: the alpha in use is shown where its prior_strength is the same.
    """
    curve = tuning.curve
    rows = [[" "] * width for _ in range(height + 1)]
    now = {_column(curve, tuning.current.alpha, width): ":"} if _shows_now(tuning) else {}
    columns = now | {_column(curve, tuning.best.alpha, width): "|"}
    for column, sign in columns.items():
        for row in rows:
            row[column] = sign
    for name, letter in reversed(_LETTERS.items()):
        if name in ("overall", "balanced") or name in curve.by_group:
            for column, value in enumerate(_sampled(curve, name, width)):
                rows[height - round(value * height)][column] = letter
    lines = [f"{1 - row / height:4.0%} {''.join(signs)}" for row, signs in enumerate(rows)]
    axis = f"     {curve.low:<{width // 2}g}{curve.high:>{width - width // 2}g}"
    signs_of_knobs = "; : now, | best" if now else f"; | best; {_strength_shown(tuning)}"
    legend = "     " + ", ".join(f"{letter} {name}" for name, letter in _LETTERS.items()) + signs_of_knobs
    return "\n".join([*lines, axis, legend])


def picture(tuning: Tuning, path: Path) -> None:
    """Write the chart as a picture.

    Raises:
        ImportError: matplotlib is not installed; the service itself does without.
        OSError: nothing can be written there.
        ValueError: there is no such format of pictures.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - only whoever wants a picture needs it

    curve = tuning.curve
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    edges = np.concatenate([[curve.low], curve.breakpoints, [curve.high]])
    for name in ("overall", "balanced", *curve.by_group):
        axes.stairs(curve.values(name), edges, baseline=None, label=name, color=_COLOURS[name])
    title = f"{tuning.labels} labels, {tuning.objective.text}"
    if _shows_now(tuning):
        axes.axvline(tuning.current.alpha, linestyle=":", color="grey", label=f"now, {tuning.current.alpha:.2f}")
    else:
        title += f"\n{_strength_shown(tuning)}"
    axes.axvline(tuning.best.alpha, color="grey", label=f"best, {tuning.best.alpha:.2f}")
    axes.axvspan(*tuning.alpha_interval, color="grey", alpha=0.15)
    axes.set(xlabel="alpha", ylabel="accuracy", ylim=(0, 1), title=title)
    axes.legend()
    figure.savefig(path, dpi=120, format=path.suffix.removeprefix(".") or "png")


def _shows_now(tuning: Tuning) -> bool:
    return tuning.current.prior_strength == tuning.best.prior_strength


def _strength_shown(tuning: Tuning) -> str:
    return f"all at prior_strength {tuning.best.prior_strength:g}, now it is {tuning.current.prior_strength:g}"


def _column(curve: AccuracyCurve, alpha: float, width: int) -> int:
    return round((alpha - curve.low) / (curve.high - curve.low) * (width - 1))


def _sampled(curve: AccuracyCurve, name: str, points: int) -> list[float]:
    alphas = np.linspace(curve.low, curve.high, points)
    values: list[float] = curve.values(name)[curve.breakpoints.searchsorted(alphas, "right")].tolist()
    return values
