"""Whether the service grows: resident memory after 200,000 requests of every kind against that after 5,000.

Good requests at full load, far more of them than the queue takes, so that many get 429; pictures that are cut off,
alphas out of range; and clients that send a request and leave.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.load import Body, burst
from tests.benchmarks.models import TINY
from tests.benchmarks.pictures import small_png
from tests.benchmarks.result import Figure, at_most
from tests.benchmarks.servers import Server, evenkeel, fetch
from tests.benchmarks.workplace import Workplace

PART = "Memory"
EARLY, LATE = 5_000, 200_000


def run(workplace: Workplace) -> list[Figure]:
    """Load the service until it has answered so many requests, and look at its memory on the way."""
    mixture = _mixture(workplace.place("pictures"))
    early, late = round(EARLY * workplace.scale), round(LATE * workplace.scale)
    settings = {"max_queue_size": 24, "max_images_per_request": 8, "max_batch_size": 8}
    with (
        evenkeel(workplace.bundle(TINY).path, workplace.place("run-memory"), threads=1, **settings) as server,
        _clients_that_leave(server, mixture.files[0].read_bytes()),
    ):
        before = _memory_after(server, mixture, early)
        begun = sum(_counts(server).values())
        after = _memory_after(server, mixture, late)
        counts = _counts(server)
    assert counts["200"] > 0.5 * sum(counts.values()), f"most requests are good ones: {counts}"
    answers = ", ".join(f"{n:,} {name}" for name, n in counts.items())
    note = f"{before / 2**20:.0f} MiB after {begun:,}, by whole bursts, to {after / 2**20:.0f}; {answers}"
    return [
        Figure(PART, f"memory after {late:,} requests / after {early:,}", after / before, goal=at_most(1.05), note=note)
    ]


def _mixture(folder: Path) -> Body:
    good = small_png(folder).files[0]
    cut = folder / "cut.png"
    cut.write_bytes(good.read_bytes()[:-700])
    return Body("image/png", [good] * 9 + [cut])


def _memory_after(server: Server, mixture: Body, requests: int) -> int:
    """Send until so many are answered; half the bursts name alphas beyond the range too."""
    turn = 0
    while (left := requests - sum(_counts(server).values())) > 0:
        alphas = (0.0, 4.0) if turn % 2 else None
        seconds = 1 if left < 20_000 else 5
        burst(server.url(), mixture, connections=48, seconds=seconds, alphas=alphas, faults_allowed=True)
        turn += 1
    return server.resident_bytes()


def _counts(server: Server) -> dict[str, int]:
    """Return how many requests to /predict were answered how; of 499 nobody waited for the answer."""
    counts = {"200": 0, "400": 0, "422": 0, "429": 0, "499": 0}
    for line in fetch(server.url("/metrics"))[1].decode().splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("evenkeel_requests_total") and 'route="/predict"' in name:
            status = name.split('status="')[1].split('"')[0]
            counts[status] = counts.get(status, 0) + int(float(value))
    return counts


@contextmanager
def _clients_that_leave(server: Server, picture: bytes) -> Iterator[None]:
    """Keep sending requests whose clients close the connection at once."""
    stop = threading.Event()
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(picture)}\r\n\r\n"

    def leave() -> None:
        turn = 0
        while not stop.wait(0.005):
            turn += 1
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(head.encode() + picture[: None if turn % 2 else -100])

    thread = threading.Thread(target=leave)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
