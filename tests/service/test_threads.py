import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from service.threads import Threads, in_a_thread_of_its_own


class Given:
    """Something to be given to work, and to be told of when it is gone."""


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def threads(gate: threading.Event) -> Iterator[Threads]:
    threads = Threads(1, "test")
    yield threads
    gate.set()
    threads.close()


def test_work_gives_what_its_call_does(threads: Threads) -> None:
    assert threads.submit(divmod, 7, 2).result() == (3, 1)
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 7, 0).result()


def test_work_that_is_dropped_before_its_turn_keeps_nothing_of_what_it_was_given(
    threads: Threads, gate: threading.Event
) -> None:
    threads.submit(gate.wait, 20)
    given = Given()
    alive, work = weakref.ref(given), threads.submit(id, given)
    del given
    assert alive() is not None
    assert work.cancel()
    assert alive() is None


def test_nor_does_work_that_is_done_while_its_result_is_kept(threads: Threads) -> None:
    given = Given()
    alive, work = weakref.ref(given), threads.submit(id, given)
    del given
    assert work.result()
    threads.submit(int).result()  # the thread has let go of what it did before
    assert alive() is None


def test_closing_drops_what_has_not_begun_and_waits_for_nobody(threads: Threads, gate: threading.Event) -> None:
    under_way, waiting = threads.submit(gate.wait, 20), threads.submit(int)
    threads.close()
    assert waiting.cancelled()
    assert not under_way.done()


async def test_a_thread_of_its_own_gives_what_the_call_does() -> None:
    assert await in_a_thread_of_its_own(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_a_thread_of_its_own(divmod, 7, 0)


async def test_a_call_that_hangs_can_be_left_to_itself(gate: threading.Event) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await in_a_thread_of_its_own(gate.wait, 20)
    (hanging,) = [thread for thread in threading.enumerate() if thread.name == "wait"]
    assert hanging.daemon
    gate.set()
    hanging.join(10)  # what it gives nobody takes, and that fails nowhere


async def test_what_a_failed_call_had_made_goes_with_its_error() -> None:
    made: list[weakref.ref[Given]] = []

    def fail() -> None:
        given = Given()
        made.append(weakref.ref(given))
        raise ValueError("wrong")

    gc.disable()
    try:
        for _ in range(2):
            try:
                await in_a_thread_of_its_own(fail)
            except ValueError as error:
                assert made[-1]() is not None, "its traceback has it"
                assert str(error) == "wrong"
            await asyncio.sleep(0.05)  # until the thread has ended
            assert made[-1]() is None
    finally:
        gc.enable()
