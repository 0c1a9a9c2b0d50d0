"""A new bundle under load on a GPU: how long it takes, what requests notice, and the memory that both models hold."""

import re
import signal
import subprocess
import threading
import time
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
        before = memory.most()
        seconds = 4 * plan.seconds
        asking = pool.submit(load, [server.port], requests, processes=_CLIENTS, connections=_CLIENTS, seconds=seconds)
        time.sleep(seconds / 4)
        _point(served, other.path)
        begin = time.perf_counter()
        server.process.send_signal(signal.SIGHUP)
        _wait_for(server, other.manifest.version, begin + plan.patience)
        took = time.perf_counter() - begin
        found = asking.result()
        during = memory.most()
        time.sleep(1)
        after = memory.now()
    failed = found.refused + bool(found.fault)
    note = (
        f"{found.images:,.0f} images/s over {seconds:.0f} s, the reload among them, {alone.images:,.0f} without one; "
    )
    note += f"the slowest request {found.slowest * 1e3:.0f} ms, {alone.slowest * 1e3:.0f} without; MiB of the GPU: "
    note += f"{before} before, {during} at most, {after} after; {found.fault}"
    return [
        Figure(part, "a reload under load, signal to new version", took, "s", note=note.removesuffix("; ")),
        Figure(part, "requests that fail at a reload under load", failed, goal=at_most(0)),
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


def _wait_for(server: Server, version: str, until: float) -> None:
    while not re.search(rf'^evenkeel_model_info{{.*version="{version}".*}} 1', metrics(server), re.MULTILINE):
        if time.perf_counter() > until or server.process.poll() is not None:
            raise RuntimeError(f"the new version never served; the log ends: {server.log.read_text()[-600:]}")
        time.sleep(_PAUSE)


class _Memory:
    """What all processes hold of the GPU's memory, in MiB, as the driver says."""

    def __init__(self) -> None:
        self._most, self._over = 0, threading.Event()
        self._watch = threading.Thread(target=self._look)

    def __enter__(self) -> "_Memory":
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()

    def most(self) -> int:
        """Return the most since it was last asked."""
        most, self._most = self._most, 0
        return most

    @staticmethod
    def now() -> int:
        """Return what is held now; 0 where there is no GPU."""
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        except (OSError, subprocess.SubprocessError):
            return 0
        return int(said.split()[0])

    def _look(self) -> None:
        while not self._over.wait(_PAUSE):
            self._most = max(self._most, self.now())
