"""The alert rules as the Prometheus Operator wants them: `python -m deploy.kubernetes.prometheus_rule` writes the file.

The rules have one source, deploy/prometheus/rules, with tests of their own; a test keeps what is written here in step.
"""

from pathlib import Path
from typing import Any

import yaml

SOURCE = Path(__file__).parents[1] / "prometheus" / "rules" / "evenkeel.yml"
TARGET = Path(__file__).parent / "components" / "monitoring" / "prometheusrule.yaml"
_HEADER = "# Written by `python -m deploy.kubernetes.prometheus_rule` from deploy/prometheus/rules: edit those.\n"


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def prometheus_rule() -> dict[str, Any]:
    """Return the PrometheusRule."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "evenkeel", "labels": {"app.kubernetes.io/name": "evenkeel"}},
        "spec": {"groups": yaml.safe_load(SOURCE.read_text())["groups"]},
    }


def as_yaml() -> str:
    """Return the file's content."""
    return _HEADER + yaml.dump(prometheus_rule(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


if __name__ == "__main__":
    TARGET.write_text(as_yaml())
