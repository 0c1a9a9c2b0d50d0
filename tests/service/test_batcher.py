import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from service.batcher import Admission, DynamicBatcher, _Alarm
from service.errors import ClientLeft, DeadlineExceeded, InferenceFailed, QueueFull, ShuttingDown
from service.metrics import REJECTION_REASONS, Metrics
from service.threads import Threads

Batcher = DynamicBatcher[int, str]
Make = Callable[..., Batcher]


class Echo:
    """Answers each item with its own name; can be held up, and can fail."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []
        self.poison: set[int] = set()

    def __call__(self, items: list[int]) -> Sequence[str]:
        self.gate.wait(20)
        self.batches.append(items)
        if self.poison & set(items):
            raise RuntimeError("poison")
        return [f"item {item}" for item in items]


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def make(echo: Echo, metrics: Metrics) -> AsyncIterator[Make]:
    made: list[Batcher] = []

    def make(run: Any = echo, **changes: Any) -> Batcher:
        options: dict[str, Any] = {"max_batch_size": 4, "max_queue_size": 8, "metrics": metrics}
        made.append(DynamicBatcher(run, **(options | changes)))
        return made[-1]

    yield make
    echo.gate.set()
    for batcher in made:
        await batcher.close(5)


async def ask(batcher: Batcher, *items: int, seconds: float = 10) -> list[str]:
    with batcher.admit(len(items), deadline=time.monotonic() + seconds) as admission:
        return await admission.run(items)


async def ask_many(batcher: Batcher, *items: int) -> list[asyncio.Task[list[str]]]:
    """Start one caller for each item and let them all get into the queue."""
    tasks = [asyncio.create_task(ask(batcher, item)) for item in items]
    await asyncio.sleep(0.02)
    return tasks


def total(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


async def test_a_lone_item_is_answered(make: Make) -> None:
    assert await ask(make(), 1) == ["item 1"]


async def test_what_waits_while_one_batch_runs_becomes_the_next(make: Make, echo: Echo) -> None:
    batcher = make()
    echo.gate.clear()
    tasks = await ask_many(batcher, 0, *range(1, 7))
    # those that came in the same turn of the loop share the first batch
    echo.gate.set()
    assert [await task for task in tasks] == [[f"item {item}"] for item in range(7)]
    assert max(map(len, echo.batches)) == 4
    assert sorted(item for batch in echo.batches for item in batch) == list(range(7))


async def test_the_next_long_run_does_not_wait_for_those_who_read_answers(make: Make, echo: Echo) -> None:
    begun = threading.Event()

    def run(items: list[int]) -> Sequence[str]:
        if 2 in items:
            begun.set()
        return echo(items)

    batcher = make(run)

    async def read() -> bool:
        await ask(batcher, 1)
        return begun.wait(5)  # holds up the loop, as whoever writes an answer does

    echo.gate.clear()
    reader = asyncio.create_task(read())
    await asyncio.sleep(0.02)
    [second] = await ask_many(batcher, 2)
    echo.gate.set()
    assert await reader
    assert await second == ["item 2"]


async def test_one_caller_gets_its_results_in_its_order_across_batches(make: Make) -> None:
    assert await ask(make(), *range(7)) == [f"item {item}" for item in range(7)]


async def test_thousands_of_callers_get_their_own_answers(make: Make) -> None:
    batcher = make(max_queue_size=5000)
    answers = await asyncio.gather(*(ask(batcher, item) for item in range(3000)))
    assert answers == [[f"item {item}"] for item in range(3000)]


@pytest.mark.parametrize("position", range(4))
async def test_cancelling_one_that_waits_leaves_its_neighbours_alone(make: Make, echo: Echo, position: int) -> None:
    batcher = make()
    echo.gate.clear()
    first = await ask_many(batcher, 99)
    waiting = await ask_many(batcher, 0, 1, 2, 3)
    waiting[position].cancel()
    await asyncio.sleep(0.01)
    echo.gate.set()
    for item, task in enumerate(waiting):
        if item == position:
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            assert await task == [f"item {item}"]
    assert await first[0] == ["item 99"]
    assert echo.batches == [[99], [item for item in range(4) if item != position]]


@pytest.mark.parametrize("position", range(3))
async def test_cancelling_one_that_runs_leaves_its_neighbours_alone(make: Make, echo: Echo, position: int) -> None:
    batcher = make()
    echo.gate.clear()
    running = await ask_many(batcher, 0, 1, 2)
    running[position].cancel()
    echo.gate.set()
    results = await asyncio.gather(*running, return_exceptions=True)
    assert [results[item] for item in range(3) if item != position] == [
        [f"item {item}"] for item in range(3) if item != position
    ]
    assert isinstance(results[position], asyncio.CancelledError)


async def test_a_failing_batch_fails_its_own_members_alone(make: Make, echo: Echo, metrics: Metrics) -> None:
    batcher = make(max_batch_size=8, max_queue_size=20)
    echo.poison = {3}
    echo.gate.clear()
    first = await ask_many(batcher, 99)
    tasks = await ask_many(batcher, *range(10))
    echo.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, InferenceFailed) for result in results] == [item == 3 for item in range(10)]
    assert [result for result in results if isinstance(result, list)] == [
        [f"item {item}"] for item in range(10) if item != 3
    ]
    assert await first[0] == ["item 99"]
    assert echo.batches == [[99], [*range(8)], [0, 1, 2, 3], [0, 1], [2, 3], [2], [3], [4, 5, 6, 7], [8, 9]]
    assert total(metrics, "evenkeel_failed_batches_total") == 4
    assert batcher.depth == total(metrics, "evenkeel_images_in_flight") == 0


async def test_a_batch_that_is_too_large_succeeds_in_parts(make: Make) -> None:
    def out_of_memory(items: list[int]) -> list[str]:
        if len(items) > 2:
            raise MemoryError("too large")
        return [f"item {item}" for item in items]

    batcher = make(out_of_memory, max_batch_size=8)
    assert await ask(batcher, *range(8)) == [f"item {item}" for item in range(8)]


async def test_halves_skip_whoever_left_and_closing_waits_for_the_rest(make: Make, echo: Echo) -> None:
    batcher = make()
    echo.poison = {0, 1, 2, 3}
    echo.gate.clear()
    tasks = await ask_many(batcher, 0, 1, 2, 3)
    tasks[2].cancel()
    tasks[3].cancel()
    closing = asyncio.create_task(batcher.close(5))
    echo.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await closing
    assert [type(result) for result in results[:2]] == [InferenceFailed] * 2
    assert echo.batches == [[0, 1, 2, 3], [0, 1], [0], [1]]


async def test_a_thread_that_is_gone_is_replaced_and_nobody_hangs(make: Make) -> None:
    batcher = make()
    batcher._executor.shutdown()
    assert await asyncio.wait_for(ask(batcher, 1, 2), 5) == ["item 1", "item 2"]
    assert batcher.stuck_for(asyncio.get_running_loop().time()) == 0


async def test_it_says_for_how_long_it_is_stuck(make: Make, echo: Echo) -> None:
    batcher, loop = make(), asyncio.get_running_loop()
    echo.gate.clear()
    (task,) = await ask_many(batcher, 1)
    assert batcher.stuck_for(loop.time() + 7) >= 7
    echo.gate.set()
    await task
    assert batcher.stuck_for(loop.time() + 7) == 0
    echo.poison = {2}
    with pytest.raises(InferenceFailed):
        await ask(batcher, 2)
    assert batcher.is_failing
    assert batcher.stuck_for(loop.time() + 7) == 0
    await ask(batcher, 1)
    assert not batcher.is_failing


async def test_what_is_run_alone_is_next_and_takes_nobodys_place(make: Make, echo: Echo, metrics: Metrics) -> None:
    batcher = make()
    echo.gate.clear()
    tasks = await ask_many(batcher, *range(4)) + await ask_many(batcher, *range(4, 12))
    assert batcher.depth == 8  # the queue is full
    alone = asyncio.create_task(batcher.run_alone(20))
    forgotten = asyncio.create_task(batcher.run_alone(21))
    await asyncio.sleep(0.02)
    assert batcher.depth == 8
    forgotten.cancel()
    await asyncio.wait({forgotten})
    echo.gate.set()
    assert await alone == "item 20"
    await asyncio.gather(*tasks)
    assert echo.batches == [[0, 1, 2, 3], [20], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert all(total(metrics, "evenkeel_rejected_images_total", reason=reason) == 0 for reason in REJECTION_REASONS)


async def test_what_is_run_alone_fails_alone_and_is_refused_after_the_end(make: Make, echo: Echo) -> None:
    batcher = make()
    echo.poison = {20}
    with pytest.raises(InferenceFailed):
        await batcher.run_alone(20)
    await batcher.close(5)
    with pytest.raises(ShuttingDown):
        await batcher.run_alone(1)


async def test_a_deadline_that_has_passed_costs_no_run(make: Make, echo: Echo, metrics: Metrics) -> None:
    batcher = make()
    with pytest.raises(DeadlineExceeded):
        await ask(batcher, 1, seconds=0)
    assert await ask(batcher, 2) == ["item 2"]
    assert echo.batches == [[2]]
    assert total(metrics, "evenkeel_rejected_images_total", reason="deadline_exceeded") == 1


async def test_each_who_waits_has_a_deadline_of_its_own(make: Make, echo: Echo) -> None:
    batcher = make(max_batch_size=1)
    echo.gate.clear()
    begin, ends = time.monotonic(), dict[float, float]()

    async def wait(seconds: float) -> None:
        with pytest.raises(DeadlineExceeded):
            await ask(batcher, 1, seconds=seconds)
        ends[seconds] = time.monotonic() - begin

    await asyncio.gather(*(wait(seconds) for seconds in (0.3, 0.1, 0.2, 0.05)))
    echo.gate.set()
    assert sorted(ends) == [0.05, 0.1, 0.2, 0.3]
    assert all(seconds <= end < seconds + 2 for seconds, end in ends.items())


class Sleeper:
    def __init__(self, due: float) -> None:
        self.due, self.rang_at = due, 0.0

    def ring(self, now: float) -> None:
        self.rang_at = now


async def test_the_more_wait_the_less_often_all_are_looked_at() -> None:
    alarm, loop, begin = _Alarm(), asyncio.get_running_loop(), time.monotonic()
    sleepers = [Sleeper(begin + 0.2 + number / 10_000) for number in range(2_000)]
    for sleeper in [*sleepers, *(Sleeper(begin + 100) for _ in range(20_000))]:
        alarm.set(sleeper, sleeper.due, loop)
    await until(lambda: sleepers[-1].rang_at > 0)
    assert all(sleeper.rang_at >= sleeper.due for sleeper in sleepers)
    assert len({sleeper.rang_at for sleeper in sleepers}) < 40
    for seconds in (0.05, 0.3):  # and who comes with a nearer deadline is not forgotten
        late = Sleeper(time.monotonic() + seconds)
        alarm.set(late, late.due, loop)
        await until(lambda late=late: late.rang_at > 0)  # type: ignore[misc]
        assert 0 <= late.rang_at - late.due < 2


async def test_an_admission_tells_how_long_its_items_waited_and_ran(make: Make, echo: Echo) -> None:
    batcher, loop = make(max_batch_size=1), asyncio.get_running_loop()
    echo.gate.clear()
    loop.call_later(0.05, echo.gate.set)
    with batcher.admit(2) as admission:
        await admission.run([1, 2])
    waited, ran = admission.seconds
    assert waited >= 0.04
    assert ran >= 0.04


@pytest.mark.parametrize(
    "run", [lambda items: [], lambda items: ["one too many"] * 2, lambda items: iter(()), lambda items: next(iter(()))]
)
async def test_a_function_that_breaks_its_word_hangs_nobody(make: Make, run: Any) -> None:
    with pytest.raises(InferenceFailed):
        await asyncio.wait_for(ask(make(run), 1), 5)


async def test_after_a_failure_the_next_batch_runs(make: Make, echo: Echo) -> None:
    batcher = make()
    echo.poison = {1}
    with pytest.raises(InferenceFailed):
        await ask(batcher, 1)
    assert await ask(batcher, 2) == ["item 2"]


async def test_beyond_the_queue_admission_is_refused_at_once(make: Make, echo: Echo, metrics: Metrics) -> None:
    batcher = make(max_queue_size=3)
    echo.gate.clear()
    await_first = await ask_many(batcher, 0)
    waiting = await ask_many(batcher, 1, 2, 3)
    with pytest.raises(QueueFull, match="3 images wait, and at most 3 may") as refusal:
        batcher.admit(1)
    assert refusal.value.retry_after is not None
    assert refusal.value.retry_after >= 1
    assert total(metrics, "evenkeel_rejected_images_total", reason="queue_full") == 1
    echo.gate.set()
    await asyncio.gather(*await_first, *waiting)
    assert await ask(batcher, 4) == ["item 4"]


@pytest.mark.parametrize("shares_cores", [True, False])
async def test_the_loop_rests_between_refusals_while_the_next_batch_is_full(
    make: Make, echo: Echo, monkeypatch: pytest.MonkeyPatch, shares_cores: bool
) -> None:
    """Of four a batch; on a device the loop has the cores to itself."""
    batcher = make(max_queue_size=10, shares_cores=shares_cores)
    asked: list[tuple[float, Callable[[], bool]]] = []
    monkeypatch.setattr(batcher._respite, "take_soon", lambda *given: asked.append(given))
    await ask(batcher, 0)
    echo.gate.clear()
    tasks = [*await ask_many(batcher, 0), *await ask_many(batcher, 1, 2, 3)]
    with pytest.raises(QueueFull):
        batcher.admit(8)
    assert asked == []  # what is admitted by now may still fill the next batch
    tasks += await ask_many(batcher, 4)
    with pytest.raises(QueueFull):
        batcher.admit(8)
    with pytest.raises(QueueFull, match="longer than this request may take"):
        batcher.admit(1, deadline=time.monotonic())
    assert len(asked) == (2 if shares_cores else 0)
    assert all(seconds > 0 and is_wanted() for seconds, is_wanted in asked)
    echo.gate.set()
    await asyncio.gather(*tasks)
    assert not any(is_wanted() for _, is_wanted in asked)


async def crowd(batcher: Batcher, *, seconds: float = 10) -> tuple[list[Any], list[QueueFull]]:
    """Have more callers come than are served, each on its own; return what came of those admitted, and the refusals."""
    tasks, refusals, begin = [], [], time.monotonic()
    for number in range(100):  # on the clock, as the loop may rest
        await asyncio.sleep(max(0.0, begin + 0.005 * number - time.monotonic()))
        try:
            admission = batcher.admit(1, deadline=time.monotonic() + seconds)
        except QueueFull as refusal:
            refusals.append(refusal)
        else:
            tasks.append(asyncio.create_task(held(admission, number)))
    return await asyncio.gather(*tasks, return_exceptions=True), refusals


async def held(admission: Admission[int, str], item: int, pool: Threads | None = None, make: Any = None) -> list[str]:
    with admission:
        if pool is None:
            return await admission.run([item])
        return await admission.run(
            await admission.prepare((pool.submit(make, each) for each in [item]), busy=pool.busy)
        )


async def test_who_would_be_answered_too_late_is_told_when_to_come_and_all_others_are_answered(make: Make) -> None:
    def run(items: list[int]) -> list[str]:
        time.sleep(0.02 * len(items))
        return [f"item {item}" for item in items]

    batcher = make(run, max_queue_size=1000)
    await ask(batcher, 0)
    outcomes, refusals = await crowd(batcher, seconds=0.4)  # twenty may wait; four times as many as are run come
    late = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert len(refusals) > 40
    assert len(outcomes) > 25  # fifty a second, for the half second in which they come and as long as one may wait
    assert len(late) <= len(outcomes) / 10
    assert "until the answer" in refusals[-1].message
    assert {refusal.retry_after for refusal in refusals} == {1}
    assert await ask(batcher, 1, seconds=0.1) == ["item 1"]


async def test_who_would_wait_too_long_for_a_thread_is_told_so_and_who_needs_none_overtakes(
    make: Make, echo: Echo, metrics: Metrics
) -> None:
    """Runs take no time here, and what items are made of does: their thread lets fifty through in a second."""

    def made(item: int) -> int:
        time.sleep(0.02)
        return item

    batcher, pool = make(echo, max_queue_size=1000), Threads(1, "make")
    batcher.seconds_until_prepared = pool.busy
    tasks, quick = [], []
    for number in range(200):
        admission = batcher.admit(1, deadline=time.monotonic() + 0.4)
        tasks.append(asyncio.create_task(held(admission, number, pool, made)))
        if number % 20 == 19:
            quick += await ask(batcher, number, seconds=0.1)
        await asyncio.sleep(0.005)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds.count(list) > 30  # a second's worth, and what may wait
    assert kinds.count(QueueFull) > 80
    assert kinds.count(DeadlineExceeded) <= kinds.count(list) / 4  # the pace is learned from the first of them
    assert len(quick) == 10
    assert {outcome.retry_after for outcome in outcomes if isinstance(outcome, QueueFull)} == {1}
    assert total(metrics, "evenkeel_rejected_images_total", reason="too_late") == kinds.count(QueueFull)
    assert batcher.depth == 0
    pool.close()


async def test_the_seconds_to_wait_are_those_of_what_waits_or_as_long_as_the_run_has_lasted(make: Make) -> None:
    gate = threading.Event()

    def run(items: list[int]) -> list[str]:
        time.sleep(0.1 * len(items))
        gate.wait(10)
        return [f"item {item}" for item in items]

    gate.set()
    batcher = make(run, max_queue_size=30)
    await ask(batcher, 0, 1, 2, 3)
    gate.clear()
    waiting = [*await ask_many(batcher, 0), *await ask_many(batcher, *range(30))]
    with pytest.raises(QueueFull) as refusal:
        batcher.admit(1)
    assert refusal.value.retry_after == 4  # 31 of a tenth of a second
    started = batcher._running[0].started
    batcher._running[0].started = started - 20
    with pytest.raises(QueueFull) as refusal:
        batcher.admit(1)
    assert refusal.value.retry_after in {20, 21}
    gate.set()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_what_no_run_could_answer_in_time_is_not_run(make: Make, metrics: Metrics) -> None:
    runs: list[list[int]] = []

    def run(items: list[int]) -> list[str]:
        runs.append(items)
        time.sleep(0.2)
        return [f"item {item}" for item in items]

    batcher = make(run)
    for _ in range(3):  # one of which a machine may hold up
        await ask(batcher, 0, 0, 0, 0)
    first = await ask_many(batcher, 1)
    late = asyncio.create_task(ask(batcher, 2, 3, seconds=0.3))  # 0.18 of the first, and 0.2 of its own
    await asyncio.sleep(0.01)
    others = await ask_many(batcher, 4)
    with pytest.raises(DeadlineExceeded):
        await late
    await asyncio.gather(*first, *others)
    assert runs[3:] == [[1], [4]]
    assert total(metrics, "evenkeel_rejected_images_total", reason="deadline_exceeded") == 2


async def test_all_images_of_a_request_that_is_given_up_as_late_are_counted(metrics: Metrics) -> None:
    def run(items: list[int]) -> list[str]:
        time.sleep(0.05)
        return [f"item {item}" for item in items]

    batcher: Batcher = DynamicBatcher(run, max_batch_size=2, max_queue_size=64, metrics=metrics)
    for _ in range(3):
        await ask(batcher, 0, 0)
    with batcher.admit(4, deadline=time.monotonic() + 0.07) as admission:  # while nobody is before them
        others = await ask_many(batcher, 1, 2, 3)
        with pytest.raises(DeadlineExceeded):  # the first of the four ends a batch, and that one is found late
            await admission.run([4, 5, 6, 7])
    await asyncio.gather(*others)
    await batcher.close(1)
    assert total(metrics, "evenkeel_rejected_images_total", reason="deadline_exceeded") == 4


async def test_a_run_that_was_slow_once_has_nobody_refused_without_a_try(make: Make) -> None:
    pace = [0.2]

    def run(items: list[int]) -> list[str]:
        time.sleep(pace[0])
        return [f"item {item}" for item in items]

    batcher = make(run)
    assert await ask(batcher, 0) == ["item 0"]
    pace[0] = 0.001
    assert await ask(batcher, 1, seconds=0.1) == ["item 1"]


async def test_places_of_those_for_whom_nobody_waits_are_free(make: Make, echo: Echo, metrics: Metrics) -> None:
    batcher = make()
    echo.gate.clear()
    first = await ask_many(batcher, 0)
    expired = [asyncio.create_task(ask(batcher, item, seconds=0.2)) for item in range(8)]
    await asyncio.gather(*expired, return_exceptions=True)
    assert batcher.depth == 8
    with batcher.admit(8):
        pass
    assert total(metrics, "evenkeel_queue_depth") == 0
    echo.gate.set()
    await asyncio.gather(*first)


async def test_a_former_models_runs_tell_nothing_of_the_new_ones(make: Make) -> None:
    """Items below 0 are a former model's, which takes no time; a run of the others would hold up the event loop."""
    threads: list[bool] = []

    def run(items: list[int]) -> list[str]:
        threads.append(threading.current_thread() is threading.main_thread())
        time.sleep(0.02 if items[0] >= 0 else 0)
        return [f"item {item}" for item in items]

    batcher = make(run, brief=0.01)
    batcher.counts = lambda item: item >= 0
    for _ in range(30):
        await ask(batcher, -1)
        await ask(batcher, 1)
    assert not any(threads)


