"""Dashboards as code: what a panel is, and how Grafana reads it. It knows no metric of ours.

Panels that differ only in title, unit and queries are a few lines each this way, and hundreds in Grafana's JSON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

DATASOURCE = {"type": "prometheus", "uid": "evenkeel-prometheus"}
COLUMNS = 24
PANEL_HEIGHT = 8


@dataclass(frozen=True)
class Panel:
    """One panel: queries by legend. A legend may name labels: {{stage}}.

    Attributes:
        limits: the least and the largest value of the axis.
        dashed: the start of legends whose lines are dashed: what others are compared with.
    """

    title: str
    queries: Mapping[str, str]
    unit: str = "short"
    kind: Literal["timeseries", "stat", "table"] = "timeseries"
    description: str = ""
    stacked: bool = False
    limits: tuple[float, float] | None = None
    dashed: str = ""
    width: int = 8


@dataclass(frozen=True)
class Variable:
    """A choice at the top: one, several or all values of a label of a metric."""

    name: str
    metric: str


@dataclass(frozen=True)
class Dashboard:
    """One dashboard: rows of panels by title, and what may be chosen."""

    uid: str
    title: str
    description: str
    variables: Sequence[Variable]
    rows: Mapping[str, Sequence[Panel]]
    hours: int = 1


def as_grafana(dashboard: Dashboard, others: Sequence[Dashboard]) -> dict[str, Any]:
    """Return the dashboard as Grafana reads it (its classic schema), with links to the others."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["evenkeel"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": f"now-{dashboard.hours}h", "to": "now"},
        "links": [_link(other) for other in others],
        "templating": {"list": [_variable(variable) for variable in dashboard.variables]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(_placed(dashboard.rows), start=1)],
    }


def _placed(rows: Mapping[str, Sequence[Panel]]) -> list[dict[str, Any]]:
    """Return rows and panels from left to right and from top to bottom."""
    placed: list[dict[str, Any]] = []
    top = 0
    for title, row in rows.items():
        placed.append(_row(title, top))
        top += 1
        left = 0
        for panel in row:
            if left + panel.width > COLUMNS:
                left, top = 0, top + PANEL_HEIGHT
            placed.append(_panel(panel, left, top))
            left += panel.width
        top += PANEL_HEIGHT
    return placed


def _link(other: Dashboard) -> dict[str, Any]:
    link = {"type": "link", "title": other.title, "url": f"/d/{other.uid}", "tooltip": other.description}
    return {**link, "icon": "dashboard", "keepTime": True, "includeVars": False, "asDropdown": False, "tags": []}


def _variable(variable: Variable) -> dict[str, Any]:
    query = f"label_values({variable.metric}, {variable.name})"
    return {
        "type": "query",
        "name": variable.name,
        "label": variable.name,
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": f"variable-{variable.name}"},
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _row(title: str, top: int) -> dict[str, Any]:
    grid = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
    return {"type": "row", "title": title, "collapsed": False, "gridPos": grid, "panels": []}


def _panel(panel: Panel, left: int, top: int) -> dict[str, Any]:
    custom = {"stacking": {"mode": "normal"}, "fillOpacity": 40} if panel.stacked else {}
    limits = dict(zip(("min", "max"), panel.limits, strict=True)) if panel.limits else {}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"x": left, "y": top, "w": panel.width, "h": PANEL_HEIGHT},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "custom": custom, **limits},
            "overrides": [_dashed(panel.dashed)] if panel.dashed else [],
        },
        "targets": [
            _target(reference, legend, query, table=panel.kind == "table")
            for reference, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _dashed(start: str) -> dict[str, Any]:
    style = {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}}
    return {"matcher": {"id": "byRegexp", "options": f"^{start}.*"}, "properties": [style]}


def _target(reference: int, legend: str, query: str, *, table: bool) -> dict[str, Any]:
    form = {"format": "table", "instant": True} if table else {"legendFormat": legend}
    return {"refId": chr(ord("A") + reference), "datasource": DATASOURCE, "expr": query, **form}
