"""Tries every fault many times against a real process, and prints what came of it: `python -m tests.operations.faults`.

After each the service must answer a good request; after all, nothing may be in flight, and its memory and its
descriptors must be as before. `FAULTS.md` holds what a long run gave.
"""

import argparse
import asyncio
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.operations import connection_faults, picture_faults, surroundings
from tests.operations.client import metric, request, send
from tests.operations.fault import Fault, Try
from tests.operations.picture_faults import bombs
from tests.service.fakes import picture
from tests.service.test_process import Process, running
from tests.service.tiny_model import write_tiny_bundle

FAULTS = [*picture_faults.FAULTS, *connection_faults.FAULTS]
SETTINGS = {"request_timeout": "2", "max_body_bytes": "2000000", "max_queue_size": "1000"}
AT_A_TIME = 50


class Footprint(NamedTuple):
    """What a process holds."""

    descriptors: int
    megabytes: float

    @classmethod
    def of(cls, service: Process) -> "Footprint":
        """Look."""
        process = Path(f"/proc/{service.process.pid}")
        pages = int((process / "statm").read_text().split()[1])
        return cls(len(list((process / "fd").iterdir())), pages * 4096 / 1e6)


async def tried(service: Process, fault: Fault, times: int) -> Counter[str]:
    """Do it so many times, some at once; return the outcomes. A good request must be answered then."""
    places = asyncio.Semaphore(AT_A_TIME)

    async def once(number: int) -> str:
        async with places:
            return await fault.once(Try(service, random.Random(f"{fault.name} {number}")))

    outcomes = Counter(await asyncio.gather(*map(once, range(times))))
    after = await send(service.port, request(picture(1)))
    outcomes |= {f"then {after.status}": 1} if after.status != 200 else {}
    return outcomes


async def settled(service: Process) -> Footprint:
    """Wait until nothing is in flight any more, and look at what the process holds."""
    for _ in range(100):
        held = Footprint.of(service)
        await asyncio.sleep(0.1)
        if metric(service, "evenkeel_images_in_flight") == 0 and Footprint.of(service).descriptors == held.descriptors:
            break
    return Footprint.of(service)


def _row(name: str, outcomes: Counter[str], held: str = "|") -> None:
    shown = ", ".join(f"{count} x {outcome}" for outcome, count in sorted(outcomes.items()))
    print(f"| {name} | {outcomes.total()} | {shown} | {held} |", flush=True)


async def _sent(folder: Path, bundle: Path, faults: Sequence[Fault], times: int) -> bool:
    """Try what is sent; return whether every outcome was one of those expected."""
    fine, log = True, folder / "log"
    bombs()  # takes a while to make, and would keep everyone else waiting
    with running(bundle, log, **SETTINGS, database_url=f"sqlite:///{folder}/kept.sqlite") as service:
        for fault in faults:
            outcomes = await tried(service, fault, times)
            held = await settled(service)
            _row(fault.name, outcomes, f"{held.descriptors} | {held.megabytes:.0f}")
            if wrong := outcomes.keys() - fault.expected:
                print(f"wrong: {sorted(wrong)}", file=sys.stderr)
                fine = False
    return fine and "Traceback" not in log.read_text()


async def _surrounding(folder: Path, bundle: Path, times: int) -> None:
    """Try what the service stands on."""
    with running(bundle, folder / "disk.log", database_url=f"sqlite:///{folder}/disk.sqlite") as service:
        _row("a full disk", Counter(await surroundings.on_a_full_disk(service, times)))
        _row("damaged bundles at a reload", Counter(await surroundings.reloads_of_damaged_bundles(service, bundle, 5)))
    write_tiny_bundle(bundle)
    _row("damaged bundles at the start", Counter(surroundings.starts_with_damaged_bundles(folder)))
    _row("no GPU where one is asked for", Counter(surroundings.starts_without_the_provider(bundle)))
    _row("a clock that jumps", Counter(await surroundings.with_a_jumping_clock(bundle, folder, times)))


async def _table(faults: Sequence[Fault], times: int) -> bool:
    print("| what | times | outcomes | descriptors after | MB resident after |")
    print("| --- | ---: | --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = write_tiny_bundle(folder / "tiny").path
        fine = await _sent(folder, bundle, faults, times)
        if len(faults) == len(FAULTS):
            await _surrounding(folder, bundle, times)
    return fine


def main() -> None:
    """Print the table; exit with 1 if an outcome is none of those expected."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--times", type=int, default=20, help="how often each fault is tried")
    arguments.add_argument("--only", default="", help="only faults whose name holds this")
    given = arguments.parse_args()
    chosen = [fault for fault in FAULTS if given.only in fault.name]
    sys.exit(0 if asyncio.run(_table(chosen, given.times)) else 1)


if __name__ == "__main__":
    main()
