import time

import pytest

from service.callers import Callers
from service.clients import ClientPolicy, Owner
from service.metrics import Metrics
from service.policy_store import Snapshot


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


def test_who_has_a_removed_clients_name_is_another_also_on_the_same_terms() -> None:
    callers, policy = Callers(Metrics(), 10), ClientPolicy(images_per_second=1)
    first, next_one = Owner("shop", 1.0), Owner("shop", 2.0)
    callers.load(Snapshot((1, 1.0), {first: policy}, {}))
    before = callers.of_name("shop")
    callers.load(Snapshot((2, 2.0), {first: policy}, {}))
    assert callers.of_name("shop") is before
    callers.load(Snapshot((3, 3.0), {next_one: policy}, {}))
    after = callers.of_name("shop")
    assert before is not None
    assert after is not None
    assert (before.owner, after.owner) == (first, next_one)