async def test_what_was_slow_once_is_soon_forgotten(make: Make) -> None:
    pace = [0.3]

    def run(items: list[int]) -> list[str]:
        time.sleep(pace[0])
        return [f"item {item}" for item in items]

    batcher = make(run)
    await asyncio.gather(*await ask_many(batcher, *range(8)))
    pace[0] = 0.001
    assert await ask(batcher, 0) == ["item 0"]
    for _ in range(8):
        await ask(batcher, 0)
    for _ in range(3):
        assert len(await asyncio.gather(*(ask(batcher, item, seconds=0.2) for item in range(8)))) == 8


async def test_a_pause_after_which_nobody_was_there_tells_nothing_of_the_pace(make: Make) -> None:
    def run(items: list[int]) -> list[str]:
        time.sleep(0.01 * len(items))
        return [f"item {item}" for item in items]

    batcher = make(run, max_queue_size=32)
    for leaves in ("by being cancelled", "before it is queued"):
        crowd = await ask_many(batcher, *range(12))
        if leaves == "by being cancelled":
            for task in crowd[4:]:
                task.cancel()
        else:
            with batcher.admit(1):
                await asyncio.gather(*crowd)
        await asyncio.gather(*crowd, return_exceptions=True)
        await until(lambda: batcher.depth == 0)
        await asyncio.sleep(0.5)
        again = await ask_many(batcher, *range(24))
        await one_of(again)
        assert await ask(batcher, 24, seconds=1) == ["item 24"], leaves
        await asyncio.gather(*again)


