"""The dashboards as pictures, of real data: a service under minutes of varied traffic, scraped by a real Prometheus.

    python -m tests.deploy.pictures bundles/cifar100_lt --data ../shared/data/cifar100-lt/test.parquet --minutes 10

It starts both on free ports, sends what `tests.deploy.traffic` knows, asks Prometheus the dashboards' own queries and
draws them (`tests.deploy.drawing`): this is not Grafana, and shows nothing of how Grafana draws.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import sin
from pathlib import Path

import pyarrow.parquet as pq
import yaml
from PIL import Image

from deploy.grafana.dashboard import DASHBOARDS
from tests.deploy.drawing import draw
from tests.deploy.prometheus import Prometheus, running_prometheus
from tests.deploy.traffic import Traffic
from tests.end_to_end.conftest import serving

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "deploy/screenshots"
EVERY = 3
"""One picture of so many is sent: they lie in the order of their classes."""
STEP = 5


def read(data: Path) -> tuple[list[bytes], list[int]]:
    """Return pictures as PNG and their classes, out of a file in the schema of the hub's CIFAR-100."""
    whole = pq.read_table(data, columns=["img", "fine_label"])
    table = whole.take(list(range(0, len(whole), EVERY))).to_pydict()
    return [_png(each["bytes"]) for each in table["img"]], table["fine_label"]


def _png(content: bytes) -> bytes:
    sink = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").save(sink, "PNG")
    return sink.getvalue()


@contextmanager
def watched(url: str, folder: Path) -> Iterator[Prometheus]:
    """Run a Prometheus with the repository's configuration that scrapes a service every five seconds."""
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{STEP}s", "evaluation_interval": f"{STEP}s"}
    config["rule_files"] = [str(ROOT / "deploy/prometheus/rules/*.yml")]
    target = url.removeprefix("http://")
    config["scrape_configs"] = [{"job_name": "evenkeel", "static_configs": [{"targets": [target]}]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with running_prometheus(folder / "prometheus.yml", folder) as server:
        yield server


def main() -> None:
    """Send traffic for some minutes, and draw what Prometheus has seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    pictures, labels = read(arguments.data)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = {
            "database_url": f"sqlite:///{folder / 'evenkeel.sqlite'}",
            "admin_key": "operator",
            "threads": "1",
            "recommend_interval": "10",
        }
        url, _ = stack.enter_context(serving(arguments.bundle, folder / "service.log", **settings))
        prometheus = stack.enter_context(watched(url, folder))
        traffic = Traffic(url, pictures, labels)
        traffic.begin()
        print(f"service {url}, Prometheus {prometheus.url}", flush=True)
        start = time.time()
        while (now := time.time() - start) < 60 * arguments.minutes:
            traffic.round(busy=1.5 + sin(now / 40))
            time.sleep(0.15)
        for name, dashboard in DASHBOARDS.items():
            target = TARGET / f"dashboard-{Path(name).stem}.png"
            draw(dashboard, prometheus, start, time.time(), step=STEP, target=target)
            print(target, target.stat().st_size)


if __name__ == "__main__":
    main()
