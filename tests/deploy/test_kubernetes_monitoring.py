"""What Prometheus and the autoscaler see of the service in Kubernetes, against the metrics that exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes.prometheus_rule import SOURCE, TARGET, as_yaml
from service.metrics import STAGES
from service.routes import metrics
from service.settings import Settings
from tests.deploy.exposition import METRIC, exposed
from tests.deploy.kustomize import Resource, build, one
from tests.deploy.prometheus import promtool


@pytest.fixture(params=["cpu", "gpu"])
def overlay(request: pytest.FixtureRequest, root: Path) -> list[Resource]:
    return build(root / "deploy/kubernetes/overlays" / request.param)


@pytest.fixture
def rules(root: Path) -> dict[str, dict[str, Any]]:
    """Return the adapter's rules by the name under which each shows its metric."""
    adapter = yaml.safe_load((root / "deploy/kubernetes/prometheus-adapter.values.yaml").read_text())
    return {rule["name"]["as"]: rule for rule in adapter["rules"]["custom"]}


def query(rule: dict[str, Any], pods: str) -> str:
    """Return the query that the adapter makes of a rule, for pods that a pattern names."""
    series, _, _ = rule["seriesQuery"].partition("{")
    parts = {"Series": series, "LabelMatchers": f'namespace="evenkeel",pod=~"{pods}"', "GroupBy": "pod"}
    written: str = re.sub(r"<<\.(\w+)>>", lambda found: parts[found[1]], rule["metricsQuery"])
    return written


# The Prometheus Operator's kinds


def test_the_rules_are_those_of_prometheus() -> None:
    assert TARGET.read_text() == as_yaml(), "run python -m deploy.kubernetes.prometheus_rule"


def test_the_prometheus_rule_holds_every_group_unchanged(overlay: list[Resource]) -> None:
    rule = one(overlay, "PrometheusRule")
    assert rule["apiVersion"] == "monitoring.coreos.com/v1"
    assert rule["spec"] == yaml.safe_load(SOURCE.read_text())
    assert rule["spec"].keys() == {"groups"}
    for group in rule["spec"]["groups"]:
        assert group.keys() == {"name", "rules"}
        assert all(r.keys() == {"alert", "expr", "for", "labels", "annotations"} for r in group["rules"])


def test_no_file_of_rules_is_left_out() -> None:
    assert sorted(SOURCE.parent.glob("*.y*ml")) == [SOURCE]


def test_promtool_accepts_the_groups(overlay: list[Resource], tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(one(overlay, "PrometheusRule")["spec"]))
    promtool("check", "rules", str(tmp_path / "rules.yml"))


def test_the_service_monitor_finds_the_service_and_its_metrics(overlay: list[Resource]) -> None:
    monitor, service = one(overlay, "ServiceMonitor"), one(overlay, "Service")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"].keys() == {"selector", "jobLabel", "endpoints"}
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint.keys() == {"port", "path", "interval", "scrapeTimeout"}
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["path"] in {route.path for route in metrics.router.routes}  # type: ignore[attr-defined]


def test_the_job_is_the_one_that_the_alerts_ask_for(overlay: list[Resource]) -> None:
    label = one(overlay, "ServiceMonitor")["spec"]["jobLabel"]
    jobs = set(re.findall(r'job="([^"]+)"', SOURCE.read_text()))
    assert {one(overlay, "Service")["metadata"]["labels"][label]} == jobs


# Autoscaling


def test_the_autoscaler_asks_for_what_the_adapter_shows(overlay: list[Resource], rules: dict[str, Any]) -> None:
    wanted = one(overlay, "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert {metric["type"] for metric in wanted} == {"Pods"}
    assert {metric["pods"]["metric"]["name"] for metric in wanted} == rules.keys()


def test_every_series_and_stage_of_the_adapter_exists(rules: dict[str, Any]) -> None:
    for rule in rules.values():
        (series,) = METRIC.findall(rule["seriesQuery"])
        assert series in exposed()
        assert re.fullmatch(rule["name"]["matches"], series)
        assert set(re.findall(r'stage="(\w+)"', rule["seriesQuery"] + rule["metricsQuery"])) <= set(STAGES)


def test_every_series_is_found_by_namespace_and_pod(rules: dict[str, Any]) -> None:
    for rule in rules.values():
        assert 'namespace!="",pod!=""' in rule["seriesQuery"]
        assert rule["resources"]["overrides"].keys() == {"namespace", "pod"}


def test_pods_are_added_before_the_queue_is_full(overlay: list[Resource]) -> None:
    queue, latency = (m["pods"] for m in one(overlay, "HorizontalPodAutoscaler")["spec"]["metrics"])
    assert queue["metric"]["name"] == "evenkeel_queue_depth"
    settings = Settings.model_construct()
    assert int(queue["target"]["averageValue"]) == settings.max_batch_size // 2 < settings.max_queue_size
    seconds = float(latency["target"]["averageValue"].removesuffix("m")) / 1000
    assert 0 < seconds < settings.request_timeout


def test_the_adapters_queries_give_one_number_for_each_pod_idle_or_busy(rules: dict[str, Any], tmp_path: Path) -> None:
    """`busy` answers 10 requests a second, 9 within 0.1 s and one within 0.5 s; `idle` none; `other` is elsewhere."""
    stage = 'evenkeel_stage_seconds_bucket{namespace="evenkeel",stage="total"'
    series = {
        f'{stage},pod="busy",le="0.1"}}': "0+135x20",
        f'{stage},pod="busy",le="0.5"}}': "0+150x20",
        f'{stage},pod="busy",le="+Inf"}}': "0+150x20",
        f'{stage},pod="idle",le="0.1"}}': "7x20",
        f'{stage},pod="idle",le="0.5"}}': "7x20",
        f'{stage},pod="idle",le="+Inf"}}': "7x20",
        'evenkeel_queue_depth{namespace="evenkeel",pod="busy"}': "40x20",
        'evenkeel_queue_depth{namespace="evenkeel",pod="idle"}': "0x20",
        'evenkeel_queue_depth{namespace="elsewhere",pod="busy"}': "1000x20",
    }
    # 95% lie half-way through the bucket from 0.1 to 0.5.
    expected: dict[str, dict[str, float]] = {
        "evenkeel_queue_depth": {"busy": 40, "idle": 0},
        "evenkeel_request_seconds_p95": {"busy": 0.3, "idle": 0},
    }
    asked = [
        {
            # Rounded, as floating point is not exact and promtool compares exactly.
            "expr": f"round({query(rules[name], 'busy|idle')}, 0.001)",
            "eval_time": "5m",
            "exp_samples": [{"labels": f'{{pod="{pod}"}}', "value": value} for pod, value in samples.items()],
        }
        for name, samples in expected.items()
    ]
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "15s", "input_series": inputs, "promql_expr_test": asked}
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"tests": [test]}))
    promtool("test", "rules", str(tmp_path / "test.yml"))
