"""`torchrun` of two processes on this machine, which are forked from one that has loaded the trainer.

Started afresh, as it does by default, each takes seconds of a core to load torch and what the trainer stands on. Run as
`python -m tests.trainer.torchrun [--max-restarts=N] --run-path SCRIPT ...`; knows nothing of what it starts.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.run import main

ROOT = Path(__file__).parents[2]
HERE = ["--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--start-method=forkserver"]


@contextmanager
def running(
    script: Path, *arguments: str | Path, restarts: int = 0, environment: dict[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run it on a script, one thread a process, until the end of the block."""
    command = [sys.executable, "-m", __name__, f"--max-restarts={restarts}", "--run-path", script, *arguments]
    everything = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | (environment or {})
    launcher = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=everything, **options)
    try:
        yield launcher
    finally:
        launcher.kill()
        launcher.wait()


if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["trainer.runs", "trainer.detection.runs"])
    main([*HERE, *sys.argv[1:]])
