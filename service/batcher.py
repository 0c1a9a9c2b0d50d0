"""DynamicBatcher: many callers, one function that works on batches.

It admits, queues, batches, and hands each caller its own result or its own error. A batch starts as soon as the
function is free, with whatever waits by then: an idle service adds no delay, a busy one fills its batches. A brief
batch starts at once if it is full, or if its caller is the only one there is. Where there may be several runs at once a
full batch starts beside others, so that a device need not wait while a batch is put together or read back. Where a run
takes of the loop's own cores, the loop rests between refusals while the next batch is full and can only wait.
It knows neither models nor pictures nor HTTP: items go in, results come out.

Everything but the function itself runs on the event loop, so there are no locks; the function too, where it is known to
be brief. The promises:

- admission is all or nothing for the items of one caller, and bounded: beyond `max_queue_size`, QueueFull, and likewise
  where what is there already will, at the pace of late, take longer than the caller waits;
- each admitted item is answered once: by its result, its own error, its deadline, or the shutdown;
- a batch that fails is run again in halves, and these in theirs, so that only the item at fault fails;
- items of a caller that was cancelled are skipped if they still wait, and those that no run could answer in time where
  others could be; their neighbours do not notice;
- places are held until nothing of what they were taken for is under way: what items are made of is dropped where it has
  not begun by the deadline, and its caller is told then.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass
from itertools import chain
from time import monotonic, perf_counter
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from service.errors import ClientLeft, DeadlineExceeded, InferenceFailed, QueueFull, ServiceError, ShuttingDown
from service.metrics import Metrics
from service.pace import Pace
from service.respite import Respite

logger = logging.getLogger(__name__)

_RUNS_UNTIL_KNOWN = 50
"""Runs after which their pace says how long the next will take."""
_MANY = 2
_TURNS = 3
"""Of the loop: what a request takes from the socket to the queue."""
_LONG = 0.25
"""Seconds after which a caller's wait is long."""
_SILENCE = 1e-6
"""Seconds that an alarm keeps silent for each who waits."""
_HEADROOM = 1.2
"""By how much the time until an answer may turn out longer than it looks when its item is admitted."""
_BETWEEN_LOOKS = 0.05
"""Seconds from one look through the whole queue to the next, at least, however many are refused meanwhile."""

Item = TypeVar("Item")
Part = TypeVar("Part")
Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class _Entry(Generic[Item, Result]):
    item: Item
    future: asyncio.Future[Result]
    since: float
    deadline: float
    context: Context  # the caller's, for what is logged of this item alone
    started: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True, eq=False)
class _Run(Generic[Item, Result]):
    batch: list[_Entry[Item, Result]]
    started: float
    together: int  # how many there were with it when it began


class _Length:
    """How long a run would take on the event loop, by the clock.

    A run in a thread waits for its turn in the interpreter too: of those the quickest tells. What is waited for on the
    loop, a device above all, holds everyone up: there every run counts.
    """

    __slots__ = ("_each", "_largest", "_quickest")

    def __init__(self) -> None:
        self._each = self._quickest = math.inf
        self._largest = 0

    def observe(self, seconds: float, count: int, *, on_loop: bool) -> None:
        each = seconds / count
        self._each = self._each + 0.2 * (each - self._each) if on_loop else min(self._each, each)
        self._quickest, self._largest = min(self._quickest, seconds), max(self._largest, count)

    def of(self, count: int) -> float:
        return max(count * self._each, self._quickest)

    def least(self, count: int) -> float:
        """Return what a run takes at least; a larger one than was ever seen takes at least what those did."""
        return max(min(count, self._largest) * self._each, self._quickest) if self._largest else 0.0


class _Rung(Protocol):
    def ring(self, now: float) -> None: ...


