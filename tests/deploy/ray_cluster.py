"""A Ray cluster of two nodes on this machine, a replica on each; one node dies under load, then the rest drains.

`python -m tests.deploy.ray_cluster BUNDLE PORT RESULTS` writes what it saw as JSON. A process of its own, as Ray leaves
threads and warnings behind.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster

from deploy.ray.application import application
from tests.deploy.ray_clients import Load, answers, ask, metrics

UNDER_WAY = 0.15
"""Seconds after which requests are at a replica, whose batcher waits longer than that for a fuller batch."""


def kill(cluster: Cluster, node: Any) -> None:
    """End a node as losing its machine would: its processes by SIGKILL, without a word."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)


def drain(port: int) -> Counter[str]:
    """Remove the application while requests are under way; return their statuses."""
    statuses = Counter[str]()
    threads = [threading.Thread(target=lambda: statuses.update([str(ask(port, 1.5, 1)[0])])) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(UNDER_WAY)
    serve.delete("evenkeel")
    for thread in threads:
        thread.join(60)
    return statuses


def story(cluster: Cluster, node: Any, bundle: Path, port: int) -> dict[str, Any]:
    """Tell the whole."""
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    arguments = {"bundle": str(bundle), "min_replicas": 2, "max_replicas": 2, "max_replicas_per_node": 1, "cpus": 1}
    serve.run(application(arguments), name="evenkeel", logging_config={"log_level": "ERROR"})
    seen: dict[str, Any] = {"answers": answers(port), "metrics": metrics(port)}
    load = Load(port, seen["answers"])
    time.sleep(1)
    load.burst()
    time.sleep(UNDER_WAY)
    kill(cluster, node)
    time.sleep(3)  # past the time at which the node counts as lost
    return seen | {"load": load.end(), "drained": drain(port)}


def main() -> None:
    """Run the story, and end all that was started."""
    bundle, port, results = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
    try:
        seen = story(cluster, cluster.add_node(**small), bundle, port)
        results.write_text(json.dumps(seen))
        print(seen["load"], seen["drained"], seen["metrics"]["counts"])
    finally:
        with suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
