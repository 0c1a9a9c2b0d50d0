import asyncio
import threading
import time

import pytest

from service import respite
from service.respite import Respite


class Waits(threading.Event):
    """The event of a run's end, which takes note of who waits for it, and for how long."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(-1.0 if timeout is None else timeout)
        return super().wait(timeout)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    waits = Waits()
    monkeypatch.setattr(respite, "Event", lambda: waits)
    return waits


def always() -> bool:
    return True


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_rest_ends_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(respite, "_LONGEST", 60.0)
    rests = Respite()
    rests.begin_run()
    threading.Timer(0.05, rests.end_run).start()
    begin = time.monotonic()
    rests.take_soon(1e6, always)
    await turns()
    assert 0.04 < time.monotonic() - begin < 30


async def test_without_a_run_under_way_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(respite, "_LONGEST", 60.0)
    rests = Respite()
    begin = time.monotonic()
    rests.take_soon(1e6, always)
    await turns()
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize(("run", "rest"), [(10.0, 0.05), (0.1, 0.025), (0.003, None), (0.0, None)])
async def test_it_takes_a_part_of_a_run_and_none_that_gains_nothing(
    waits: Waits, run: float, rest: float | None
) -> None:
    rests = Respite()
    rests.begin_run()
    rests.take_soon(run, always)
    await turns()
    assert waits.seconds == ([] if rest is None else [pytest.approx(rest)])


async def test_those_who_come_together_are_all_refused_before_and_have_one_between_them(waits: Waits) -> None:
    rests = Respite()
    rests.begin_run()
    for _ in range(5):
        rests.take_soon(0.1, always)
    await asyncio.sleep(0)
    assert waits.seconds == []
    await turns()
    assert len(waits.seconds) == 1
    rests.take_soon(0.1, always)
    await turns()
    assert len(waits.seconds) == 2


async def test_it_is_none_once_there_is_something_to_do(waits: Waits) -> None:
    rests = Respite()
    rests.begin_run()
    rests.take_soon(0.1, lambda: False)
    await turns()
    assert waits.seconds == []
    rests.take_soon(0.1, always)
    await turns()
    assert len(waits.seconds) == 1


async def test_when_another_run_has_begun_the_answers_of_the_one_before_are_written_first(waits: Waits) -> None:
    rests = Respite()
    rests.begin_run()
    rests.take_soon(0.1, always)
    await turns(3)
    rests.end_run()
    rests.begin_run()
    await turns(3)
    assert waits.seconds == []
    await turns()
    assert len(waits.seconds) == 1
