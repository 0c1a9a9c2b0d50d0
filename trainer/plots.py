"""Pictures of results. Knows numbers, not models."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

mpl.use("agg")

from matplotlib import pyplot as plt

from service.bundle import area_at_half_energy
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


def plot_activation_maps(
    pictures: list[tuple[NDArray[Any], int, list[int], list[NDArray[Any]]]],
    names: list[str],
    alpha: float,
    file: Path,
) -> None:
    """Draw a row for each picture: itself, and where its true class's logit comes from at alpha 0 and by TDE.

    Args:
        pictures: of each the pixels, the true class, the winners at both alphas, the maps at both alphas.
        names: of the classes.
        alpha: of the second map.
        file: where to write it.
    """
    figure, grid = plt.subplots(
        len(pictures), 3, figsize=(8.4, 2.9 * len(pictures)), layout="constrained", squeeze=False
    )
    for row, (image, label, winners, maps) in zip(grid, pictures, strict=True):
        extent = (0, image.shape[1], image.shape[0], 0)
        span = max(float(np.abs(one).max()) for one in maps) or 1.0
        for axes in row:
            axes.imshow(image, extent=extent, cmap="gray")
            axes.set_axis_off()
        row[0].set_title(f"truly {names[label]}", fontsize=9)
        for axes, values, winner, at in zip(row[1:], maps, winners, (0.0, alpha), strict=True):
            drawn = axes.imshow(values, extent=extent, cmap="RdBu_r", vmin=-span, vmax=span, alpha=0.75)
            area = area_at_half_energy(values)
            where = "nothing for it" if area is None else f"half of it on {100 * area:.0f} % of the area"
            axes.set_title(f"alpha {at:.3g}: {names[winner]}\n{values.sum():+.1f}, {where}", fontsize=8)
        figure.colorbar(drawn, ax=row[2], shrink=0.8)
    figure.suptitle("Where the true class's logit comes from (red: for it, blue: against it)", fontsize=11)
    figure.savefig(file, dpi=120)
    plt.close(figure)
