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

    model: str
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

    def alphas(self, model: str) -> dict[str, float]:
        """Return what was found for this version, by client: only those whose labels suffice."""
        found = {name: seen.alpha for name, seen in self._seen.items() if seen.model == model}
        return {name: alpha for name, alpha in found.items() if alpha is not None}

    def update(self, model: str) -> None:
        """Look at every client whose labels or policy have changed.

        Args:
            model: the version that is served; only labels of its predictions count.

        Raises:
            StoreUnavailable: the database is away; what was found stays.
        """
        seen: dict[str, _Seen] = {}
        for name, labels in self._predictions.label_counts(model).items():
            caller = self._callers.of_name(name)
            if caller is not None and self._callers.has_label(name):
                seen[name] = self._look(name, model, labels, caller.policy)
        self._seen = seen

    def _look(self, name: str, model: str, labels: LabelCount, policy: ClientPolicy) -> _Seen:
        known = self._seen.get(name)
        if known is not None and (known.model, known.labels, known.policy) == (model, labels, policy):
            return known
        alpha = None
        with suppress(PolicyMismatch, UnknownClient):
            alpha = _recommended(
                study(
                    name,
                    self._objective,
                    "alpha",
                    model=model,
                    policies=self._policies,
                    predictions=self._predictions,
                    max_prior_strength=self._max_prior_strength,
                )
            )
        return _Seen(model, labels, policy, alpha)


def _recommended(found: Study) -> float | None:
    if found.tuning is None:
        return None
    return found.tuning.best.alpha if found.keep is None else found.tuning.current.alpha
