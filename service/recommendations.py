"""What each client's labels recommend, worked out beside the requests and shown in the metrics.

It is what `service tune CLIENT` says. A client is looked at again only when its labels or its policy have changed.
It knows neither HTTP nor SQL.
"""

from contextlib import suppress
from dataclasses import dataclass

from service.callers import Callers
from service.clients import ClientPolicy
from service.errors import PolicyMismatch, UnknownClient
from service.objectives import Objective
from service.policy_store import PolicyStore
from service.prediction_store import LabelCount, PredictionStore
from service.tuning import Study, study


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a recommendation was made from, and what it is; None: the labels do not suffice."""

    labels: LabelCount
    policy: ClientPolicy
    alpha: float | None


class Recommendations:
    """The alpha that each client's labels recommend.

    Args:
        policies, predictions: where to read.
        callers: who there is, and who has a label of its own in the metrics.
        objective: what to make large.
        max_prior_strength: the largest that a request may ask for.
    """

    def __init__(
        self,
        policies: PolicyStore,
        predictions: PredictionStore,
        callers: Callers,
        objective: Objective,
        max_prior_strength: float,
    ) -> None:
        self._policies, self._predictions, self._callers = policies, predictions, callers
        self._objective, self._max_prior_strength = objective, max_prior_strength
        self._seen: dict[str, _Seen] = {}

    def alphas(self) -> dict[str, float]:
        """Return what was found, by client: only those whose labels suffice."""
        return {name: seen.alpha for name, seen in self._seen.items() if seen.alpha is not None}

    def update(self) -> None:
        """Look at every client whose labels or policy have changed.

        Raises:
            StoreUnavailable: the database is away; what was found stays.
        """
        seen: dict[str, _Seen] = {}
        for name, labels in self._predictions.label_counts().items():
            caller = self._callers.of_name(name)
            if caller is not None and self._callers.has_label(name):
                seen[name] = self._look(name, labels, caller.policy)
        self._seen = seen

    def _look(self, name: str, labels: LabelCount, policy: ClientPolicy) -> _Seen:
        known = self._seen.get(name)
        if known is not None and (known.labels, known.policy) == (labels, policy):
            return known
        alpha = None
        with suppress(PolicyMismatch, UnknownClient):
            alpha = _recommended(
                study(
                    name,
                    self._objective,
                    "alpha",
                    policies=self._policies,
                    predictions=self._predictions,
                    max_prior_strength=self._max_prior_strength,
                )
            )
        return _Seen(labels, policy, alpha)


def _recommended(found: Study) -> float | None:
    if found.tuning is None:
        return None
    return found.tuning.best.alpha if found.keep is None else found.tuning.current.alpha
