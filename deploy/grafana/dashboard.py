"""The dashboard, as code: `python -m deploy.grafana.dashboard` writes dashboards/evenkeel.json.

Panels that differ only in title, unit and queries are a few lines each here, and hundreds in Grafana's JSON. A test
keeps the file in step, and asks every query of a real Prometheus.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "dashboards" / "evenkeel.json"
DATASOURCE = {"type": "prometheus", "uid": "evenkeel-prometheus"}
COLUMNS = 24
PANEL_HEIGHT = 8


@dataclass(frozen=True)
class Panel:
    """One panel: queries by legend. A legend may name labels: {{stage}}."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    description: str = ""
    stacked: bool = False
    width: int = 8


def quantile(quantile: float, metric: str, by: str = "", where: str = "") -> str:
    """Return the query for a quantile of a histogram, over all instances."""
    return f"histogram_quantile({quantile}, sum by (le{by}) (rate({metric}_bucket{where}[$__rate_interval])))"


def share(metric: str, by: str, of: str) -> str:
    """Return the query for the share of each label value among another counter's whole."""
    return f"sum by ({by}) (rate({metric}[$__rate_interval])) / scalar(sum(rate({of}[$__rate_interval])))"


def mean(metric: str) -> str:
    """Return the query for the mean of a histogram."""
    return f"sum(rate({metric}_sum[$__rate_interval])) / sum(rate({metric}_count[$__rate_interval]))"