async def test_how_long_one_takes_to_be_made_tells_nothing_of_how_long_others_take_to_be_run(make: Make) -> None:
    def run(items: list[int]) -> list[str]:
        time.sleep(0.01 * len(items))
        return [f"item {item}" for item in items]

    batcher, pool, last = make(run, max_queue_size=64), Threads(1, "make"), threading.Event()
    slow = asyncio.create_task(held(batcher.admit(1), 0, pool, lambda item: item if last.wait(5) else -1))
    assert await ask(batcher, 1) == ["item 1"]  # beside it
    await asyncio.sleep(0.5)
    crowd = await ask_many(batcher, *range(24))
    await one_of(crowd)
    assert await ask(batcher, 24, seconds=1) == ["item 24"]
    last.set()
    await asyncio.gather(slow, *crowd)
    pool.close()


async def one_of(tasks: list[asyncio.Task[list[str]]]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def test_admission_is_all_or_nothing(make: Make) -> None:
    batcher = make(max_queue_size=4)
    with batcher.admit(3):
        with pytest.raises(QueueFull):
            batcher.admit(2)
        with batcher.admit(1):
            assert batcher.depth == 4
    assert batcher.depth == 0


async def test_places_are_given_back_when_the_preparation_fails(make: Make) -> None:
    batcher = make()
    with pytest.raises(ZeroDivisionError), batcher.admit(5):
        raise ZeroDivisionError
    assert batcher.depth == 0


async def test_the_deadline_answers_whoever_waits_and_drops_the_work(make: Make, echo: Echo, metrics: Metrics) -> None:
    batcher = make()
    echo.gate.clear()
    first = await ask_many(batcher, 0)
    with pytest.raises(DeadlineExceeded):
        await ask(batcher, 1, 2, seconds=0.05)
    echo.gate.set()
    assert await first[0] == ["item 0"]
    assert await ask(batcher, 3) == ["item 3"]
    assert echo.batches == [[0], [3]]
    assert total(metrics, "evenkeel_rejected_images_total", reason="deadline_exceeded") == 2


async def test_the_deadline_also_answers_whoever_runs(make: Make, echo: Echo) -> None:
    batcher = make()
    echo.gate.clear()
    with pytest.raises(DeadlineExceeded):
        await ask(batcher, 1, seconds=0.05)


async def test_whoever_left_is_skipped(make: Make, echo: Echo, metrics: Metrics) -> None:
    batcher = make()
    echo.gate.clear()
    first = await ask_many(batcher, 0)
    with batcher.admit(1) as admission:
        left = asyncio.create_task(admission.run([1]))
        await asyncio.sleep(0.01)
        admission.abandon()
        with pytest.raises(ClientLeft):
            await left
    echo.gate.set()
    await first[0]
    assert await ask(batcher, 2) == ["item 2"]
    assert [1] not in echo.batches
    assert total(metrics, "evenkeel_rejected_images_total", reason="client_left") == 1


async def test_only_who_left_counts_as_having_left(make: Make, echo: Echo, metrics: Metrics) -> None:
    batcher = make(max_batch_size=2, max_queue_size=50)
    echo.poison = {0}
    with pytest.raises(InferenceFailed):
        await ask(batcher, *range(20))
    assert await ask(batcher, 50) == ["item 50"]
    assert total(metrics, "evenkeel_rejected_images_total", reason="client_left") == 0
    echo.gate.clear()
    for task in await ask_many(batcher, 51, 52, 53):
        task.cancel()
    echo.gate.set()
    assert await ask(batcher, 54) == ["item 54"]
    assert total(metrics, "evenkeel_rejected_images_total", reason="client_left") == 3


async def test_closing_answers_what_was_admitted_and_admits_no_more(make: Make, echo: Echo) -> None:
    batcher = make()
    echo.gate.clear()
    tasks = await ask_many(batcher, *range(8))
    closing = asyncio.create_task(batcher.close(5))
    await asyncio.sleep(0.01)
    with pytest.raises(ShuttingDown):
        batcher.admit(1)
    echo.gate.set()
    await closing
    assert [await task for task in tasks] == [[f"item {item}"] for item in range(8)]


async def test_closing_waits_for_places_whose_items_are_still_prepared(make: Make) -> None:
    batcher = make()
    with batcher.admit(1) as admission:
        closing = asyncio.create_task(batcher.close(5))
        await asyncio.sleep(0.01)
        assert not closing.done()
        assert await admission.run([1]) == ["item 1"]
    await closing


async def test_closing_in_time_answers_whoever_cannot_be_served(make: Make, echo: Echo) -> None:
    batcher = make()
    echo.gate.clear()
    tasks = await ask_many(batcher, *range(6))
    await batcher.close(0.05)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, ShuttingDown) for result in results)


