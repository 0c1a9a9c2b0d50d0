"""The picture of compared methods: accuracy of all and of the few-shot classes, by method and knobs. Knows numbers."""

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot as plt

from trainer.comparison import VARIANTS, Row, Summary, summarise

COLORS = dict(
    zip(VARIANTS, ("#666666", "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00"), strict=True)  # Okabe and Ito
)


def plot_comparison(rows: list[Row], title: str, file: Path) -> None:
    """Draw a panel for all classes and one for the few-shot classes; lines are one standard deviation over seeds."""
    summaries = summarise(rows)
    methods = list(dict.fromkeys(one.method for one in summaries))
    variants = [name for name in VARIANTS if any(one.variant == name for one in summaries)]
    metrics = [("accuracy", "all classes")]
    if all("few_shot_accuracy" in row.metrics for row in rows):
        metrics.append(("few_shot_accuracy", "few-shot classes"))
    figure, panels = plt.subplots(
        1, len(metrics), figsize=(6 * len(metrics), 1.6 + 0.75 * len(methods)), layout="constrained", squeeze=False
    )
    for axes, (metric, name) in zip(panels[0], metrics, strict=True):
        for one in summaries:
            offset = (variants.index(one.variant) - (len(variants) - 1) / 2) * 0.14
            _draw(axes, one, metric, methods.index(one.method) + offset)
        axes.set(xlabel=f"accuracy of {name}, %", yticks=range(len(methods)), yticklabels=methods)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
    handles, names = panels[0][0].get_legend_handles_labels()
    by_name = dict(zip(names, handles, strict=True))
    figure.legend(by_name.values(), by_name.keys(), loc="outside lower center", ncols=len(variants))
    figure.suptitle(title)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _draw(axes: plt.Axes, one: Summary, metric: str, place: float) -> None:
    mean, spread = 100 * one.mean(metric), 100 * (one.spread(metric) or 0.0)
    color = COLORS[one.variant]
    axes.errorbar(mean, place, xerr=spread, fmt="o", ms=6, lw=1.5, color=color, label=one.variant)
