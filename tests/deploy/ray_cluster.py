"""A Ray cluster of two nodes on this machine, a replica on each; under load one replica is not ready any more and is
replaced, then one node dies; then the rest drains.

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
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster

import deploy.ray.application
from deploy.ray.application import Evenkeel, application
from tests.deploy.ray_clients import Load, answers, ask, metrics

REPLICAS = 2
UNDER_WAY = 1.0
"""Seconds after which requests are at a replica; one that is held answers them later than that."""


class Unwell(Evenkeel):
    """A replica that does as the files in a folder say; whoever finds one first takes it away.

    "unwell": it is not ready any more. The id of its node: its batcher takes requests, and answers none for as many
    seconds as the file says.
    """

    folder: Path

    async def check_health(self) -> None:
        """Raise what Ray takes as 'not healthy'."""
        with suppress(FileNotFoundError):
            (self.folder / "unwell").unlink()
            self.app.service.readiness.suspend("The model has stopped answering.")
        with suppress(FileNotFoundError):
            file = self.folder / ray.get_runtime_context().get_node_id()
            batcher, seconds = self.app.service.batcher, float(file.read_text())
            batcher.start_anew(max_batch_size=1, brief=0)  # else a tiny model needs no thread
            batcher._executor.submit(time.sleep, seconds)
            file.unlink()
        await super().check_health()


def both(port: int, *, before: Collection[str] = ()) -> set[str]:
    """Wait until Ray has both replicas answer, and not the two from before; return when each began."""
    deadline, starts = time.monotonic() + 60, set[str]()
    while len(starts) < REPLICAS and time.monotonic() < deadline:
        starts |= set(metrics(port)["starts"])
        if starts <= set(before):
            starts.clear()
    return starts


def replace_one(port: int, file: Path) -> dict[str, int]:
    """Have one replica be not ready, and tell how many stay and how many come in its place."""
    before = both(port)
    file.touch()
    after = both(port, before=before)
    return {"stay": len(before & after), "come": len(after - before)}


def hold(node: Any, seconds: float) -> None:
    """Have a node's replica answer nothing for so long from now on: requests to it are certainly under way."""
    file: Path = Unwell.folder / node.node_id
    (written := file.with_suffix(".new")).write_text(str(seconds))
    written.rename(file)
    deadline = time.monotonic() + 30
    while file.exists():
        assert time.monotonic() < deadline, "no replica of that node looked at its folder"
        time.sleep(0.01)


def kill(cluster: Cluster, node: Any) -> None:
    """End a node as losing its machine would: its processes by SIGKILL, without a word."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)


def drain(port: int, node: Any) -> Counter[str]:
    """Remove the application, whose one replica is there, while requests are under way; return their statuses."""
    hold(node, 3 * UNDER_WAY)
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
    replicas = {"min_replicas": REPLICAS, "max_replicas": REPLICAS, "max_replicas_per_node": 1, "cpus": 1}
    Unwell.folder = bundle.parent
    deploy.ray.application.Evenkeel = Unwell  # type: ignore[misc]
    serve.run(application({"bundle": str(bundle), **replicas}), name="evenkeel", logging_config={"log_level": "ERROR"})
    seen: dict[str, Any] = {"answers": answers(port), "metrics": metrics(port)}
    load = Load(port, seen["answers"])
    time.sleep(1)
    seen["replaced"] = replace_one(port, Unwell.folder / "unwell")
    hold(node, 20)  # longer than it goes on living
    load.burst()
    time.sleep(UNDER_WAY)
    kill(cluster, node)
    time.sleep(3)  # past the time at which the node counts as lost
    return seen | {"load": load.end(), "drained": drain(port, cluster.head_node)}


def main() -> None:
    """Run the story, and end all that was started."""
    bundle, port, results = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
    try:
        seen = story(cluster, cluster.add_node(**small), bundle, port)
        results.write_text(json.dumps(seen))
        print(seen["load"], seen["replaced"], seen["drained"], seen["metrics"]["counts"])
    finally:
        with suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
