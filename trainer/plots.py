"""Pictures of results. Knows numbers, not models."""

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot as plt

from trainer.evaluate import Evaluation

COLORS = {"many": "#0072b2", "medium": "#e69f00", "few": "#d55e00"}  # Okabe and Ito: told apart by all eyes


def plot_tradeoff(evaluation: Evaluation, default_alpha: float, title: str, file: Path) -> None:
    """Draw accuracy over alpha, overall and by shot group, with plain and default alpha marked."""
    curve = evaluation.curve
    edges = [curve.low, *curve.breakpoints, curve.high]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for group, values in curve.by_group.items():
        axes.stairs(
            100 * values,
            edges,
            baseline=None,
            color=COLORS[group],
            label=f"{group}-shot classes",
            lw=1.5,
            joinstyle="round",
        )
    axes.stairs(
        100 * curve.overall, edges, baseline=None, color="black", label="all classes", lw=2.5, joinstyle="round"
    )
    for alpha, name in ((0.0, "plain"), (default_alpha, "default")):
        if not curve.low <= alpha <= curve.high:
            continue
        overall = 100 * curve.at(alpha)["overall"]
        axes.axvline(alpha, color="grey", lw=1, ls=":")
        axes.annotate(
            f"{name}: alpha {alpha:.2f}\n{overall:.1f} %",
            (alpha, overall),
            xytext=(6, 8),
            textcoords="offset points",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
    axes.set(
        xlabel="alpha  (0: towards frequent classes; higher: towards rare ones)", ylabel="accuracy, %", title=title
    )
    axes.set_xlim(curve.low, curve.high)
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(file, dpi=150)
    plt.close(figure)
