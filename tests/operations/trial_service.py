"""The service as it is, save that the model's pace, its faults and the clock on the wall are the test's to choose.

`python -m tests.operations.trial_service serve BUNDLE ...` takes the service's command line and settings. Beside them:

- `EVENKEEL_TRIAL_SECONDS`: what each picture adds to a run of the model; the capacity is one in so many seconds.
- `EVENKEEL_TRIAL_CLOCK`: a file with the seconds by which `time.time` is off.
- A picture whose first pixel is `FAILING` makes the run that it is in fail; one with `HANGING` makes it last two
  seconds.
- `EVENKEEL_TRIAL_BROKEN`: a file; while it is there, every run fails.
"""

import os
import time
from pathlib import Path
from typing import Any

FAILING, HANGING = 250, 240
"""The red of a picture's first pixel."""

_HANG = 2.0


def _put_the_clock_wrong(offset: Path) -> None:
    real = time.time
    time.time = lambda: real() + float(offset.read_text())


def _set_the_pace(seconds: float, broken: Path | None) -> None:
    from service import app
    from service.model import OnnxModel

    app.RUNS_AT_ONCE_ON_A_DEVICE = 1  # on a GPU too: two at once would be twice the pace
    real = OnnxModel.branches

    def branches(self: OnnxModel, images: Any) -> Any:
        first = set(images[:, 0, 0, 0].tolist())
        time.sleep(len(images) * seconds + (_HANG if HANGING in first else 0.0))
        if FAILING in first or (broken and broken.exists()):
            raise RuntimeError("the device is out of memory")
        return real(self, images)

    OnnxModel.branches = branches  # type: ignore[method-assign]


def main() -> None:
    """Serve."""
    if clock := os.environ.get("EVENKEEL_TRIAL_CLOCK"):
        _put_the_clock_wrong(Path(clock))  # before anything takes it over
    broken = os.environ.get("EVENKEEL_TRIAL_BROKEN")
    _set_the_pace(float(os.environ.get("EVENKEEL_TRIAL_SECONDS", "0")), Path(broken) if broken else None)
    from service.__main__ import main as serve

    serve()


if __name__ == "__main__":
    main()
