import time

import pytest

from service.callers import Callers
from service.metrics import Metrics


def test_policies_that_were_never_read_are_as_old_as_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    metrics = Metrics()
    callers = Callers(metrics, 10)
    now[0] = 145.0
    assert metrics.registry.get_sample_value("evenkeel_policies_age_seconds") == 45.0
    callers.load(None)
    now[0] = 147.5
    assert metrics.registry.get_sample_value("evenkeel_policies_age_seconds") == 2.5
