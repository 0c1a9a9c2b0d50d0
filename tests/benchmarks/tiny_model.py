"""The cost of the server alone: a tiny model behind the service with everything on, and behind its peers.

One process each, the same model and picture, one thread of ONNX Runtime. Server and load generator share the cores,
for all alike. A group of servers runs at a time, and they take turns within it; ratios are taken round by round.
"""

import base64
import json
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.load import Body, Load, burst
from tests.benchmarks.models import TINY
from tests.benchmarks.peers.environments import (
    BENTOML,
    EMPTY,
    FASTAPI,
    LITSERVE,
    RAY,
    CannotInstall,
    DidNotStart,
    Peer,
    serving,
)
from tests.benchmarks.pictures import small_png
from tests.benchmarks.result import Figure, Goal, at_least, at_most
from tests.benchmarks.rounds import median_ratio, take_turns
from tests.benchmarks.servers import Server, evenkeel
from tests.benchmarks.workplace import Workplace

PART = "Tiny model"
OURS = "evenkeel"
CONNECTIONS = (32, 256, 1)
GOALS: dict[tuple[str, str], Goal] = {
    (FASTAPI.name, "many"): at_least(2),
    (LITSERVE.name, "many"): at_least(6),
    (FASTAPI.name, "one"): at_least(1),
}
GROUPS: tuple[tuple[Peer, ...], ...] = ((FASTAPI, LITSERVE, EMPTY), (BENTOML,), (RAY,))

Loads = dict[str, list[Load]]


def run(workplace: Workplace) -> list[Figure]:
    """Measure each group of peers beside the service."""
    folder = workplace.place("pictures")
    raw, as_json = small_png(folder), _as_json(small_png(folder), folder)
    return [figure for group in GROUPS for figure in _group(group, raw, as_json, workplace)]


def _group(peers: Sequence[Peer], raw: Body, as_json: Body, workplace: Workplace) -> list[Figure]:
    bundle = workplace.bundle(TINY).path
    figures = []
    with ExitStack() as stack:
        servers: dict[str, tuple[Server, Body]] = {}
        servers[OURS] = stack.enter_context(evenkeel(bundle, workplace.place("run-tiny"), threads=1)), raw
        for peer in peers:
            try:
                server = stack.enter_context(serving(peer, bundle / "model.onnx", 1, workplace))
            except (CannotInstall, DidNotStart) as problem:
                figures.append(Figure(PART, peer.name, None, note=str(problem)[:200]))
            else:
                servers[peer.name] = server, as_json if peer.speaks_json else raw
        for connections in CONNECTIONS if EMPTY in peers else CONNECTIONS[:2]:
            figures += _figures(_measure(servers, connections, workplace), connections, with_ours=EMPTY in peers)
    return figures


def _measure(servers: dict[str, tuple[Server, Body]], connections: int, workplace: Workplace) -> Loads:
    def one(server: Server, body: Body) -> Load:
        return burst(server.url(), body, connections=connections, seconds=workplace.seconds(3))

    for server, body in servers.values():  # some wake up slowly
        burst(server.url(), body, connections=min(connections, 32), seconds=1, faults_allowed=True)
    candidates = {name: lambda pair=pair: one(*pair) for name, pair in servers.items()}
    return take_turns(candidates, workplace.rounds(7))


def _figures(loads: Loads, connections: int, *, with_ours: bool) -> list[Figure]:
    at = f"{connections} connection{'s' * (connections > 1)}"
    kind = "one" if connections == 1 else "many"
    ours = loads[OURS]
    figures = [_rate(OURS, ours, at)] if with_ours else []
    for name, its in loads.items():
        if name == OURS:
            continue
        figures.append(_rate(name, its, at))
        ratio = median_ratio([load.rate for load in ours], [load.rate for load in its])
        goal = GOALS.get((name, kind))
        figures.append(Figure(PART, f"throughput, evenkeel / {name}, {at}", ratio, goal=goal))
        if goal and kind == "many":
            tail = median_ratio([load.p99 for load in ours], [load.p99 for load in its])
            figures.append(Figure(PART, f"p99, evenkeel / {name}, {at}", tail, goal=at_most(0.5)))
    return figures


def _rate(name: str, loads: Sequence[Load], at: str) -> Figure:
    rates = sorted(load.rate for load in loads)
    p50, p99 = (statistics.median(getattr(load, key) for load in loads) * 1e3 for key in ("p50", "p99"))
    note = f"p50 {p50:.2f} ms, p99 {p99:.2f} ms; rounds {rates[0]:,.0f} to {rates[-1]:,.0f}"
    return Figure(PART, f"{name}, {at}", statistics.median(rates), "requests/s", note=note)


def _as_json(body: Body, folder: Path) -> Body:
    file = folder / "small.json"
    image = base64.b64encode(body.files[0].read_bytes()).decode()
    file.write_text(json.dumps({"image": image, "alpha": 1.5}))
    return Body("application/json", [file])
