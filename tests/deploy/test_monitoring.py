"""Alert rules and dashboard against the metrics that exist, and by Prometheus's own tool."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from deploy.grafana.dashboard import TARGET, as_json, dashboard
from service.metrics import STAGES, Metrics
from tests.deploy.exposition import METRIC, exposed
from tests.deploy.prometheus import promtool


def rule_expressions(root: Path) -> dict[str, str]:
    groups = yaml.safe_load((root / "deploy/prometheus/rules/evenkeel.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def panel_expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def test_every_metric_of_a_rule_exists(root: Path) -> None:
    used = {name for expression in rule_expressions(root).values() for name in METRIC.findall(expression)}
    assert used
    assert used - exposed() == set()


def test_every_metric_of_the_dashboard_exists() -> None:
    used = {name for expression in panel_expressions() for name in METRIC.findall(expression)}
    assert used - exposed() == set()


def test_every_metric_that_exists_is_on_the_dashboard() -> None:
    shown = " ".join(panel_expressions())
    families = {family.name for family in Metrics().registry.collect() if family.name.startswith("evenkeel_")}
    assert {name for name in families if name not in shown} == set()


def test_the_stages_that_are_asked_for_exist(root: Path) -> None:
    text = " ".join([*rule_expressions(root).values(), *panel_expressions()])
    assert set(re.findall(r'stage!?="(\w+)"', text)) <= set(STAGES)


def test_the_dashboard_file_is_what_its_code_writes() -> None:
    assert TARGET.read_text() == as_json(), "run python -m deploy.grafana.dashboard"


def test_panels_lie_within_the_grid_and_not_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(as_json())["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert max(x for x, _ in cells) < 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_alert_says_how_grave_it_is_and_what_to_do(root: Path) -> None:
    groups = yaml.safe_load((root / "deploy/prometheus/rules/evenkeel.yml").read_text())["groups"]
    for rule in [rule for group in groups for rule in group["rules"]]:
        assert rule["alert"].startswith("Evenkeel")
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert {"summary", "description"} == rule["annotations"].keys()
        assert "for" in rule, "an alert without a duration fires on a single scrape"


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not(root: Path) -> None:
    cases = [
        case
        for file in sorted((root / "deploy/prometheus/tests").glob("*.yml"))
        for test in yaml.safe_load(file.read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    alerts = rule_expressions(root).keys()
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


def test_promtool_accepts_the_configuration_with_its_rules(root: Path) -> None:
    promtool("check", "config", str(root / "deploy/prometheus/prometheus.yml"))


def test_the_rules_do_what_their_tests_say(root: Path) -> None:
    promtool("test", "rules", *map(str, sorted((root / "deploy/prometheus/tests").glob("*.yml"))))


def test_the_dashboard_never_shows_a_counter_as_it_stands() -> None:
    for query in panel_expressions():
        for series in re.findall(r"(.{0,5})\b(evenkeel_\w+_(?:total|bucket|sum|count))", query):
            assert series[0].endswith("rate("), f"{query}: a counter means nothing without rate()"
