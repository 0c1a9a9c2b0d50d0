"""A real Prometheus scrapes the running service: targets, rules, the dashboards' queries, and alerts that fire."""

import io
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from deploy.grafana.dashboard import DASHBOARDS, dashboards
from service.metrics import Metrics
from tests import plain_http
from tests.deploy.drawing import draw, filled
from tests.deploy.prometheus import Prometheus, binary, free_port, running, running_prometheus, wait_until
from tests.deploy.traffic import Traffic
from tests.service.conftest import CLASSES
from tests.service.tiny_model import write_tiny_bundle


@dataclass(frozen=True)
class Service:
    """A service process and where it answers."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def predict(self, body: bytes, **parameters: str) -> httpx.Response:
        headers = {"Content-Type": "image/png"}
        return plain_http.post(f"{self.url}/predict", params=parameters, content=body, headers=headers, timeout=30)


def png(seed: int) -> bytes:
    """Return a picture of one colour: the tiny model looks at the mean of each channel."""
    sink = io.BytesIO()
    colour = tuple(np.random.default_rng(seed).integers(0, 256, 3).tolist())
    Image.new("RGB", (8, 8), colour).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Run the service on a tiny bundle, in a process of its own."""
    binary("prometheus")
    write_tiny_bundle(tmp_path / "bundle")
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("EVENKEEL_")},
        **{"EVENKEEL_PORT": str(port), "EVENKEEL_PROVIDER": "cpu", "EVENKEEL_DRAIN_DELAY": "0"},
        **{"EVENKEEL_ADMIN_KEY": "operator", "EVENKEEL_RECOMMEND_INTERVAL": "0.5"},
        "EVENKEEL_DATABASE_URL": f"sqlite:///{tmp_path / 'evenkeel.sqlite'}",
    }
    command = [sys.executable, "-m", "service", "serve", str(tmp_path / "bundle")]
    log = tmp_path / "service.log"
    with running(command, log, env=environment) as process:
        started = Service(process, port)
        wait_until(
            lambda: process.poll() is not None or plain_http.get(f"{started.url}/readyz").is_success,
            "the service is ready",
            seconds=60,
        )
        assert process.poll() is None, log.read_text()
        yield started


@pytest.fixture
def prometheus(root: Path, tmp_path: Path, service: Service) -> Iterator[Prometheus]:
    """Run Prometheus with the repository's configuration and rules, made quick: every second, and no waiting."""
    folder = tmp_path / "prometheus"
    (folder / "rules").mkdir(parents=True)
    rules = yaml.safe_load((root / "deploy/prometheus/rules/evenkeel.yml").read_text())
    for rule in [rule for group in rules["groups"] for rule in group["rules"]]:
        rule["for"] = "0s"
    (folder / "rules/evenkeel.yml").write_text(yaml.safe_dump(rules))
    config = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (job,) = [job for job in config["scrape_configs"] if job["job_name"] == "evenkeel"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{service.port}"]}]
    config["scrape_configs"] = [job]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with running_prometheus(folder / "prometheus.yml", folder) as server:
        wait_until(lambda: server.health_of_targets("evenkeel") == ["up"], "the service is scraped")
        yield server


def scrapes(prometheus: Prometheus) -> float:
    (series,) = prometheus.query('count_over_time(up{job="evenkeel"}[5m])') or [{"value": [0, "0"]}]
    return float(series["value"][1])


def keep_busy(service: Service, prometheus: Prometheus) -> None:
    """Send pictures, a third of them with a lean to the tail, until Prometheus has seen the counters grow."""
    start = scrapes(prometheus)
    seed = 0
    while scrapes(prometheus) < start + 3:
        for alpha in ("0", "0", "1.5"):
            assert service.predict(png(seed), alpha=alpha).status_code == 200
        seed += 1
        time.sleep(0.1)  # the fewer, the sooner bad ones are a large share


def dashboards_queries() -> list[str]:
    panels = [panel for each in dashboards().values() for panel in each["panels"]]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def test_rules_and_dashboards_work_on_what_the_service_says(
    service: Service, prometheus: Prometheus, tmp_path: Path
) -> None:
    """Each query of a dashboard, and each series that any could name, has something to show, but for the GPU's."""
    traffic = Traffic(service.url, [png(seed) for seed in range(50)], [seed % CLASSES for seed in range(50)])
    traffic.begin()
    start, begin = scrapes(prometheus), time.time()
    # At least so many labels of one client that something is recommended.
    for number in itertools.count():
        traffic.round()
        assert traffic.send("rescue", 16, labelled=1.0) == 200
        if number >= 4 and scrapes(prometheus) >= start + 5:
            break

    wait_until(lambda: set(prometheus.health_of_rules().values()) == {"ok"}, "every rule is evaluated without error")
    wait_until(lambda: bool(prometheus.query("evenkeel_client_recommended_alpha")), "an alpha is recommended")
    empty = [query for query in dashboards_queries() if not prometheus.query(filled(query, 60))]
    assert [query for query in empty if not query.startswith("DCGM_")] == []
    assert "gpu" not in plain_http.get(f"{service.url}/metrics").text.lower()
    silent = [family.name for family in Metrics().registry.collect() if not prometheus.query(any_of(family.name))]
    assert silent == []

    flips = prometheus.query("sum by (from_group, to_group) (evenkeel_flips_total)")
    assert sum(float(series["value"][1]) for series in flips) > 0
    (model,) = prometheus.query("evenkeel_model_info")
    assert "tiny" in model["metric"].values()
    for name, dashboard in DASHBOARDS.items():
        target = tmp_path / f"{name}.png"
        draw(dashboard, prometheus, begin, time.time(), step=1, target=target)
        with Image.open(target) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 50, "a picture of nothing"


def any_of(family: str) -> str:
    """Return the query for any series of a family."""
    return f'{{__name__=~"{family}(_total|_bucket|_count|_info)?"}}'


def test_alerts_fire_on_bad_requests_and_when_the_service_is_gone(service: Service, prometheus: Prometheus) -> None:
    keep_busy(service, prometheus)
    assert prometheus.firing("critical", "warning") == set()
    assert "EvenkeelBadRequests" not in prometheus.firing()

    def bad_requests_are_noticed() -> bool:
        assert service.predict(b"no picture", alpha="1").status_code == 400
        return "EvenkeelBadRequests" in prometheus.firing()

    wait_until(bad_requests_are_noticed, "EvenkeelBadRequests fires")

    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(timeout=30) == 0
    wait_until(lambda: {"EvenkeelAbsent", "EvenkeelInstanceDown"} <= prometheus.firing(), "the loss is noticed")