async def test_a_delay_waits_for_company_but_not_for_a_full_batch(make: Make, echo: Echo) -> None:
    batcher = make(max_queue_delay=0.2)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    await asyncio.gather(*(ask(batcher, item) for item in range(4)))
    assert loop.time() - begin < 0.15
    first = asyncio.create_task(ask(batcher, 4))
    await asyncio.sleep(0.05)
    await asyncio.gather(first, ask(batcher, 5))
    assert echo.batches == [[0, 1, 2, 3], [4, 5]]


class Workshop:
    """One thread in which parts are made, each as soon as it is told to be."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.begun: list[int] = []
        self.gate = threading.Event()

    def begin(self, part: int) -> Future[int]:
        return self.pool.submit(self._make, part)

    def _make(self, part: int) -> int:
        self.begun.append(part)
        self.gate.wait(20)
        if part < 0:
            raise ZeroDivisionError
        return part


@pytest.fixture
def workshop() -> Iterator[Workshop]:
    workshop = Workshop()
    yield workshop
    workshop.gate.set()
    workshop.pool.shutdown()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - whatever it is
            await asyncio.sleep(0.005)


async def test_what_items_are_made_of_comes_in_order_at_once_or_from_threads(make: Make, workshop: Workshop) -> None:
    workshop.gate.set()
    with make().admit(4) as admission:
        parts = await admission.prepare([1, workshop.begin(2), workshop.begin(3), 4])
    assert parts == [1, 2, 3, 4]
    with make().admit(1) as admission:
        assert await admission.prepare([workshop.begin(5)]) == [5]


async def test_at_the_deadline_what_has_not_begun_is_dropped_and_what_has_holds_its_place(
    make: Make, workshop: Workshop, metrics: Metrics
) -> None:
    batcher = make()
    with pytest.raises(DeadlineExceeded), batcher.admit(3, deadline=time.monotonic() + 0.05) as admission:
        await admission.prepare(map(workshop.begin, range(3)))
    assert total(metrics, "evenkeel_rejected_images_total", reason="deadline_exceeded") == 3
    assert batcher.depth == 1
    closing = asyncio.create_task(batcher.close(5))
    await asyncio.sleep(0.01)
    assert not closing.done()
    workshop.gate.set()
    await closing
    assert batcher.depth == 0
    assert workshop.begun == [0]


async def test_who_leaves_while_its_items_are_prepared_costs_nothing_more(
    make: Make, workshop: Workshop, metrics: Metrics
) -> None:
    batcher, long = make(), asyncio.Event()
    with pytest.raises(ClientLeft), batcher.admit(3) as admission:
        left: asyncio.Task[list[int]] = asyncio.create_task(
            admission.prepare(map(workshop.begin, range(3)), when_long=long.set)
        )
        await long.wait()
        for _ in range(2):
            admission.abandon()
        await left
    workshop.gate.set()
    await until(lambda: batcher.depth == 0)
    assert workshop.begun == [0]
    assert total(metrics, "evenkeel_rejected_images_total", reason="client_left") == 3


async def test_whom_the_shutdown_cancels_counts_as_such_and_not_as_having_left(
    make: Make, echo: Echo, workshop: Workshop, metrics: Metrics
) -> None:
    batcher = make()
    batcher.is_ending = lambda: True

    async def prepare() -> None:
        with batcher.admit(3) as admission:
            await admission.prepare(map(workshop.begin, range(3)))

    echo.gate.clear()
    tasks = [*await ask_many(batcher, 1, 2), asyncio.create_task(prepare())]
    await until(lambda: workshop.begun == [0])
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    workshop.gate.set()
    counts = {reason: total(metrics, "evenkeel_rejected_images_total", reason=reason) for reason in REJECTION_REASONS}
    assert {reason: count for reason, count in counts.items() if count} == {"shutting_down": 5}


async def test_between_parts_that_are_made_at_once_others_have_their_turn_and_the_deadline_counts(make: Make) -> None:
    begun = []

    def slowly(part: int) -> int:
        begun.append(part)
        time.sleep(0.01)
        return part

    batcher, deadline = make(max_queue_size=1000), time.monotonic() + 0.05
    with pytest.raises(DeadlineExceeded), batcher.admit(1000, deadline=deadline) as admission:
        await admission.prepare(map(slowly, range(1000)))
    assert 1 < len(begun) < 100


async def test_a_part_that_fails_spares_those_behind_it(make: Make, workshop: Workshop) -> None:
    batcher = make()
    asyncio.get_running_loop().call_later(0.02, workshop.gate.set)
    with pytest.raises(ZeroDivisionError), batcher.admit(1) as admission:
        await admission.prepare([workshop.begin(-1)])

    def breaks(part: int) -> Future[int]:
        if part == 2:
            raise ZeroDivisionError
        return workshop.begin(part)

    workshop.gate.clear()
    with pytest.raises(ZeroDivisionError), batcher.admit(4) as admission:
        await admission.prepare(map(breaks, range(4)))
    workshop.gate.set()
    await until(lambda: batcher.depth == 0)
    assert 1 not in workshop.begun


async def test_the_gauges_follow_the_queue(make: Make, echo: Echo, metrics: Metrics) -> None:
    batcher = make(max_batch_size=2)
    echo.gate.clear()
    tasks = await ask_many(batcher, *range(5))
    assert total(metrics, "evenkeel_queue_depth") == 3
    assert total(metrics, "evenkeel_images_in_flight") == 5
    echo.gate.set()
    await asyncio.gather(*tasks)
    await asyncio.sleep(0)
    assert total(metrics, "evenkeel_images_in_flight") == 0
    assert total(metrics, "evenkeel_batch_size_sum") == 5


async def test_a_function_known_to_be_brief_runs_on_the_loop_and_a_slow_one_in_its_thread(make: Make) -> None:
    threads: list[int] = []

    def run(items: list[int]) -> list[str]:
        threads.append(threading.get_ident())
        return [f"item {item}" for item in items]

    brief, slow = make(run, brief=5.0), make(run)
    for batcher in (brief, slow):
        for item in range(60):
            assert await ask(batcher, item) == [f"item {item}"]
    own = threading.get_ident()
    assert [thread == own for thread in threads] == [False] * 50 + [True] * 10 + [False] * 60


async def on_the_loop(make: Make, waits: Callable[[int, int], float], *, brief: float, counts: list[int]) -> list[bool]:
    """Run batches of so many items, the n-th of which waits for `waits(n, items)` seconds; tell which were on it."""
    found: list[bool] = []

    def run(items: list[int]) -> list[str]:
        time.sleep(waits(len(found), len(items)))
        found.append(threading.current_thread() is threading.main_thread())
        return [f"item {item}" for item in items]

    batcher = make(run, brief=brief)
    for count in counts:
        await ask(batcher, *range(count))
    return found


async def test_a_run_that_waits_without_working_is_not_brief(make: Make) -> None:
    for_each_run = await on_the_loop(make, lambda _, items: 0.01, brief=0.005, counts=[4, 1] * 28)
    assert not any(for_each_run)
    for_each_item = await on_the_loop(make, lambda _, items: 0.003 * items, brief=0.01, counts=[1] * 50 + [4] * 3)
    assert not any(for_each_item)


async def test_runs_are_brief_by_the_quickest_in_the_thread_and_by_all_on_the_loop(make: Make) -> None:
    """In the thread they wait for the interpreter too, which says nothing of the loop."""
    found = await on_the_loop(
        make, lambda number, _: 0.01 if number % 10 or number >= 50 else 0, brief=0.005, counts=[1] * 60
    )
    assert found[49:51] == [False, True]
    assert not found[-1]


async def test_on_the_loop_too_only_the_item_at_fault_fails(make: Make, echo: Echo) -> None:
    batcher = make(brief=5.0)
    for item in range(50):
        await ask(batcher, item)
    echo.poison = {101}
    results = await asyncio.gather(*(ask(batcher, item) for item in (100, 101, 102, 103)), return_exceptions=True)
    assert isinstance(results.pop(1), InferenceFailed)
    assert results == [["item 100"], ["item 102"], ["item 103"]]


async def known_to_be_brief(make: Make, **changes: Any) -> Batcher:
    batcher = make(brief=5.0, **changes)
    for item in range(60):
        await ask(batcher, item)
    return batcher


def turns_of(coroutine: Coroutine[Any, Any, list[str]]) -> list[str] | None:
    """Take one step; return what it ends with, or None where it waits for the event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: list[str] = end.value
        return result
    coroutine.close()
    return None


