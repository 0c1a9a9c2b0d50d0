"""From labels that clients send to rows that are durable: which are accepted, and what is wrong with the others.

It knows neither HTTP nor SQL.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from service.callers import Callers
from service.manifest import ManifestDraft
from service.prediction_store import PredictionStore, Served
from service.recorder import Recorder, noted_at

_FRESH = 3.0
"""Seconds after a prediction in which another process may not have written it yet."""

_PAUSE = 0.2


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
        recorder: what this process has noted and perhaps not written.
        callers: whose counts to raise.
    """

    def __init__(self, store: PredictionStore, recorder: Recorder, callers: Callers) -> None:
        self._store, self._recorder, self._callers = store, recorder, callers
        self._models: dict[str, tuple[ManifestDraft, dict[str, int]]] = {}

    def accept(self, labels: Sequence[Label], client: str | None) -> Receipt:
        """Keep the labels of this client's predictions (None: anyone's); what is accepted is durable on return.

        Raises:
            StoreUnavailable: the database is away, and nothing was accepted.
        """
        found = self._find({label.prediction for label in labels}, client)
        receipt = Receipt()
        truths: dict[str, int] = {}
        for position, label in enumerate(labels):
            served = found.get(label.prediction)
            if served is None:
                message = "No such prediction of this client is kept: it is too old, was not sampled, or never was."
                receipt.refused.append(Refusal(position, label, "unknown_prediction", message))
            elif (truth := self._index(served.model, label.label)) is None:
                message = "The model that made this prediction has no such class; GET /model lists them."
                receipt.refused.append(Refusal(position, label, "unknown_label", message))
            else:
                truths[label.prediction] = truth
                receipt.accepted += 1
        self._store.label(truths)
        for identifier, truth in truths.items():
            self._count(found[identifier], truth)
        return receipt

    def _find(self, ids: set[str], client: str | None) -> dict[str, Served]:
        found = self._store.find(sorted(ids), client)
        missing = ids - found.keys()
        if missing:
            self._recorder.flush()
            found |= self._store.find(sorted(missing), client)
        while fresh := [each for each in ids - found.keys() if _is_fresh(each)]:
            time.sleep(_PAUSE)
            found |= self._store.find(sorted(fresh), client)
        return found

    def _index(self, model: str, label: str | int) -> int | None:
        if model not in self._models:
            manifest = self._store.model(model)
            if manifest is None:
                return None
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


def _is_fresh(identifier: str) -> bool:
    made = noted_at(identifier)
    return made is not None and 0 <= time.time() - made < _FRESH