class _Alarm:
    """One timer for all who wait: one for each request costs 5 us to set and to take back, and hardly any is needed.

    Each time that it rings it looks at all who wait, which takes a twentieth of a microsecond for each; so the more
    there are, the longer it keeps silent in between, and may be so much late.
    """

    __slots__ = ("_due", "_handle", "_loop", "_rings_at", "_silent_until")

    def __init__(self) -> None:
        self._due: dict[_Rung, float] = {}
        self._rings_at = math.inf
        self._silent_until = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None

    def set(self, who: _Rung, due: float, loop: asyncio.AbstractEventLoop) -> None:
        """Have `ring` called at a moment of `time.monotonic`, once, unless it is unset before."""
        self._due[who] = due
        if due < self._rings_at or loop is not self._loop:
            self._wind(due, loop)

    def unset(self, who: _Rung) -> None:
        self._due.pop(who, None)

    def _wind(self, due: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._handle:
            self._handle.cancel()
        self._rings_at, self._loop = max(due, self._silent_until), loop
        self._handle = loop.call_later(max(0.0, self._rings_at - monotonic()), self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._rings_at, now = math.inf, monotonic()
        self._silent_until = now + len(self._due) * _SILENCE
        for who in [who for who, due in self._due.items() if due <= now]:
            del self._due[who]
            who.ring(now)
        if self._due and (soonest := min(self._due.values())) < self._rings_at:
            self._wind(soonest, loop)


class DynamicBatcher(Generic[Item, Result]):
    """Batches items of concurrent callers for `run_batch`, which runs in threads of its own.

    Args:
        run_batch: from a list of items to as many results, in the same order.
        max_batch_size: most items in one call.
        max_queue_size: most items that may wait.
        max_queue_delay: seconds that the oldest item waits for a fuller batch while the function is idle.
        brief: a batch that, to judge by those before it, takes less than so many seconds is run on the event loop, as
            the way to another thread and back would take longer than the run. Only for a function that cannot hang.
        runs_at_once: how many runs there may be at a time; beside another only a full batch is run.
        shares_cores: whether a run takes of the cores that the event loop needs.
        metrics: where to count.

    Attributes:
        callers: how many callers there are, those among them that have not come as far as the queue.
        is_ending: whether the service ends; who is cancelled then has not left.
        counts: whether the run of an item tells how long runs take: those of a former model do not.
        seconds_until_prepared: how long it takes until all that items are made of by now is made.
    """

    def __init__(
        self,
        run_batch: Callable[[list[Item]], Sequence[Result]],
        *,
        max_batch_size: int,
        max_queue_size: int,
        max_queue_delay: float = 0.0,
        brief: float = 0.0,
        runs_at_once: int = 1,
        shares_cores: bool = False,
        metrics: Metrics,
    ) -> None:
        self.callers: Callable[[], int] = lambda: _MANY
        self.is_ending: Callable[[], bool] = lambda: False
        self.counts: Callable[[Item], bool] = lambda item: True
        self.seconds_until_prepared: Callable[[], float] = lambda: 0.0
        self._run_batch = run_batch
        self._max_batch_size = max_batch_size
        self._max_queue_size = max_queue_size
        self._max_queue_delay = max_queue_delay
        self._brief = brief
        self._runs = 0
        self._metrics = metrics
        self._queue: deque[_Entry[Item, Result]] = deque()
        self._reserved = 0  # admitted, not yet queued
        self._running: list[_Run[Item, Result]] = []  # the one that began first, first
        self._halves: deque[list[_Entry[Item, Result]]] = deque()  # of batches that failed, each to be run by itself
        self._is_failing = False
        self._next_look = 0.0
        self._wakeup: asyncio.Handle | None = None
        self._wakes_soon = False  # the handle is for the next turn, and nothing could be sooner
        self._closed = False
        self._stopped = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._pace = Pace()
        self._length = _Length()
        self._runs_at_once = runs_at_once
        self._executor = _threads(runs_at_once)
        self._shares_cores = shares_cores
        self._respite = Respite()
        self._alarm = _Alarm()
        metrics.queue_capacity.set(max_queue_size)
        metrics.runs_at_once.set_function(lambda: self._runs_at_once)
        metrics.queue_depth.set_function(self._living)
        metrics.images_in_flight.set_function(lambda: self.depth + self._run_items + sum(map(len, self._halves)))

    @property
    def depth(self) -> int:
        """How many items are admitted and wait."""
        return len(self._queue) + self._reserved

    def _living(self) -> int:
        """Return the depth, once those for whom nobody waits any more have left the queue."""
        self._queue = deque(entry for entry in self._queue if not entry.future.done())
        return self.depth

    def _look_for_the_dead(self, now: float) -> None:
        """Have them leave the queue before somebody is refused because of them."""
        if now >= self._next_look:
            self._next_look = now + _BETWEEN_LOOKS
            self._living()

    @property
    def _run_items(self) -> int:
        return sum(len(run.batch) for run in self._running)

    def stuck_for(self, now: float) -> float:
        """Return for how many seconds a run has lasted at a moment on the loop's clock."""
        return now - self._running[0].started if self._running else 0.0

    @property
    def is_failing(self) -> bool:
        """Whether the run that ended last failed."""
        return self._is_failing

    async def run_alone(self, item: Item) -> Result:
        """Run an item next, by itself and in none of the queue's places: it gets its turn however many wait.

        Raises:
            InferenceFailed: the function failed on it.
            ShuttingDown: the service has stopped.
        """
        if self._stopped:
            raise _stopped_first()
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        entry = _Entry(item, future, monotonic(), math.inf, Context())
        self._halves.appendleft(batch := [entry])
        self._wake()
        try:
            return await entry.future
        finally:
            with suppress(ValueError):  # it was not its turn yet
                self._halves.remove(batch)
                self._rest()

    def start_anew(
        self, *, max_batch_size: int, brief: float, runs_at_once: int = 1, shares_cores: bool = False
    ) -> None:
        """Have another model's batches judged by themselves: what was known of the pace is forgotten.

        Args:
            max_batch_size, brief, runs_at_once, shares_cores: as the class takes them.
        """
        self._max_batch_size, self._brief, self._shares_cores = max_batch_size, brief, shares_cores
        if runs_at_once != self._runs_at_once:
            self._executor.shutdown(wait=False)  # what runs goes on to its end
            self._runs_at_once, self._executor = runs_at_once, _threads(runs_at_once)
        self._runs = 0
        self._pace, self._length = Pace(), _Length()

    def admit(self, count: int, *, deadline: float = math.inf) -> "Admission[Item, Result]":
        """Reserve places for `count` items, or refuse; a context manager whose end gives unused places back.

        Args:
            count: how many.
            deadline: the moment, by `time.monotonic`, after which nobody waits.

        Raises:
            QueueFull: fewer places are free, or those before would take until the deadline; says when to come again.
            ShuttingDown: nothing is admitted any more.
        """
        if self._closed:
            self._metrics.rejected_images.labels("shutting_down").inc(count)
            raise ShuttingDown(
                "The service is shutting down and takes no more requests.",
                remedy="Send it to another instance.",
                retry_after=1,
            )
        if self.depth + count > self._max_queue_size:
            self._look_for_the_dead(monotonic())
        if self.depth + count > self._max_queue_size:
            self._metrics.rejected_images.labels("queue_full").inc(count)
            self._let_loop_rest()
            raise QueueFull(
                f"{self.depth} images wait, and at most {self._max_queue_size} may; there is no room for {count} more.",
                remedy="Try again after the seconds that Retry-After says.",
                retry_after=self._retry_after(),
            )
        if self._queue or self._running:
            self._refuse_if_too_late(count, deadline)
        self._reserved += count
        self._idle.clear()
        return Admission(self, count, deadline)

    def _refuse_if_too_late(self, count: int, deadline: float) -> None:
        now = monotonic()
        if self._seconds_until_run(count, now) * _HEADROOM <= deadline - now:
            return
        self._look_for_the_dead(now)
        seconds = self._seconds_until_run(count, now)
        if seconds * _HEADROOM > deadline - now:
            raise self._too_late(count, seconds)

    def _too_late(self, count: int, seconds: float) -> QueueFull:
        """Return the refusal of items that would be answered after so many seconds only, and count it."""
        self._metrics.rejected_images.labels("too_late").inc(count)
        self._let_loop_rest()
        return QueueFull(
            f"It would take about {seconds:.1f} s until the answer, by the pace of those before: longer than this "
            "request may take.",
            remedy="Try again after the seconds that Retry-After says, or allow more time.",
            retry_after=self._retry_after(),
        )

    def _let_loop_rest(self) -> None:
        if self._can_only_wait():
            self._respite.take_soon(self._length.least(self._max_batch_size), self._can_only_wait)

    def _can_only_wait(self) -> bool:
        """Whether the next batch is full, so that nothing admitted by now gets its turn later if the loop rests."""
        return self._shares_cores and bool(self._running) and len(self._queue) >= self._max_batch_size

    def _retry_after(self) -> int:
        return math.ceil(max(self._seconds_until_run(0, monotonic()), self.seconds_until_prepared())) or 1

    def _seconds_until_run(self, more: int, now: float) -> float:
        """Return how long it may take until what waits to be run, and so many more, are answered.

        What is still prepared may be overtaken. Behind a full batch items are answered with what comes to fill theirs.
        A run that has lasted longer than all that may last as long again.
        """
        waiting, under_way = len(self._queue) + more, self._run_items + sum(map(len, self._halves))
        batches = math.ceil(waiting / self._max_batch_size)
        items = under_way + (waiting if batches <= 1 else batches * self._max_batch_size)
        age = now - self._running[0].started if self._running else 0.0
        return max(items * self._pace.seconds, age)

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - shields nothing, only bounds the drain
        """Admit nothing more, finish what is admitted, then stop; after `timeout` seconds the rest gets an error."""
        self._closed = True
        self._wake()
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            self._answer_all(
                [*self._queue, *chain(*self._halves), *chain(*(run.batch for run in self._running))], _stopped_first()
            )
            self._queue.clear()
            self._halves.clear()
        self._stopped = True
        self._executor.shutdown(wait=not self._running, cancel_futures=True)

    def _enqueue(
        self, items: Sequence[Item], loop: asyncio.AbstractEventLoop, now: float, deadline: float
    ) -> list[_Entry[Item, Result]]:
        if self._stopped:
            raise _stopped_first()
        context = copy_context()
        entries = [_Entry(item, loop.create_future(), now, deadline, context) for item in items]
        self._queue.extend(entries)
        starts_soon = self._wakeup is not None and self._wakes_soon
        if starts_soon and len(self._queue) < self._max_batch_size:
            return entries
        if self._gains_nothing_by_waiting():
            self._start()
        else:
            self._wake()
        return entries

    def _gains_nothing_by_waiting(self) -> bool:
        """Tell whether a brief batch can start at once: it is full, or its caller alone and not to wait for others."""
        if self._running or self._halves:
            return False  # what is brief runs on the event loop, beside nothing
        is_full = len(self._queue) >= self._max_batch_size
        is_alone = self._max_queue_delay <= 0 and self.callers() == 1
        return (is_full or is_alone) and self._is_brief(min(len(self._queue), self._max_batch_size))

    def _wake(self) -> None:
        """Have a batch started soon: once whoever else is ready in this turn of the loop has queued its items."""
        if not self._has_room or (self._wakeup and self._wakes_soon) or not (self._queue or self._halves):
            return
        loop = asyncio.get_running_loop()
        wait = 0.0 if self._halves else self._queue[0].since + self._max_queue_delay - monotonic()
        due = wait <= 0 or self._closed or len(self._queue) >= self._max_batch_size
        if self._wakeup is not None:
            if not due:
                return
            self._wakeup.cancel()
        self._wakeup = loop.call_soon(self._let_in, _TURNS) if due else loop.call_later(wait, self._start)
        self._wakes_soon = due

    @property
    def _has_room(self) -> bool:
        """Whether a run may begin: nothing runs, or a full batch may run beside it."""
        if not self._running:
            return True
        is_full = len(self._queue) >= self._max_batch_size
        return is_full and len(self._running) < self._runs_at_once and not self._halves

    def _let_in(self, turns: int) -> None:
        """Start, but a brief batch that more callers could fill in so many turns of the loop.

        Whoever was just answered asks again while the last of the answers are written. A request takes three turns from
        the socket to the queue; without them callers fall apart into groups that take turns, in half the batch each.
        """
        room = min(self._max_batch_size, self.callers())
        if turns and not self._halves and len(self._queue) < room and self._is_brief(room):
            self._wakeup = asyncio.get_running_loop().call_soon(self._let_in, turns - 1)
        else:
            self._start()

    def _start(self) -> None:
        if self._wakeup is not None:
            self._wakeup.cancel()
            self._wakeup = None
        if self._running:  # beside which a queue of this length had room, and for some of it nobody may wait any more
            self._living()
            if not self._has_room:
                return
        batch = self._take()
        if not batch:
            self._rest()
            return
        started = monotonic()
        self._running.append(run := _Run(batch, started, len(self._running) + 1))
        for entry in batch:
            if not entry.started:  # else it is run again
                self._metrics.queue_seconds.observe(started - entry.since)
                entry.started = started
        self._metrics.batch_size.observe(len(batch))
        if self._is_brief(len(batch)):
            self._finish(run, *self._attempt([entry.item for entry in batch]), on_loop=True)
        else:
            self._submit(run)
            self._wake()  # another may be full, and run beside it

    def _is_brief(self, count: int) -> bool:
        """Tell whether a run of so many is known to be over before another thread would have begun."""
        return self._runs >= _RUNS_UNTIL_KNOWN and self._length.of(count) < self._brief

    def _submit(self, run: _Run[Item, Result]) -> None:
        loop = asyncio.get_running_loop()
        unclaimed = [[entry.item for entry in run.batch]]  # by the thread that runs it, or by who knows that none will

        def attempt() -> None:
            try:
                items = unclaimed.pop()
            except IndexError:
                return
            result = self._attempt(items)
            self._respite.end_run()
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(self._finish, run, *result)

        self._respite.begin_run()
        try:
            self._executor.submit(attempt)  # and not `run_in_executor`: its futures take two more turns of the loop
        except RuntimeError as cause:  # there is no thread to be had, or someone has ended it
            logger.error("the inference thread is gone (%s); another takes its place", cause)
            self._executor = _threads(self._runs_at_once)
            with suppress(IndexError):  # it is queued before a thread is started for it, and another has it already
                unclaimed.pop()
                loop.call_soon(self._finish, run, _inference_failed(cause), 0.0)

    def _attempt(self, items: list[Item]) -> tuple[Sequence[Result] | InferenceFailed, float]:
        """Run the batch and return what comes of it, whatever goes wrong too, and the seconds that it took."""
        begin = perf_counter()
        outcome: Sequence[Result] | InferenceFailed
        try:
            outcome = self._run_batch(items)
            if len(outcome) != len(items):
                raise RuntimeError(f"a batch of {len(items)} gave {len(outcome)} results")
        except BaseException as cause:
            outcome = _inference_failed(cause)
        return outcome, perf_counter() - begin

    def _take(self) -> list[_Entry[Item, Result]]:
        if self._halves:
            return [entry for entry in self._halves.popleft() if not entry.future.done()]
        while batch := self._next_of_the_queue():
            soonest = monotonic() + self._length.least(len(batch))
            late = [entry for entry in batch if entry.deadline < soonest]
            if not late or (len(late) == len(batch) and not self._queue):
                return batch  # a run may be quicker than those before it, and nobody is kept waiting
            self._metrics.rejected_images.labels(DeadlineExceeded.code).inc(len(late))
            self._answer_all(late, DeadlineExceeded())
            if len(late) < len(batch):
                return [entry for entry in batch if not entry.future.done()]
        return []

    def _next_of_the_queue(self) -> list[_Entry[Item, Result]]:
        batch: list[_Entry[Item, Result]] = []
        while self._queue and len(batch) < self._max_batch_size:
            entry = self._queue.popleft()
            if not entry.future.done():
                batch.append(entry)
        return batch

    def _finish(
        self,
        run: _Run[Item, Result],
        outcome: Sequence[Result] | InferenceFailed,
        seconds: float,
        *,
        on_loop: bool = False,
    ) -> None:
        batch = run.batch
        together = (run.together + len(self._running)) / 2
        self._running.remove(run)
        self._runs += 1
        self._metrics.inference_seconds.observe(seconds)
        if isinstance(outcome, InferenceFailed):
            self._fail(batch, outcome)
        else:
            self._is_failing = False
            if all(self.counts(entry.item) for entry in batch):
                self._pace.observe(seconds / together, len(batch))
                self._length.observe(seconds, len(batch), on_loop=on_loop)
            if not self._is_brief(min(len(self._queue), self._max_batch_size)):
                self._wake()  # before whoever writes an answer: a long run need not wait for it
            for entry, result in zip(batch, outcome, strict=True):
                entry.seconds = seconds
                if not entry.future.done():
                    entry.future.set_result(result)
        self._rest()

    def _fail(self, batch: list[_Entry[Item, Result]], error: InferenceFailed) -> None:
        """Answer a lone item with the error; have the halves of a larger batch run next, each by itself."""
        self._metrics.failed_batches.inc()
        self._is_failing = True
        if len(batch) == 1:
            batch[0].context.run(logger.error, "a batch of 1 failed: %r", error.__cause__)
            self._answer_all(batch, error)
            return
        Context().run(  # and not that of whoever happened to wake the batcher
            logger.error, "a batch of %d failed; its halves are run apart", len(batch), exc_info=error.__cause__
        )
        middle = len(batch) // 2
        self._halves.extendleft((batch[middle:], batch[:middle]))

    def _rest(self) -> None:
        if self._queue or self._halves:
            self._wake()
        elif not self._running and not self._reserved:
            self._idle.set()

    @staticmethod
    def _answer_all(entries: Sequence[_Entry[Item, Result]], error: ServiceError) -> None:
        for entry in entries:
            if not entry.future.done():
                entry.future.set_exception(error)
                entry.future.exception()  # marks it as seen: a caller that was cancelled never looks

    def _give_back(self, places: int) -> None:
        self._reserved -= places
        self._rest()


def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="inference")


def _inference_failed(cause: BaseException) -> InferenceFailed:
    error = InferenceFailed(
        "The model failed on this image.", remedy="Try again; if it happens again, the service's log says more."
    )
    error.__cause__ = cause
    return error


def _stopped_first() -> ShuttingDown:
    return ShuttingDown("The service shut down before this image's turn.", remedy="Send it again.", retry_after=1)


class Admission(Generic[Item, Result]):
    """Places in the queue that a caller holds, from before it prepares its items until they are answered."""

    __slots__ = ("_batcher", "_deadline", "_entries", "_error", "_reserved", "_under_way", "_waits_for", "_when_long")

    def __init__(self, batcher: DynamicBatcher[Item, Result], count: int, deadline: float) -> None:
        self._batcher = batcher
        self._reserved = count
        self._deadline = deadline
        self._entries: list[_Entry[Item, Result]] = []
        self._under_way: list[Future[Any]] = []
        self._waits_for: asyncio.Future[None] | None = None
        self._error: ServiceError | None = None  # why it was given up before its items were queued

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    @property
    def seconds(self) -> tuple[float, float]:
        """How long the items waited in the queue, and how long the function took for them: of each the longest."""
        queue = inference = 0.0
        for entry in self._entries:
            queue, inference = max(queue, entry.started - entry.since), max(inference, entry.seconds)
        return queue, inference

    async def prepare(
        self,
        begun: Iterable[Part | Future[Part]],
        *,
        busy: Callable[[], float] = lambda: 0.0,
        when_long: Callable[[], None] | None = None,
    ) -> list[Part]:
        """Return what the items are made of, in order.

        Args:
            begun: for each item what it is made of, or the work in a pool of threads that makes it; taken one by one,
                and others have their turn of the loop in between.
            busy: how long the pool is busy with the work of others.
            when_long: as `run` takes it.

        Raises:
            QueueFull: there is work to be made, and that of others would take until the deadline.
            DeadlineExceeded, ClientLeft: it is too late, or nobody waits; what has not begun is dropped.
        """
        parts: list[Part | Future[Part]] = []
        rest, others = iter(begun), busy()
        if self._reserved == 1:
            (part,) = rest
            if not isinstance(part, Future):
                return [part]
            parts.append(self._noted(part, others))
        self._await(when_long)
        try:
            for part in rest:
                parts.append(self._noted(part, others))
                await asyncio.sleep(0)
                self._refuse_if_given_up()
            return [await self._made(part) if isinstance(part, Future) else part for part in parts]
        except asyncio.CancelledError:
            self._count_cancelled()
            raise
        finally:
            self._await_no_longer()

    def _noted(self, part: Part | Future[Part], others: float) -> Part | Future[Part]:
        if isinstance(part, Future):
            self._under_way.append(part)
            if others:
                self._refuse_if_too_late(others)
        return part

    def _refuse_if_too_late(self, others: float) -> None:
        now = monotonic()
        seconds = others + self._batcher._seconds_until_run(self._reserved, now)
        if seconds * _HEADROOM > self._deadline - now:
            raise self._batcher._too_late(self._reserved, seconds)

    async def _made(self, work: Future[Part]) -> Part:
        loop = asyncio.get_running_loop()
        self._waits_for = waits_for = loop.create_future()
        work.add_done_callback(lambda _: _call_on(loop, _end, waits_for))
        await waits_for
        self._refuse_if_given_up()
        return work.result()

    def _refuse_if_given_up(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    async def run(self, items: Sequence[Item], *, when_long: Callable[[], None] | None = None) -> list[Result]:
        """Queue the items in the places held and return their results in order.

        Args:
            items: as many as were admitted.
            when_long: called once if the wait is a long one.

        Raises:
            DeadlineExceeded: it passed first, or would before any run could end.
            InferenceFailed: the function failed on one of the items.
            ShuttingDown: the service stopped first.
        """
        assert len(items) == self._reserved, "an admission is for a number of items"
        batcher, loop, now = self._batcher, asyncio.get_running_loop(), monotonic()
        if self._deadline <= now:
            batcher._metrics.rejected_images.labels(DeadlineExceeded.code).inc(len(items))
            raise DeadlineExceeded()
        batcher._reserved -= self._reserved
        self._reserved = 0
        self._entries = entries = batcher._enqueue(items, loop, now, self._deadline)
        if all([entry.future.done() for entry in entries]):  # noqa: C419 - a generator for one entry costs more
            return [entry.future.result() for entry in entries]
        self._await(when_long)
        try:
            return [await entry.future for entry in entries]
        except asyncio.CancelledError:
            self._count_cancelled()
            raise
        except DeadlineExceeded as error:  # of one item, which is counted; the others go with it
            self._count_unanswered(error.code)
            raise
        finally:
            self._await_no_longer()
            self.cancel()

    def _await(self, when_long: Callable[[], None] | None) -> None:
        self._when_long = when_long
        due = min(self._deadline, monotonic() + _LONG) if when_long else self._deadline
        self._batcher._alarm.set(self, due, asyncio.get_running_loop())

    def _await_no_longer(self) -> None:
        self._batcher._alarm.unset(self)
        self._when_long = None  # knows this admission, and neither would go before garbage is looked for

    def cancel(self) -> None:
        """Give up whatever is not answered yet; what still waits will be skipped."""
        for entry in self._entries:
            entry.future.cancel()

    def abandon(self) -> None:
        """Give up since nobody waits any more: `prepare` or `run` raises ClientLeft."""
        self._give_up(ClientLeft("The client closed the connection before the answer."))

    def ring(self, now: float) -> None:
        """Give up, if it is too late; else the wait has become a long one."""
        when_long, self._when_long = self._when_long, None
        if self._deadline <= now:
            self._give_up(DeadlineExceeded())
            return
        self._batcher._alarm.set(self, self._deadline, asyncio.get_running_loop())
        if when_long:
            when_long()

    def _give_up(self, error: ServiceError) -> None:
        if self._error is not None:
            return
        self._count_unanswered(error.code)
        self._batcher._answer_all(self._entries, error)
        if self._reserved:
            self._error = error
            if self._waits_for is not None:
                _end(self._waits_for)

    def _count_cancelled(self) -> None:
        is_ending = self._batcher.is_ending()  # the server cancels what it has no more time for before it closes us
        self._count_unanswered(ShuttingDown.code if is_ending else ClientLeft.code)

    def _count_unanswered(self, reason: str) -> None:
        futures = [entry.future for entry in self._entries]
        unanswered = sum(future.cancelled() or not future.done() for future in futures)
        self._batcher._metrics.rejected_images.labels(reason).inc(self._reserved + unanswered)

    def _release(self) -> None:
        """Give the places back that were not used, those of work that cannot be dropped any more once it has ended."""
        if not self._reserved:
            return
        loop, give_back = asyncio.get_running_loop(), self._batcher._give_back
        running = [work for work in self._under_way if not (work.cancel() or work.done())]
        for work in running:
            work.add_done_callback(lambda _: _call_on(loop, give_back, 1))
        give_back(self._reserved - len(running))
        self._reserved = 0


def _end(waits_for: "asyncio.Future[None]") -> None:
    if not waits_for.done():
        waits_for.set_result(None)


def _call_on(loop: asyncio.AbstractEventLoop, call: Callable[[Argument], None], argument: Argument) -> None:
    """Call a function on the event loop, from any thread, unless the loop has ended and nobody waits."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call, argument)
