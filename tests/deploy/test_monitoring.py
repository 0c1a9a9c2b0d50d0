"""Alert rules and dashboards against the metrics that exist, and by Prometheus's own tool."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard as GrafanaDashboard

from deploy.grafana.dashboard import FOLDER, as_json, dashboards
from service.metrics import STAGES, Metrics
from tests.deploy.exposition import METRIC, exposed
from tests.deploy.prometheus import promtool


def rule_expressions(root: Path) -> dict[str, str]:
    groups = yaml.safe_load((root / "deploy/prometheus/rules/evenkeel.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def panels() -> list[dict[str, Any]]:
    return [panel for each in dashboards().values() for panel in each["panels"] if panel["type"] != "row"]


def panel_expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def test_every_metric_of_a_rule_exists(root: Path) -> None:
    used = {name for expression in rule_expressions(root).values() for name in METRIC.findall(expression)}
    assert used
    assert used - exposed() == set()


def test_every_metric_of_a_dashboard_exists() -> None:
    used = {name for expression in panel_expressions() for name in METRIC.findall(expression)}
    assert used - exposed() == set()


def test_every_metric_that_exists_is_on_a_dashboard() -> None:
    shown = " ".join(panel_expressions())
    families = {family.name for family in Metrics().registry.collect() if family.name.startswith("evenkeel_")}
    assert {name for name in families if name not in shown} == set()


def test_the_stages_that_are_asked_for_exist(root: Path) -> None:
    text = " ".join([*rule_expressions(root).values(), *panel_expressions()])
    assert set(re.findall(r'stage!?="(\w+)"', text)) <= set(STAGES)


def test_the_dashboards_files_are_what_their_code_writes() -> None:
    written = {path.name: path.read_text() for path in FOLDER.iterdir()}
    assert written == {name: as_json(each) for name, each in dashboards().items()}, (
        "run python -m deploy.grafana.dashboard"
    )


@pytest.mark.parametrize("name", dashboards())
def test_panels_lie_within_the_grid_and_not_on_each_other(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboards()[name]["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert max(x for x, _ in cells) < 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_dashboards_lead_to_each_other() -> None:
    uids = {each["uid"] for each in dashboards().values()}
    assert len(uids) == len(dashboards()) == 2
    for each in dashboards().values():
        assert {link["url"].removeprefix("/d/") for link in each["links"]} == uids - {each["uid"]}


def test_every_variable_that_is_asked_for_can_be_chosen_and_is_a_label() -> None:
    for each in dashboards().values():
        variables = {variable["name"]: variable["query"]["query"] for variable in each["templating"]["list"]}
        queries = [target["expr"] for panel in each["panels"] for target in panel.get("targets", [])]
        assert set(re.findall(r"\$(\w+)", " ".join(queries))) == variables.keys() | {"__rate_interval"}
        for name, query in variables.items():
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query).groups()  # type: ignore[union-attr]
            assert label == name
            assert metric in exposed()


def test_a_choice_of_instances_holds_in_every_panel_of_serving() -> None:
    for panel in dashboards()["serving.json"]["panels"]:
        for query in [target["expr"] for target in panel.get("targets", [])]:
            series = re.findall(r"\b((?:evenkeel|process|up)\w*)\{([^}]*)\}", query)
            assert query.startswith("DCGM_") or series, query
            assert all('instance=~"$instance"' in where for _, where in series), query
            assert METRIC.findall(query) == [name for name, _ in series if name.startswith("evenkeel")], query


@pytest.mark.parametrize("name", dashboards())
def test_grafanas_own_types_know_all_that_a_dashboard_says(name: str) -> None:
    """What Grafana's types do not know they drop; so what comes back must hold all that went in."""
    register_default_plugins()
    dashboard = dashboards()[name]
    known = json.loads(JSONEncoder().encode(GrafanaDashboard.from_json(dashboard)))
    assert list(missing(dashboard, known)) == []


def missing(wanted: Any, found: Any, path: str = "") -> Iterator[str]:
    """Yield where a value that is wanted is not found, or another is."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            yield from missing(value, found.get(key), f"{path}.{key}")
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from missing(one, other, f"{path}[{number}]")
    elif wanted != found and (wanted or found):
        yield f"{path}: {wanted!r} became {found!r}"


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


def test_the_dashboards_never_show_a_counter_as_it_stands() -> None:
    for query in panel_expressions():
        for series in re.findall(r"(.{0,5})\b(evenkeel_\w+_(?:total|bucket|sum|count))", query):
            assert series[0].endswith("rate("), f"{query}: a counter means nothing without rate()"
