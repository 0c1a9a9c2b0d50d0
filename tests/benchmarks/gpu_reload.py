"""A new bundle under load on a GPU: how long it takes, what requests notice, and the memory that both models hold."""

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from service.bundle import PARITY_FILE, AlphaSpec, Bundle, ManifestDraft, write_bundle
from tests.benchmarks.gpu_load import Requests, load
from tests.benchmarks.gpu_services import Plan, metrics, services
from tests.benchmarks.result import Figure, at_most
from tests.benchmarks.servers import Server
from tests.benchmarks.workplace import Workplace

_CLIENTS = 4
_PAUSE = 0.1


def reload_under_load(part: str, bundle: Bundle, requests: Requests, plan: Plan, workplace: Workplace) -> list[Figure]:
    """Send batches, have the service take another bundle meanwhile, and see that none fails."""
    served = workplace.place("run-gpu") / "served"
    _point(served, bundle.path)
    other = _another(bundle, workplace)
    with services(served, 1, plan, workplace) as [server], _Memory() as memory, ThreadPoolExecutor(1) as pool:
        alone = load([server.port], requests, processes=_CLIENTS, connections=_CLIENTS, seconds=plan.seconds)
        before, asked = memory.most(), _runs(server)
        seconds = 4 * plan.seconds
        asking = pool.submit(load, [server.port], requests, processes=_CLIENTS, connections=_CLIENTS, seconds=seconds)
        _wait_until(server, plan, lambda: _runs(server) > asked)  # the load has begun
        _point(served, other.path)
        begin = time.perf_counter()
        server.process.send_signal(signal.SIGHUP)
        _wait_until(server, plan, lambda: f'version="{other.manifest.version}"' in metrics(server))
        took = time.perf_counter() - begin
        if asking.done():
            raise RuntimeError(f"the load ended within the {took:.1f} s that the reload took; give more --seconds")
        found = asking.result()
        during = memory.most()
        time.sleep(1)
        after = memory.now()
    note = f"{found.images:,.0f} images/s over {seconds:.0f} s with the reload, {alone.images:,.0f} without one; "
    note += f"the slowest request {found.slowest * 1e3:.0f} ms, {alone.slowest * 1e3:.0f} without; MiB of the GPU: "
    note += f"{before} before, {during} at most, {after} after"
    failed = "requests that fail at a reload under load"
    return [
        Figure(part, "a reload under load, signal to new version", took, "s", note=note),
        Figure(part, failed, found.refused + found.lost, goal=at_most(0), note=found.fault),
    ]


def _point(link: Path, target: Path) -> None:
    new = link.with_suffix(".new")
    new.unlink(missing_ok=True)
    new.symlink_to(target.absolute())
    new.replace(link)


def _another(bundle: Bundle, workplace: Workplace) -> Bundle:
    """Return a bundle of the same models and another default of alpha, hence of another version."""
    manifest = bundle.manifest
    draft = ManifestDraft(**{name: getattr(manifest, name) for name in ManifestDraft.model_fields})
    alpha = AlphaSpec(**{**draft.alpha.model_dump(), "default": draft.alpha.default / 2})
    return write_bundle(
        workplace.place("run-gpu") / "another",
        draft.model_copy(update={"alpha": alpha}),
        models={model.precision: bundle.path / model.path for model in manifest.models},
        files={PARITY_FILE: bundle.path / PARITY_FILE},
    )


def _runs(server: Server) -> float:
    found = re.search(r"^evenkeel_batch_size_count (\S+)", metrics(server), re.MULTILINE)
    return float(found[1]) if found else 0.0


def _wait_until(server: Server, plan: Plan, condition: Callable[[], bool]) -> None:
    until = time.perf_counter() + plan.patience
    while not condition():
        if time.perf_counter() > until or server.process.poll() is not None:
            raise RuntimeError(f"waited in vain; the log ends: {server.log.read_text()[-600:]}")
        time.sleep(_PAUSE)


class _Memory:
    """What all processes hold of the first GPU's memory, in MiB, as the driver says."""

    def __init__(self) -> None:
        self._seen: list[int] = []
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look)

    def __enter__(self) -> "_Memory":
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()

    def most(self) -> int:
        """Return the most since it was last asked."""
        seen, self._seen = self._seen, []
        return max(seen, default=0)

    @staticmethod
    def now() -> int:
        """Return what is held now; 0 where nothing says it."""
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        try:
            return int(
                subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
            )
        except (OSError, subprocess.SubprocessError, ValueError):
            return 0

    def _look(self) -> None:
        while not self._over.wait(_PAUSE):
            self._seen.append(self.now())