async def test_who_is_alone_is_answered_at_once_by_a_brief_function(make: Make, echo: Echo) -> None:
    batcher = await known_to_be_brief(make)
    batcher.callers = lambda: 1
    assert turns_of(ask(batcher, 1, 2)) == ["item 1", "item 2"]
    echo.poison = {3}
    with pytest.raises(InferenceFailed):
        turns_of(ask(batcher, 3))
    await batcher.close(1)  # nothing is left behind


async def test_who_is_not_alone_or_may_gain_company_by_waiting_waits(make: Make) -> None:
    batcher = await known_to_be_brief(make)
    batcher.callers = lambda: 2
    assert turns_of(ask(batcher, 1)) is None
    patient = await known_to_be_brief(make, max_queue_delay=0.001)
    patient.callers = lambda: 1
    assert turns_of(ask(patient, 1)) is None
    slow = make()
    slow.callers = lambda: 1
    assert turns_of(ask(slow, 1)) is None


async def test_a_brief_batch_takes_in_who_is_on_the_way_and_waits_for_nobody_else(make: Make, echo: Echo) -> None:
    batcher = await known_to_be_brief(make)
    batcher.callers = lambda: 3
    for turns, batches in ((0, [[1, 2]]), (1, [[1, 2]]), (2, [[1, 2]]), (5, [[1], [2]])):
        echo.batches.clear()
        first = asyncio.create_task(ask(batcher, 1))
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.gather(first, ask(batcher, 2))
        assert echo.batches == batches


