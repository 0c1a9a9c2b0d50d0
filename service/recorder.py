"""Keeps predictions for feedback: noted on the way of a request, written in batches by a thread.

A request pays for an identifier and an append. What waits is bounded: while the database is away predictions wait, and
beyond the bound they are counted and forgotten; no request ever waits or fails for it. It knows neither HTTP nor SQL.
"""

import random
import secrets
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.clients import Owner, Terms
from service.manifest import Manifest
from service.metrics import Metrics
from service.prediction_store import KeptPrediction, PredictionStore
from service.rates import TokenBucket
from service.replay import Rectangle, packed_candidates
from service.scoring import Knobs

_BATCH = 512
"""Predictions that are prepared together, and written in one transaction."""

_BURST = 10_000
"""Predictions that are kept at once, whatever the rate: whoever sends a labelled set finds all of it again."""


_Note: TypeAlias = tuple[str, Owner, float, Terms, Manifest, Knobs, int, NDArray[np.float32], NDArray[np.float32]]
"""A prediction as it is noted, and nothing computed: id, whose, time, terms, manifest, knobs, winner, both logits."""


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
        return int(now * 1000).to_bytes(6).hex() + self._drawn[first : self._used]


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
        self._ready: list[tuple[Owner, KeptPrediction]] = []
        self._writing = threading.Lock()
        metrics.store_waiting.set_function(lambda: self.waiting)

    @property
    def waiting(self) -> int:
        """How many predictions are noted and not written."""
        return len(self._notes) + len(self._ready)

    def note(
        self,
        owner: Owner,
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
        elif self.waiting >= self._max_waiting:
            self._metrics.store_dropped.inc()
        else:
            self._notes.append(
                (identifier, owner, now, terms, manifest, knobs, winner, factual_logits, counterfactual_logits)
            )
        return identifier

    def flush(self) -> None:
        """Write everything that waits.

        Raises:
            StoreUnavailable: the database is away; what was not written waits on.
        """
        with self._writing:
            self._prepare()
            while batch := self._ready[:_BATCH]:
                owners, predictions = zip(*batch, strict=True)
                self._metrics.store_written.inc(self._store.write(owners, predictions))
                del self._ready[: len(batch)]

    def _prepare(self) -> None:
        """Make rows of what was noted, all together that share a model and a target."""
        alike: defaultdict[tuple[str, str], list[_Note]] = defaultdict(list)
        for _ in range(len(self._notes)):
            note = self._notes.popleft()
            _, _, _, terms, manifest, *_ = note
            alike[manifest.version, terms.target_version].append(note)
        for notes in alike.values():
            for first in range(0, len(notes), _BATCH):
                self._ready += self._kept(notes[first : first + _BATCH])

    def _kept(self, notes: Sequence[_Note]) -> Iterator[tuple[Owner, KeptPrediction]]:
        ids, owners, times, terms, manifests, knobs, winners, factual, counterfactual = zip(*notes, strict=True)
        manifest: Manifest = manifests[0]
        alphas, strengths, log_targets = zip(*knobs, strict=True)
        packed = packed_candidates(
            np.concatenate(factual).reshape(len(notes), -1),
            np.concatenate(counterfactual).reshape(len(notes), -1),
            log_class_share=manifest.log_class_share(),
            log_target=log_targets[0],
            rectangle=Rectangle(manifest.alpha.minimum, manifest.alpha.maximum, self._max_prior_strength),
        )
        same = manifest.version, self._max_prior_strength, terms[0].target_version
        version, most, target = (repeat(each, len(notes)) for each in same)
        names = (owner.name for owner in owners)
        rows = zip(ids, names, version, times, alphas, strengths, most, target, winners, packed, strict=True)
        return zip(owners, map(KeptPrediction._make, rows), strict=True)


def noted_at(identifier: str) -> float | None:
    """Return when a prediction of this identifier was made, in seconds since 1970; None: it is none of ours."""
    if len(identifier) != 26 or not all(sign in "0123456789abcdef" for sign in identifier):
        return None
    return int(identifier[:12], 16) / 1000