SERVING = (
    Panel("Ready", {"ready": "sum(evenkeel_ready)", "answering": 'sum(up{job="evenkeel"})'}, kind="stat", width=4),
    Panel(
        "Requests",
        {"{{route}} {{status}}": "sum by (route, status) (rate(evenkeel_requests_total[$__rate_interval]))"},
        unit="reqps",
        width=10,
    ),
    Panel(
        "Errors by code",
        {"{{code}}": "sum by (code) (rate(evenkeel_errors_total[$__rate_interval]))"},
        unit="reqps",
        description="Each code is one row of the table in service/errors.py.",
        width=10,
    ),
    Panel(
        "Time of a request",
        {
            f"p{percent}": quantile(percent / 100, "evenkeel_stage_seconds", where='{stage="total"}')
            for percent in (50, 95, 99)
        },
        unit="s",
    ),
    Panel(
        "Time by stage, p95",
        {"{{stage}}": quantile(0.95, "evenkeel_stage_seconds", by=", stage", where='{stage!="total"}')},
        unit="s",
        description="Decoding is counted per request, the queue per image, inference per batch.",
    ),
    Panel(
        "Batch size",
        {"mean": mean("evenkeel_batch_size"), "p95": quantile(0.95, "evenkeel_batch_size")},
        description="Images in one run of the model. It grows with load; that is how throughput does.",
    ),
    Panel(
        "Queue",
        {
            "waiting": "sum(evenkeel_queue_depth)",
            "in flight": "sum(evenkeel_images_in_flight)",
            "room": "sum(evenkeel_queue_capacity)",
        },
        description="Images. At the limit requests are turned away with 429.",
    ),
    Panel(
        "Images not predicted",
        {"{{reason}}": "sum by (reason) (rate(evenkeel_rejected_images_total[$__rate_interval]))"},
        description="Images a second, by reason.",
    ),
    Panel(
        "Runs of the model",
        {
            "runs": "sum(rate(evenkeel_batch_size_count[$__rate_interval]))",
            "failed": "sum(rate(evenkeel_failed_batches_total[$__rate_interval]))",
            "stopped answering": "sum(rate(evenkeel_stalls_total[$__rate_interval]))",
            "reload {{outcome}}": "sum by (outcome) (rate(evenkeel_reloads_total[$__rate_interval]))",
        },
        unit="ops",
    ),
)
HEAD_AND_TAIL = (
    Panel(
        "Alpha served",
        {
            "mean": mean("evenkeel_alpha"),
            **{f"p{percent}": quantile(percent / 100, "evenkeel_alpha") for percent in (10, 50, 90)},
        },
        description="0 is the plain de-confounded model; more leans to the tail.",
    ),
    Panel(
        "Answers by shot group",
        {"{{shot_group}}": share("evenkeel_predictions_total", "shot_group", "evenkeel_predictions_total")},
        unit="percentunit",
        stacked=True,
        description="By training samples of the class that won: many (over 100), medium, few (under 20).",
    ),
    Panel(
        "Answers that the knob changed",
        {
            "{{from_group}} to {{to_group}}": share(
                "evenkeel_flips_total", "from_group, to_group", "evenkeel_predictions_total"
            )
        },
        unit="percentunit",
        stacked=True,
        description="Share of predictions whose winner is not that of alpha 0, by the shot groups of both.",
    ),
    Panel(
        "Confounder cosine",
        {
            "moving average": "avg(evenkeel_confounder_cosine_mean)",
            **{f"p{percent}": quantile(percent / 100, "evenkeel_confounder_cosine") for percent in (10, 50, 90)},
        },
        description="How far features point in the direction of the frequent classes. A shift means other pictures or "
        "another model; alpha may want choosing anew.",
        width=12,
    ),
    Panel("Model", {"": "evenkeel_model_info"}, kind="table", width=12),
)
CLIENTS = (
    Panel(
        "Alpha by client",
        {
            "{{client}}": "sum by (client) (rate(evenkeel_client_alpha_sum[$__rate_interval])) / "
            "sum by (client) (rate(evenkeel_client_alpha_count[$__rate_interval]))"
        },
        description="Mean of the alpha served.",
    ),
    Panel(
        "Answers by client and shot group",
        {
            "{{client}} {{shot_group}}": "sum by (client, shot_group) "
            "(rate(evenkeel_client_predictions_total[$__rate_interval]))"
        },
        unit="reqps",
    ),
    Panel(
        "Changed by the knob, and near a breakpoint",
        {
            "{{client}} changed": "sum by (client) (rate(evenkeel_client_flips_total[$__rate_interval]))",
            "{{client}} near": "sum by (client) (rate(evenkeel_client_near_breakpoint_total[$__rate_interval]))",
        },
        unit="reqps",
        description="Near: the answer changes within 0.1 of the alpha served.",
    ),
    Panel(
        "Labels received",
        {
            "{{client}} {{shot_group}} {{outcome}}": "sum by (client, shot_group, outcome) "
            "(rate(evenkeel_feedback_total[$__rate_interval]))"
        },
        unit="reqps",
        description="By the true class's shot group, and by whether the answer was right.",
    ),
    Panel(
        "Database",
        {
            "up": "sum(evenkeel_store_up)",
            "waiting": "sum(evenkeel_store_waiting)",
            "written": "sum(rate(evenkeel_store_written_total[$__rate_interval]))",
            "dropped": "sum(rate(evenkeel_store_dropped_total[$__rate_interval]))",
        },
        description="Predictions that wait, are written, or were dropped as too many waited.",
    ),
    Panel(
        "Age of the policies",
        {"{{instance}}": "evenkeel_policies_age_seconds"},
        unit="s",
        description="Above a few seconds the database is away, and changes of policies do not arrive. -1: never read.",
    ),
)
PROCESS = (
    Panel(
        "Processor",
        {"{{instance}}": 'rate(process_cpu_seconds_total{job="evenkeel"}[$__rate_interval])'},
        description="Cores in use.",
        width=12,
    ),
    Panel("Memory", {"{{instance}}": 'process_resident_memory_bytes{job="evenkeel"}'}, unit="bytes", width=12),
)
ROWS = {"Serving": SERVING, "Head and tail": HEAD_AND_TAIL, "Clients": CLIENTS, "Process": PROCESS}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append(_row(title, top))
        top += 1
        left = 0
        for panel in row:
            if left + panel.width > COLUMNS:
                left, top = 0, top + PANEL_HEIGHT
            panels.append(_panel(panel, left, top))
            left += panel.width
        top += PANEL_HEIGHT
    return {
        "uid": "evenkeel",
        "title": "evenkeel",
        "tags": ["evenkeel"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, start=1)],
    }


def _row(title: str, top: int) -> dict[str, Any]:
    grid = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
    return {"type": "row", "title": title, "collapsed": False, "gridPos": grid, "panels": []}


def _panel(panel: Panel, left: int, top: int) -> dict[str, Any]:
    custom = {"stacking": {"mode": "normal"}, "fillOpacity": 40} if panel.stacked else {}
    limits = {"min": 0, "max": 1} if panel.stacked else {}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"x": left, "y": top, "w": panel.width, "h": PANEL_HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": custom, **limits}, "overrides": []},
        "targets": [
            _target(reference, legend, query, table=panel.kind == "table")
            for reference, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _target(reference: int, legend: str, query: str, *, table: bool) -> dict[str, Any]:
    form = {"format": "table", "instant": True} if table else {"legendFormat": legend}
    return {"refId": chr(ord("A") + reference), "datasource": DATASOURCE, "expr": query, **form}


def as_json() -> str:
    """Return the file's content."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    TARGET.write_text(as_json())
