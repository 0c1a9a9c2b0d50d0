"""Draws a dashboard from a real Prometheus, by its own queries and in its own layout. It is not Grafana."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from deploy.grafana.panels import COLUMNS, Dashboard, as_grafana
from tests.deploy.prometheus import Prometheus

_PAPER, _CARD, _INK, _FAINT = "#111217", "#181b1f", "#ccccdc", "#2e3238"
_LINES = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#ffa6b0", "#96d98d", "#fade2a")
_INCHES = (15.0, 0.21)
"""Width of the whole, and height of one unit of the grid."""


def filled(query: str, window: int) -> str:
    """Put in what Grafana's variables stand for: everything, and four scrapes."""
    return re.sub(r"\$(client|instance)\b", ".*", query).replace("$__rate_interval", f"{window}s")


def legend(template: str, labels: dict[str, str]) -> str:
    """Put labels into a legend.

    >>> legend("{{route}} {{status}}", {"route": "/predict", "status": "200"})
    '/predict 200'
    """
    return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), template)


def draw(dashboard: Dashboard, prometheus: Prometheus, start: float, end: float, *, step: int, target: Path) -> None:
    """Write the picture of a dashboard from one time to another."""
    panels = as_grafana(dashboard, [])["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) + 2
    width, unit = _INCHES
    figure = Figure(figsize=(width, unit * height), facecolor=_PAPER, dpi=80)
    note = f"{dashboard.title}   (drawn by matplotlib from a real Prometheus, not by Grafana)"
    figure.text(0.008, 1 - 1 / height, note, color=_INK, fontsize=11, va="center")
    for panel in panels:
        grid = panel["gridPos"]
        left, top = grid["x"] / COLUMNS, 1 - (grid["y"] + 2) / height
        if panel["type"] == "row":
            figure.text(left + 0.008, top - 0.6 / height, panel["title"], color=_INK, fontsize=10, weight="bold")
            continue
        room = (left + 0.032, top - (grid["h"] - 2.3) / height, grid["w"] / COLUMNS - 0.042, (grid["h"] - 4.1) / height)
        axes = figure.add_axes(room, facecolor=_CARD)
        axes.set_title(panel["title"], color=_INK, fontsize=8, loc="left", pad=4)
        _DRAWN_BY[panel["type"]](axes, panel, prometheus, (start, end, step))
    figure.savefig(target)


def _series(panel: dict[str, Any], prometheus: Prometheus, times: tuple[float, float, int]) -> list[tuple[str, Any]]:
    """Return each line of a panel: its legend, and seconds with values [2, T]."""
    start, end, step = times
    found = []
    for asked in panel["targets"]:
        over = {"start": f"{start}", "end": f"{end}", "step": f"{step}"}
        answer = prometheus.get("query_range", query=filled(asked["expr"], 8 * step), **over)
        for series in answer["result"]:
            values = np.array(series["values"], dtype=float).T
            found.append((legend(asked.get("legendFormat", ""), series["metric"]), values))
    return found


def _timeseries(axes: Axes, panel: dict[str, Any], prometheus: Prometheus, times: tuple[float, float, int]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    dashed = [override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]]
    lines = _series(panel, prometheus, times)
    below: dict[float, float] = {}
    for number, (name, (seconds, values)) in enumerate(lines):
        colour, when, height = _LINES[number % len(_LINES)], seconds.astype("datetime64[s]"), values
        if defaults["custom"]:
            base = np.array([below.get(second, 0.0) for second in seconds])
            height = base + np.nan_to_num(values)
            below |= dict(zip(seconds.tolist(), height.tolist(), strict=True))
            axes.fill_between(when, base, height, color=colour, alpha=0.4, linewidth=0)
        style = "--" if any(re.search(pattern, name) for pattern in dashed) else "-"
        axes.plot(when, height, style, color=colour, linewidth=1, label=name)
    if not lines:
        axes.text(0.5, 0.5, "No data", color=_INK, ha="center", va="center", transform=axes.transAxes, fontsize=8)
    _dress(axes, defaults, len(lines))
    axes.set_xlim(*np.array(times[:2]).astype("datetime64[s]"))


def _dress(axes: Axes, defaults: dict[str, Any], lines: int) -> None:
    axes.tick_params(colors=_INK, labelsize=6, length=0)
    axes.grid(color=_FAINT, linewidth=0.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    locator = AutoDateLocator(minticks=3)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
    if "min" in defaults:
        axes.set_ylim(defaults["min"], defaults["max"])
    formatter = {
        "percentunit": ticker.PercentFormatter(1.0),
        "s": ticker.EngFormatter("s", sep=" "),
        "bytes": ticker.EngFormatter("B", sep=" "),
    }.get(defaults["unit"])
    if formatter:
        axes.yaxis.set_major_formatter(formatter)
    if lines:
        place = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.1), "ncols": 3 if lines < 7 else 4}
        axes.legend(fontsize=5.5, labelcolor=_INK, frameon=False, handlelength=1, columnspacing=0.8, **place)


def _stat(axes: Axes, panel: dict[str, Any], prometheus: Prometheus, times: tuple[float, float, int]) -> None:
    axes.set_axis_off()
    lines = _series(panel, prometheus, times)
    for number, (name, (_, values)) in enumerate(lines):
        at = {"x": (number + 0.5) / len(lines), "color": _LINES[0], "ha": "center", "transform": axes.transAxes}
        axes.text(y=0.45, s=f"{values[-1]:g}", fontsize=26, **at)
        axes.text(y=0.2, s=name, fontsize=7, **at)


def _table(axes: Axes, panel: dict[str, Any], prometheus: Prometheus, _: tuple[float, float, int]) -> None:
    axes.set_axis_off()
    rows = [series["metric"] for series in prometheus.query(filled(panel["targets"][0]["expr"], 60))]
    names = sorted({name for row in rows for name in row} - {"__name__"})
    for column, name in enumerate(names):
        at = {"x": column / len(names), "color": _INK, "fontsize": 8, "transform": axes.transAxes}
        axes.text(y=0.9, s=name, weight="bold", **at)
        for number, row in enumerate(rows):
            axes.text(y=0.7 - 0.2 * number, s=row.get(name, ""), **at)


_DRAWN_BY = {"timeseries": _timeseries, "stat": _stat, "table": _table}
