"""The dashboards' files: `python -m deploy.grafana.dashboard` writes them. A test keeps them in step."""

import json
from pathlib import Path
from typing import Any

from deploy.grafana.head_and_tail import HEAD_AND_TAIL
from deploy.grafana.panels import as_grafana
from deploy.grafana.serving import SERVING

FOLDER = Path(__file__).parent / "dashboards"
DASHBOARDS = {"serving.json": SERVING, "head-and-tail.json": HEAD_AND_TAIL}


def dashboards() -> dict[str, dict[str, Any]]:
    """Return each dashboard as Grafana reads it, by the name of its file."""
    return {
        name: as_grafana(dashboard, [other for other in DASHBOARDS.values() if other is not dashboard])
        for name, dashboard in DASHBOARDS.items()
    }


def as_json(dashboard: dict[str, Any]) -> str:
    """Return a file's content."""
    return json.dumps(dashboard, indent=2) + "\n"


if __name__ == "__main__":
    for name, dashboard in dashboards().items():
        (FOLDER / name).write_text(as_json(dashboard))
