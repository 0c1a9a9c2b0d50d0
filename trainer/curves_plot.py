"""The figure of a run: curves over the epochs, norms over the rank of the classes. Knows numbers, not models."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("agg")

from matplotlib import pyplot as plt

from service.bundle import shot_group_of
from trainer.checkpoint import EpochRecord
from trainer.plots import COLORS


def plot_curves(
    history: list[EpochRecord], class_counts: list[int], norms: dict[str, Any] | None, title: str, file: Path
) -> None:
    """Draw a panel for each thing that is known of a run.

    Args:
        history: a record per epoch; runs of earlier releases have nothing by shot group.
        class_counts: training images per class [C]; rank 1 is the most frequent.
        norms: by class, ``weight`` and ``feature``.
        title: of the figure.
        file: where to write it.
    """
    panels = [_loss, _rate] if history else []
    if any(record.train_accuracy is not None for record in history):
        panels.insert(1, _accuracy)
    if any(record.loss_parts for record in history):
        panels.insert(1, _loss_parts)
    if any(record.cosine_by_group for record in history):
        panels.append(_cosine)
    count = len(panels) + (2 if norms else 0)
    columns = min(count, 3)
    rows = -(-count // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.6 * rows), layout="constrained", squeeze=False)
    places = list(grid.flat)
    for axes, panel in zip(places, panels, strict=False):
        panel(axes, history)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    if norms:
        _norms(places[len(panels)], norms["weight"], class_counts, "weight norm  $||w_c||$")
        _norms(places[len(panels) + 1], norms["feature"], class_counts, "mean feature norm of test pictures  $||x||$")
    for axes in places:
        axes.grid(alpha=0.3)
    for axes in places[count:]:
        axes.set_visible(False)
    figure.suptitle(title)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _loss(axes: plt.Axes, history: list[EpochRecord]) -> None:
    axes.plot(_epochs(history), [sum(record.losses) / len(record.losses) for record in history], color="black")
    axes.set(title="training loss", yscale="log")


def _loss_parts(axes: plt.Axes, history: list[EpochRecord]) -> None:
    for name in history[-1].loss_parts:
        axes.plot(_epochs(history), [record.loss_parts.get(name, np.nan) for record in history], label=name)
    axes.set(title="parts of the training loss", yscale="log")
    axes.legend(fontsize=6, ncols=3, loc="lower left")


def _accuracy(axes: plt.Axes, history: list[EpochRecord]) -> None:
    _by_group(axes, history, "accuracy_by_group", scale=100)
    known = [record for record in history if record.train_accuracy is not None]
    accuracy = [100 * record.train_accuracy for record in known if record.train_accuracy is not None]
    axes.plot(_epochs(known), accuracy, color="black", lw=2, label="all")
    axes.set(title="training accuracy, %", ylim=(0, 100))
    axes.legend(loc="lower right", fontsize=8)


def _rate(axes: plt.Axes, history: list[EpochRecord]) -> None:
    axes.plot(_epochs(history), [record.learning_rate for record in history], color="black")
    axes.set(title="learning rate", yscale="log")


def _cosine(axes: plt.Axes, history: list[EpochRecord]) -> None:
    _by_group(axes, history, "cosine_by_group", scale=1)
    lowest = min(min(record.cosine_by_group.values(), default=0) for record in history)
    axes.set(title="cosine of features to the direction", ylim=(min(lowest, 0), 1))
    axes.legend(fontsize=8)


def _by_group(axes: plt.Axes, history: list[EpochRecord], name: str, *, scale: float) -> None:
    for group, color in COLORS.items():
        known = [record for record in history if group in getattr(record, name)]
        if known:
            values = [scale * getattr(record, name)[group] for record in known]
            axes.plot(_epochs(known), values, color=color, label=f"{group}-shot")


def _epochs(history: list[EpochRecord]) -> list[int]:
    return [record.epoch + 1 for record in history]


def _norms(axes: plt.Axes, values: list[float | None], class_counts: list[int], title: str) -> None:
    order = sorted(range(len(class_counts)), key=lambda index: -class_counts[index])
    groups = [shot_group_of(class_counts[index]) for index in order]
    for group, color in COLORS.items():
        ranks = [rank for rank, one in enumerate(groups) if one == group and values[order[rank]] is not None]
        if ranks:
            heights = np.array([values[order[rank]] for rank in ranks], dtype=float)
            axes.plot(np.array(ranks) + 1, heights, "o", ms=4, color=color, label=f"{group}-shot")
            axes.hlines(heights.mean(), ranks[0] + 0.5, ranks[-1] + 1.5, color=color, lw=1)
    axes.set(title=title, xlabel="rank of the class by training images")
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
    axes.legend(fontsize=8, ncols=3, loc="upper center")
