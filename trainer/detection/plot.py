"""The picture of a detector's trade-off. Knows numbers, not models."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("agg")

from matplotlib import pyplot as plt

from trainer.detection.precision import GROUPS
from trainer.plots import COLORS

LETTERS = {"few": "rare", "medium": "common", "many": "frequent"}


def plot_precision(report: dict[str, Any], title: str, file: Path) -> None:
    """Draw AP over alpha, overall and by frequency, of boxes and of masks, with plain and default alpha marked.

    Args:
        report: what ``evaluation.json`` holds.
        title: of the figure.
        file: where to write it.
    """
    curve = report["curve"]
    figure, places = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
    for axes, kind in zip(places, ("box", "mask"), strict=True):
        for measure, group in GROUPS.items():
            label = f"{measure}, {LETTERS[group]} classes"
            axes.plot(curve["alpha"], _percent(curve[kind][measure]), ".-", color=COLORS[group], label=label)
        axes.plot(curve["alpha"], _percent(curve[kind]["AP"]), ".-", color="black", lw=2.5, label="AP, all classes")
        for alpha in (0.0, report["alpha"]):
            axes.axvline(alpha, color="grey", lw=1, ls=":")
        axes.set(title=f"{kind} AP, {report['pictures']} {report['split']} pictures", xlabel="alpha")
        axes.grid(alpha=0.3)
    places[0].set(ylabel="AP, %", ylim=(0, None))
    places[1].legend(fontsize=8)
    figure.suptitle(f"{title} (dotted: plain, and the default alpha)")
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _percent(values: list[float | None]) -> list[float]:
    return [np.nan if value is None else 100 * value for value in values]
