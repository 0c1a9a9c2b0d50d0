"""The service as it is, save that the model's pace, its faults and the clock on the wall are the test's to choose.

`python -m tests.operations.trial_service serve BUNDLE ...` takes the service's command line and settings. Beside them:

- `EVENKEEL_TRIAL_SECONDS`: what each picture adds to a run of the model; the capacity is one in so many seconds.
- `EVENKEEL_TRIAL_CLOCK`: a file with the seconds by which `time.time` is off.
- A picture whose first pixel is `FAILING` makes the run that it is in fail; one with `HANGING` makes it last two
  seconds.
"""

import os
import time
from functools import wraps
from pathlib import Path
from typing import Any

FAILING, HANGING = 250, 240
"""The red of a picture's first pixel."""

_HANG = 2.0


class Trial:
    """A model at the pace of the test."""

    def __init__(self, model: Any, seconds: float) -> None:
        self._model, self._seconds = model, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def branches(self, images: Any) -> Any:
        """Take the time, then answer as the model does."""
        first = set(images[:, 0, 0, 0].tolist())
        time.sleep(len(images) * self._seconds + (_HANG if HANGING in first else 0.0))
        if FAILING in first:
            raise RuntimeError("the device is out of memory")
        return self._model.branches(images)


def _put_the_clock_wrong(offset: Path) -> None:
    real = time.time
    time.time = lambda: real() + float(offset.read_text())


def main() -> None:
    """Serve."""
    if clock := os.environ.get("EVENKEEL_TRIAL_CLOCK"):
        _put_the_clock_wrong(Path(clock))
    from service import __main__ as program

    seconds, load = float(os.environ.get("EVENKEEL_TRIAL_SECONDS", "0")), program._load

    @wraps(load)
    def load_trial(*arguments: Any) -> Any:
        loaded = load(*arguments)
        return None if loaded is None else loaded._replace(model=Trial(loaded.model, seconds))

    program._load = load_trial
    program.main()


if __name__ == "__main__":
    main()
