"""Who may ask, and on what terms: the policies as they were last read, in memory.

A request costs one hash and one lookup. Whoever reads the policies hands them over whole (`load`), and requests see
the old ones or the new ones, never a mixture. It knows neither the database nor HTTP.
"""

import time
from collections.abc import Mapping
from contextlib import suppress

from service.client_metrics import ClientCounts
from service.clients import ANONYMOUS, NAMELESS, NOBODY, OTHER, ClientPolicy, Owner, Terms, fit
from service.errors import PolicyMismatch, RateLimited
from service.keys import hash_key
from service.manifest import Manifest
from service.metrics import Metrics
from service.policy_store import Snapshot
from service.rates import TokenBucket


class Caller:
    """A client as requests meet it: its policy, what that means for a model, and what it may still send."""

    __slots__ = ("_bucket", "_fitted", "counts", "owner", "policy")

    def __init__(self, owner: Owner, policy: ClientPolicy, counts: ClientCounts, bucket: TokenBucket | None) -> None:
        self.owner = owner
        self.policy = policy
        self.counts = counts
        self._bucket = bucket
        self._fitted: dict[tuple[str, float], Terms | PolicyMismatch] = {}

    @property
    def name(self) -> str:
        """The client's name."""
        return self.owner.name

    def terms(self, manifest: Manifest, max_prior_strength: float) -> Terms:
        """Return what this client's requests get of a model.

        Raises:
            PolicyMismatch: the policy does not fit the model.
        """
        key = manifest.version, max_prior_strength
        if key not in self._fitted:
            try:
                self._fitted[key] = fit(self.policy, manifest, max_prior_strength)
            except PolicyMismatch as error:
                self._fitted[key] = error
        terms = self._fitted[key]
        if isinstance(terms, PolicyMismatch):
            raise terms.with_traceback(None)
        return terms

    def take(self, images: int) -> None:
        """Take so many images out of what the client may send.

        Raises:
            RateLimited: it has sent as many as it may; says when to come again.
        """
        wait = 0 if self._bucket is None else self._bucket.take(images, time.monotonic())
        if wait:
            raise RateLimited(
                f"This client may send {self.policy.images_per_second:g} images a second on average.",
                field="images",
                value=images,
                remedy="Try again after the seconds that Retry-After says.",
                retry_after=wait,
            )


class Callers:
    """All clients that there are, by key.

    Args:
        metrics: where each client's series are.
        max_labels: how many clients get series of their own, the oldest first; the others share those of 'other'.
    """

    def __init__(self, metrics: Metrics, max_labels: int) -> None:
        self._metrics = metrics
        self._max_labels = max_labels
        self._by_key: Mapping[str, Caller] = {}
        self._by_name: Mapping[str, Caller] = {}
        self._labelled: dict[str, ClientCounts] = {}
        self._others: ClientCounts | None = None
        self.anonymous = Caller(NOBODY, ClientPolicy(), metrics.clients.of(NAMELESS), None)
        self._began_at = time.monotonic()
        self.loaded_at: float | None = None
        metrics.policies_age.set_function(self._age)

    @property
    def loaded(self) -> bool:
        """Whether policies were ever read."""
        return self.loaded_at is not None

    @property
    def any_known(self) -> bool:
        """Whether there is any client."""
        return bool(self._by_name)

    def of_key(self, key: str) -> Caller | None:
        """Return whose key this is, or None."""
        return self._by_key.get(hash_key(key))

    def of_name(self, name: str) -> Caller | None:
        """Return the client of this name, or None."""
        return self.anonymous if name == ANONYMOUS else self._by_name.get(name)

    def alphas(self, manifest: Manifest, max_prior_strength: float) -> dict[str, float]:
        """Return the alpha of requests that name none, by label; without clients whose policy does not fit."""
        found = {NAMELESS: self.anonymous.terms(manifest, max_prior_strength).alpha}
        for name, caller in self._by_name.items():
            if self.has_label(name):
                with suppress(PolicyMismatch):
                    found[name] = caller.terms(manifest, max_prior_strength).alpha
        return found

    def has_label(self, name: str) -> bool:
        """Return whether the client has series of its own."""
        return name in self._labelled

    def load(self, snapshot: Snapshot | None) -> None:
        """Take over new policies; None says that those in use are current."""
        if snapshot is not None:
            self._label([owner.name for owner in snapshot.policies])
            by_name = {owner.name: self._caller(owner, policy) for owner, policy in snapshot.policies.items()}
            by_key = {digest: by_name[name] for digest, name in snapshot.clients_by_key.items() if name in by_name}
            self._by_name, self._by_key = by_name, by_key
        self.loaded_at = time.monotonic()

    def _caller(self, owner: Owner, policy: ClientPolicy) -> Caller:
        """Return the client as it is known, if its policy is: what it has sent counts on."""
        known = self._by_name.get(owner.name)
        if known is not None and (known.owner, known.policy) == (owner, policy):
            known.counts = self._counts(owner.name)
            return known
        rate = policy.images_per_second
        return Caller(owner, policy, self._counts(owner.name), None if rate is None else TokenBucket(rate))

    def _label(self, names: list[str]) -> None:
        """Give series of their own to the oldest clients, the same in every process, and remove the others'."""
        chosen = [name for name in names if name not in (OTHER, NAMELESS)][: self._max_labels]
        for name in self._labelled.keys() - set(chosen):
            del self._labelled[name]
            self._metrics.clients.forget(name)
        for name in chosen:
            if name not in self._labelled:
                self._labelled[name] = self._metrics.clients.of(name)

    def _counts(self, name: str) -> ClientCounts:
        if name in self._labelled:
            return self._labelled[name]
        self._others = self._others or self._metrics.clients.of(OTHER)
        return self._others

    def _age(self) -> float:
        return time.monotonic() - (self._began_at if self.loaded_at is None else self.loaded_at)
