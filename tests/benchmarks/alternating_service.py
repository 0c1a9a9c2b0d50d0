"""The service as it is, save that it keeps predictions for a while, then keeps none, and says what each while cost.

`python -m tests.benchmarks.alternating_service serve BUNDLE ...` takes the service's command line and settings. Beside
them `EVENKEEL_TRIAL_PHASES` names the file to which a line of JSON is written after each phase.

Two processes of one program differ by several percent by chance, and a machine from one second to a later one: within
one process and between neighbours there is little of either. Phases go there and back, so that what drifts touches both
alike. What a phase has noted is written before it ends and at no other time: a phase lasts as long as the service
gathers a batch.
"""

import json
import os
import threading
import time
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from service import keeping
from service.__main__ import main
from service.metrics import Metrics
from service.prediction_store import PredictionStore
from service.recorder import Recorder

PHASE = keeping._WRITE
"""Seconds."""

_NEVER = 1e6


@dataclass(frozen=True)
class Phase:
    """What a phase found: begin and end by the monotonic clock, seconds of the processor in all threads."""

    keeps: bool
    begin: float
    end: float
    requests: int
    processor_seconds: float
    skipped: int

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.requests / (self.end - self.begin)

    @property
    def cost(self) -> float:
        """Seconds of the processor for an answer."""
        return self.processor_seconds / self.requests


def read_phases(file: Path) -> list[Phase]:
    """Return what was written."""
    return [Phase(**json.loads(line)) for line in file.read_text().splitlines()]


def _alternate(file: Path) -> None:
    real = Recorder.__init__

    def begin(self: Recorder, store: PredictionStore, metrics: Metrics, **how: Any) -> None:
        real(self, store, metrics, **how)
        threading.Thread(target=_go_through_phases, args=(self, metrics, file), daemon=True).start()

    keeping._WRITE = _NEVER
    Recorder.__init__ = begin  # type: ignore[method-assign]


def _go_through_phases(recorder: Recorder, metrics: Metrics, file: Path) -> None:
    def answered() -> int:
        return int(metrics.total_seconds.cumulative()[-1][1])

    while not answered():
        time.sleep(0.1)
    with file.open("w") as sink:
        for keeps in cycle([True, False, False, True]):
            recorder._share = float(keeps)
            begin, requests, used = time.monotonic(), answered(), time.process_time()
            time.sleep(PHASE)
            if keeps:
                recorder._share = 0.0
                recorder.flush()
            requests, used = answered() - requests, time.process_time() - used
            phase = Phase(keeps, begin, time.monotonic(), requests, used, metrics.store_skipped.value)
            print(json.dumps(asdict(phase)), file=sink, flush=True)


if __name__ == "__main__":
    _alternate(Path(os.environ["EVENKEEL_TRIAL_PHASES"]))
    main()
