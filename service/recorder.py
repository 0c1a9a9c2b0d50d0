"""Keeps predictions for feedback: noted on the way of a request, written in batches by a thread.

A request pays for an identifier and an append. What waits is bounded: while the database is away predictions wait, and
beyond the bound they are counted and forgotten; no request ever waits or fails for it. It knows neither HTTP nor SQL.
"""

import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.clients import Terms
from service.manifest import Manifest
from service.metrics import Metrics
from service.prediction_store import KeptPrediction, PredictionStore
from service.rates import TokenBucket
from service.replay import Rectangle, candidates
from service.scoring import Knobs

_BATCH = 500

_BURST = 10_000
"""Predictions that are kept at once, whatever the rate: whoever sends a labelled set finds all of it again."""


class _Note(NamedTuple):
    """A prediction as it is noted: nothing is computed yet."""

    id: str
    client: str
    manifest: Manifest
    at: float
    knobs: Knobs
    target: str
    winner: int
    factual_logits: NDArray[np.float32]
    counterfactual_logits: NDArray[np.float32]


class _Identifiers:
    """Identifiers that begin with the time, so that new ones lie together, and end with 56 random bits.

    The bits are drawn many at a time: asking the system for seven bytes takes as long as for a thousand.
    """

    _DIGITS, _DRAWN = 14, 256

    def __init__(self) -> None:
        self._drawn, self._used = "", 0

    def new(self, now: float) -> str:
        """Return one that was never given."""
        if self._used == len(self._drawn):
            self._drawn, self._used = secrets.token_hex(self._DIGITS // 2 * self._DRAWN), 0
        first = self._used
        self._used = first + self._DIGITS
        return f"{int(now * 1000):012x}{self._drawn[first : self._used]}"


class Recorder:
    """Notes predictions and writes them.

    Args:
        store: where they are written.
        metrics: where to count.
        share: the share of predictions that is kept.
        rate: most predictions a second that are kept on average, and ten thousand at once; beyond, a sample of them.
        max_waiting: most predictions that may wait.
        max_prior_strength: the largest that a request may ever ask for: what is kept is exact up to there.
    """

    def __init__(
        self,
        store: PredictionStore,
        metrics: Metrics,
        *,
        share: float,
        rate: float,
        max_waiting: int,
        max_prior_strength: float,
    ) -> None:
        self._store, self._metrics = store, metrics
        self._share, self._max_waiting = share, max_waiting
        self._bucket = TokenBucket(rate, _BURST)
        self._max_prior_strength = max_prior_strength
        self._identifiers = _Identifiers()
        self._notes: deque[_Note] = deque()
        self._ready: deque[KeptPrediction] = deque()
        self._writing = threading.Lock()
        metrics.store_waiting.set_function(lambda: len(self._notes) + len(self._ready))

    def note(
        self,
        client: str,
        terms: Terms,
        manifest: Manifest,
        knobs: Knobs,
        *,
        winner: int,
        factual_logits: NDArray[np.float32],
        counterfactual_logits: NDArray[np.float32],
    ) -> str:
        """Note one prediction and return its identifier."""
        now = time.time()
        identifier = self._identifiers.new(now)
        if self._share < 1.0 and random.random() >= self._share:  # noqa: S311 - a sample, not a secret
            return identifier
        if self._bucket.take(1, time.monotonic()):
            self._metrics.store_skipped.inc()
        elif len(self._notes) + len(self._ready) >= self._max_waiting:
            self._metrics.store_dropped.inc()
        else:
            lines = factual_logits, counterfactual_logits
            self._notes.append(_Note(identifier, client, manifest, now, knobs, terms.target_version, winner, *lines))
        return identifier

    def flush(self) -> None:
        """Write everything that waits.

        Raises:
            StoreUnavailable: the database is away; what was not written waits on.
        """
        with self._writing:
            self._prepare()
            while self._ready:
                batch = [self._ready[row] for row in range(min(_BATCH, len(self._ready)))]
                self._store.write(batch)
                self._metrics.store_written.inc(len(batch))
                for _ in batch:
                    self._ready.popleft()

    def _prepare(self) -> None:
        """Find the candidates of what was noted, many at a time where they share a model and a target."""
        while self._notes:
            first = self._notes.popleft()
            alike = [first]
            while self._notes and len(alike) < _BATCH and _alike(first, self._notes[0]):
                alike.append(self._notes.popleft())
            self._ready.extend(self._kept(alike))

    def _kept(self, notes: Sequence[_Note]) -> list[KeptPrediction]:
        manifest, log_target = notes[0].manifest, notes[0].knobs.log_target
        found = candidates(
            np.stack([note.factual_logits for note in notes]),
            np.stack([note.counterfactual_logits for note in notes]),
            log_class_share=manifest.log_class_share(),
            log_target=log_target,
            rectangle=Rectangle(manifest.alpha.minimum, manifest.alpha.maximum, self._max_prior_strength),
        )
        return [
            KeptPrediction(
                id=note.id,
                client=note.client,
                model=manifest.version,
                at=note.at,
                alpha=note.knobs.alpha,
                prior_strength=note.knobs.prior_strength,
                max_prior_strength=self._max_prior_strength,
                target=note.target,
                winner=note.winner,
                candidates=each.pack(len(manifest.classes)),
            )
            for note, each in zip(notes, found, strict=True)
        ]


def _alike(one: _Note, other: _Note) -> bool:
    return one.manifest is other.manifest and one.target == other.target


def noted_at(identifier: str) -> float | None:
    """Return when a prediction of this identifier was made, in seconds since 1970; None: it is none of ours."""
    if len(identifier) != 26 or not all(sign in "0123456789abcdef" for sign in identifier):
        return None
    return int(identifier[:12], 16) / 1000
