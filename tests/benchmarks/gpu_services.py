"""Services on a GPU, as the benchmarks start them: what is measured, how many, and what they say of themselves."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.cores import available_cores
from service.session import Provider
from tests.benchmarks.gpu_raw import BATCH
from tests.benchmarks.models import HEAVY
from tests.benchmarks.servers import Server, fetch, free_port, running
from tests.benchmarks.workplace import Workplace

PROCESSES = (1, 2, 4, 8, 12)


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        provider: cuda, or cpu to try it.
        model: what is served.
        processes: of the service, with single JPEGs.
        seconds: of each burst over HTTP.
        stretch: seconds of each stretch without a server; three make a figure.
        patience: seconds that a part without a server, or a start, may take.
        survey: whether the provider's options are compared too.
    """

    provider: Provider = "cuda"
    model: tuple[str, int] = HEAVY
    processes: Sequence[int] = PROCESSES
    seconds: float = 3
    stretch: float = 0.3
    patience: float = 60
    survey: bool = True


@contextmanager
def services(bundle: Path, count: int, plan: Plan, workplace: Workplace, **settings: str) -> Iterator[list[Server]]:
    """Start so many processes of the service at once, each on a port of its own, and wait for all.

    Settings are the environment's, beside those that all have: of the service, or of `gpu_server`.
    """
    settings = {
        "EVENKEEL_MAX_QUEUE_SIZE": "1024",
        "EVENKEEL_MAX_BATCH_SIZE": str(BATCH),
        "EVENKEEL_DECODE_THREADS": str(decoding_threads(count)),
        **settings,
    }
    folders = [workplace.place(f"run-gpu/{number}") for number in range(count)]
    starts = [_service(bundle, folder, plan, settings) for folder in folders]
    with ExitStack() as stack, ThreadPoolExecutor(count) as pool:
        servers = list(pool.map(stack.enter_context, starts))
        _refuse_another_provider(servers[0], plan.provider)
        yield servers
        for server in servers:  # together, and not one after the other
            server.process.send_signal(signal.SIGINT)


def _service(bundle: Path, folder: Path, plan: Plan, settings: Mapping[str, str]) -> AbstractContextManager[Server]:
    for old in folder.glob("state.sqlite*"):
        old.unlink()
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.gpu_server", "serve", str(bundle), "--port", str(port)]
    command += ["--provider", plan.provider]
    environment = {**settings, "EVENKEEL_DATABASE_URL": f"sqlite:///{folder / 'state.sqlite'}"}
    return running(command, folder=folder, ready="/readyz", environment=environment, port=port, patience=plan.patience)


def _refuse_another_provider(server: Server, provider: Provider) -> None:
    """See that what is measured runs where it should.

    Raises:
        RuntimeError: it does not.
    """
    said = metrics(server)
    model = next(line for line in said.splitlines() if line.startswith("evenkeel_model_info{"))
    if f'provider="{provider}"' not in model:
        raise RuntimeError(f"the service says {model}")


def metrics(server: Server) -> str:
    return fetch(server.url("/metrics"))[1].decode()


def decoding_threads(count: int) -> int:
    """Share the cores for decoding among so many processes."""
    return max(2, available_cores() // count)


def card() -> str:
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return "no GPU"
    return said.stdout.strip().splitlines()[0]
