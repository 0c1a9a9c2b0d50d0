"""From labels that clients send to rows that are durable: which are accepted, and what is wrong with the others.

What asks the database runs in the threads of an executor; what waits, waits on the event loop.
It knows neither HTTP nor SQL.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from service.callers import Callers
from service.errors import RateLimited, StoreUnavailable
from service.manifest import ManifestDraft
from service.prediction_store import PredictionStore, Served
from service.recorder import noted_at

_FRESH = 3.0
"""Seconds after a prediction in which another process may not have written it yet."""

_PAUSE = 0.1
"""Seconds before the second look for such a prediction; each later pause is twice as long."""

_MOST_WAITING = 32
_MOST_WAITING_OF_A_CLIENT = 4
"""Requests that may wait for such predictions at once."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Label:
    """The true class of a prediction, by name or by index."""

    prediction: str
    label: str | int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A label that is not accepted: the n-th of those sent, and why."""

    position: int
    label: Label
    code: Literal["unknown_prediction", "unknown_label"]
    message: str


@dataclass(slots=True)
class Receipt:
    """What became of the labels."""

    accepted: int = 0
    refused: list[Refusal] = field(default_factory=list)


class Feedback:
    """Accepts labels.

    Args:
        store: where predictions and labels are.
        write: writes what this process has noted and perhaps not written.
        callers: whose counts to raise.
        executor: what runs whatever asks the database.
    """

    def __init__(self, store: PredictionStore, write: Callable[[], None], callers: Callers, executor: Executor) -> None:
        self._store, self._write, self._callers, self._executor = store, write, callers, executor
        self._models: dict[str, tuple[ManifestDraft, dict[str, int]]] = {}
        self._waiting: Counter[str | None] = Counter()

    async def accept(self, labels: Sequence[Label], client: str | None) -> Receipt:
        """Keep the labels of this client's predictions (None: anyone's); what is accepted is durable on return.

        Raises:
            StoreUnavailable: the database is away, and nothing was accepted.
            RateLimited: some predictions are too new to be told from unknown ones, and too many requests wait for
                such already; nothing was accepted.
        """
        # Of another form is none, and a database need not take it: PostgreSQL takes no NUL.
        ids = {label.prediction for label in labels if noted_at(label.prediction) is not None}
        found = await self._blocking(lambda: self._find(ids, client))
        if fresh := _fresh(ids - found.keys()):
            with self._place_to_wait(client):
                await self._wait(fresh, found, client)
        return await self._blocking(lambda: self._keep(labels, found))

    def _keep(self, labels: Sequence[Label], found: dict[str, Served]) -> Receipt:
        receipt = Receipt()
        known = [label for label in labels if label.prediction in found]
        indices = {label: self._index(found[label.prediction].model, label.label) for label in known}
        truths = {label.prediction: truth for label in known if (truth := indices[label]) is not None}
        gone = truths.keys() - self._store.label(truths)
        for position, label in enumerate(labels):
            if label not in indices or label.prediction in gone:
                message = "No such prediction of this client is kept: it is too old, was not sampled, or never was."
                receipt.refused.append(Refusal(position, label, "unknown_prediction", message))
            elif indices[label] is None:
                message = "The model that made this prediction has no such class; GET /model lists them."
                receipt.refused.append(Refusal(position, label, "unknown_label", message))
            else:
                receipt.accepted += 1
        for identifier in truths.keys() - gone:
            self._count(found[identifier], truths[identifier])
        return receipt

    def _find(self, ids: set[str], client: str | None) -> dict[str, Served]:
        found = self._store.find(sorted(ids), client)
        missing = ids - found.keys()
        if missing:
            self._write()
            found |= self._store.find(sorted(missing), client)
        return found

    async def _wait(self, fresh: set[str], found: dict[str, Served], client: str | None) -> None:
        """Look again, now and then, for what another process may be about to write, and add it to what was found."""
        pause, end = _PAUSE, time.monotonic() + _FRESH
        while (missing := sorted(fresh - found.keys())) and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(pause, left))
            pause *= 2
            found |= await self._blocking(lambda missing=missing: self._store.find(missing, client))  # type: ignore[misc]

    @contextmanager
    def _place_to_wait(self, client: str | None) -> Iterator[None]:
        if self._waiting.total() >= _MOST_WAITING or self._waiting[client] >= _MOST_WAITING_OF_A_CLIENT:
            raise RateLimited(
                "Some of these predictions are unknown and new: they may not be written yet, and too many requests "
                "wait for such already.",
                field="prediction_id",
                remedy="Send the labels again after the seconds that Retry-After says.",
                retry_after=int(_FRESH),
            )
        self._waiting[client] += 1
        try:
            yield
        finally:
            self._waiting[client] -= 1
            self._waiting += Counter()  # forgets those of whom none waits

    async def _blocking(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _index(self, model: str, label: str | int) -> int | None:
        if model not in self._models:
            manifest = self._store.model(model)
            if manifest is None:
                raise StoreUnavailable(
                    "The model that made one of these predictions is not known to the database yet.",
                    remedy="Send the labels again after the seconds that Retry-After says.",
                    retry_after=1,
                )
            self._models[model] = manifest, {info.name: index for index, info in enumerate(manifest.classes)}
        manifest, names = self._models[model]
        if isinstance(label, str):
            return names.get(label)
        return label if 0 <= label < len(manifest.classes) else None

    def _count(self, served: Served, truth: int) -> None:
        caller = self._callers.of_name(served.client)
        if caller is not None:
            group = self._models[served.model][0].classes[truth].shot_group
            caller.counts.observe_label(group, right=truth == served.winner)


def _fresh(ids: set[str]) -> set[str]:
    """Return those that look as if they were made just now, by a clock that may be ahead or behind."""
    now = time.time()
    made = {each: noted_at(each) for each in ids}
    return {each for each, at in made.items() if at is not None and abs(now - at) < _FRESH}