async def test_a_full_brief_batch_starts_at_once_and_those_in_it_are_answered(make: Make, echo: Echo) -> None:
    batcher = await known_to_be_brief(make)
    echo.batches.clear()
    waiting = [asyncio.create_task(ask(batcher, item)) for item in range(9)]
    assert await asyncio.gather(*waiting) == [[f"item {item}"] for item in range(9)]
    assert echo.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


class Gates(Echo):
    """Lets each run go by itself, and knows which have begun."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[list[int]] = []
        self.gates: dict[int, threading.Event] = {}

    def __call__(self, items: list[int]) -> Sequence[str]:
        gate = self.gates.setdefault(items[0], threading.Event())
        self.begun.append(items)
        gate.wait(20)
        return super().__call__(items)

    def open(self, *firsts: int) -> None:
        for first in firsts:
            self.gates.setdefault(first, threading.Event()).set()


async def begun(gates: Gates, count: int) -> list[list[int]]:
    """Return the runs that have begun once there are so many, and no more a little later."""
    async with asyncio.timeout(5):
        while len(gates.begun) < count:  # noqa: ASYNC110 - they begin in other threads
            await asyncio.sleep(0.002)
    await asyncio.sleep(0.02)
    return sorted(gates.begun)


async def test_a_full_batch_runs_beside_another_and_a_third_waits(make: Make) -> None:
    gates = Gates()
    batcher = make(gates, runs_at_once=2, max_queue_size=16)
    tasks = [asyncio.create_task(ask(batcher, *range(first, first + 4))) for first in (0, 4, 8)]
    assert await begun(gates, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    gates.open(4)
    assert await tasks[1] == [f"item {item}" for item in range(4, 8)]  # its answer does not wait for the other's
    assert len(await begun(gates, 3)) == 3
    gates.open(0, 8)
    assert await tasks[0] == [f"item {item}" for item in range(4)]
    assert await tasks[2] == [f"item {item}" for item in range(8, 12)]


async def test_a_run_that_was_alone_says_how_long_it_takes_beside_others(make: Make) -> None:
    gates = Gates()

    def run(items: list[int]) -> Sequence[str]:
        time.sleep(0.2)
        return gates(items)

    batcher = make(run, runs_at_once=3, max_queue_size=16)
    gates.open(0, 4)
    for first in (0, 4):
        await ask(batcher, *range(first, first + 4))
    alone = 4 * batcher._pace.seconds
    under_way = asyncio.create_task(ask(batcher, *range(8, 12)))
    await asyncio.sleep(0.01)
    with pytest.raises(QueueFull):  # it would be the second
        batcher.admit(4, deadline=time.monotonic() + 1.5 * alone)
    gates.open(8)
    await under_way


async def test_runs_beside_each_other_do_not_count_as_if_each_had_had_the_device_to_itself(make: Make) -> None:
    gates = Gates()
    batcher = make(gates, runs_at_once=3, max_queue_size=16)
    begin = time.monotonic()
    tasks = [asyncio.create_task(ask(batcher, *range(first, first + 4))) for first in (0, 4, 8)]
    await begun(gates, 3)
    await asyncio.sleep(0.3)
    gates.open(0, 4, 8)
    await asyncio.gather(*tasks)
    assert 0.1 < 4 * batcher._pace.seconds < 0.75 * (time.monotonic() - begin)


async def test_a_batch_that_is_not_full_waits_until_nothing_runs(make: Make) -> None:
    gates = Gates()
    batcher = make(gates, runs_at_once=2)
    first = asyncio.create_task(ask(batcher, 0))
    await begun(gates, 1)
    later = await ask_many(batcher, 1, 2, 3)
    assert await begun(gates, 1) == [[0]]
    gates.open(0, 1)
    assert await asyncio.gather(first, *later) == [[f"item {item}"] for item in range(4)]
    assert gates.begun == [[0], [1, 2, 3]]


async def test_those_who_left_do_not_fill_a_batch_that_would_run_beside_another(make: Make) -> None:
    gates = Gates()
    batcher = make(gates, runs_at_once=2)
    first = asyncio.create_task(ask(batcher, 0))
    await begun(gates, 1)
    left = await ask_many(batcher, 1, 2)
    for task in left:
        task.cancel()
    staying = await ask_many(batcher, 3, 4)
    assert await begun(gates, 1) == [[0]]
    assert batcher.depth == 2
    staying += await ask_many(batcher, 5, 6)
    assert await begun(gates, 2) == [[0], [3, 4, 5, 6]]
    gates.open(0, 3)
    assert await asyncio.gather(first, *staying) == [[f"item {item}"] for item in (0, 3, 4, 5, 6)]


async def test_of_two_batches_side_by_side_one_may_fail_alone(make: Make, metrics: Metrics) -> None:
    gates = Gates()
    gates.poison = {2}
    batcher = make(gates, runs_at_once=2, max_queue_size=16)
    tasks = await ask_many(batcher, *range(8))
    await begun(gates, 2)
    gates.open(*range(8))
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers.pop(2), InferenceFailed)
    assert answers == [[f"item {item}"] for item in range(8) if item != 2]
    assert total(metrics, "evenkeel_images_in_flight") == 0


async def test_a_batch_for_which_no_thread_can_be_started_is_run_by_no_other_beside(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    gates = Gates()
    batcher = make(gates, runs_at_once=2, max_queue_size=16)
    first = asyncio.create_task(ask(batcher, *range(4)))
    await begun(gates, 1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more)
        second = asyncio.create_task(ask(batcher, *range(4, 8)))
        await asyncio.sleep(0.02)
    gates.open(*range(8))
    assert await first == [f"item {item}" for item in range(4)]
    assert await second == [f"item {item}" for item in range(4, 8)]
    await batcher.close(5)
    assert sorted(gates.begun) == [[0, 1, 2, 3], [4, 5], [6, 7]]


async def test_the_run_that_began_first_tells_for_how_long_it_is_stuck(make: Make) -> None:
    gates = Gates()
    batcher = make(gates, runs_at_once=2, max_queue_size=16)
    first = asyncio.create_task(ask(batcher, *range(4)))
    await begun(gates, 1)
    second = asyncio.create_task(ask(batcher, *range(4, 8)))
    await begun(gates, 2)
    longest = batcher.stuck_for(time.monotonic())
    gates.open(0)
    await first
    assert 0 < batcher.stuck_for(time.monotonic()) < longest
    gates.open(4)
    await second
    assert batcher.stuck_for(time.monotonic()) == 0


async def test_the_end_answers_all_runs_that_do_not_end(make: Make) -> None:
    gates = Gates()
    batcher = make(gates, runs_at_once=2, max_queue_size=16)
    tasks = [asyncio.create_task(ask(batcher, *range(first, first + 4))) for first in (0, 4)]
    await begun(gates, 2)
    await batcher.close(0.01)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ShuttingDown, ShuttingDown]
    gates.open(0, 4)


async def test_another_model_may_run_on_fewer_or_more_at_once(make: Make, metrics: Metrics) -> None:
    gates = Gates()
    batcher = make(gates, max_queue_size=16)
    tasks = [asyncio.create_task(ask(batcher, *range(first, first + 4))) for first in (0, 4)]
    assert await begun(gates, 1) == [[0, 1, 2, 3]]
    assert total(metrics, "evenkeel_runs_at_once") == 1
    batcher.start_anew(max_batch_size=4, brief=0.0, runs_at_once=2)
    assert total(metrics, "evenkeel_runs_at_once") == 2
    tasks.append(asyncio.create_task(ask(batcher, *range(8, 12))))
    assert len(await begun(gates, 2)) == 2
    gates.open(0, 4, 8)
    assert [len(answer) for answer in await asyncio.gather(*tasks)] == [4, 4, 4]


async def test_thousands_of_callers_get_their_own_answers_from_runs_side_by_side(make: Make) -> None:
    batcher = make(max_queue_size=5000, runs_at_once=2)
    answers = await asyncio.gather(*(ask(batcher, item) for item in range(3000)))
    assert answers == [[f"item {item}"] for item in range(3000)]
