"""Studies of clients' trade-offs for whoever asks over the network: bounded, and remembered.

A study takes the processor for up to a second, and predictions need it too: one runs at a time, at most one of each
client runs or waits, and none is made twice from the same labels and the same policy. It knows neither HTTP nor SQL.
"""

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from service.clients import ClientPolicy
from service.errors import RateLimited
from service.objectives import Objective
from service.policy_store import PolicyStore
from service.prediction_store import LabelCount, PredictionStore
from service.tune import Which
from service.tuning import Study, study

_MOST_REMEMBERED = 64

_Question = tuple[str, str, Which]
_Grounds = tuple[str, LabelCount | None, ClientPolicy]


class Studies:
    """Makes studies in a thread of its own.

    Args:
        policies, predictions: where to read.
        max_prior_strength: the largest that a request may ask for.
    """

    def __init__(self, policies: PolicyStore, predictions: PredictionStore, max_prior_strength: float) -> None:
        self._policies, self._predictions = policies, predictions
        self._max_prior_strength = max_prior_strength
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="study")
        self._under_way: set[str] = set()
        self._known: OrderedDict[_Question, tuple[_Grounds, Study]] = OrderedDict()

    async def of(self, name: str, objective: Objective, which: Which, model: str) -> Study:
        """Return the study of a client as `service.tuning.study` makes it.

        Raises:
            RateLimited: one of this client runs or waits already.
            UnknownClient, PolicyMismatch, StoreUnavailable: as `study` says.
        """
        if name in self._under_way:
            raise RateLimited(
                "The trade-off of this client is being worked out already.",
                field="name",
                value=name,
                remedy="Ask for one at a time; try again after the seconds that Retry-After says.",
                retry_after=1,
            )
        self._under_way.add(name)
        future = self._executor.submit(self._make, name, objective, which, model)
        # Whoever asks may leave: the place is free when the work ends, not when the answer is taken.
        future.add_done_callback(lambda _: self._under_way.discard(name))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Begin no more."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _make(self, name: str, objective: Objective, which: Which, model: str) -> Study:
        question = name, objective.text, which
        policy = self._policies.client(name).policy  # first: for a name that can be none nothing else is asked
        grounds = model, self._predictions.label_count(name, model), policy
        if question not in self._known or self._known[question][0] != grounds:
            found = self._study(name, objective, which, model)
            if found.model is None:  # a model that begins to serve is known to the database soon
                return found
            self._known[question] = grounds, found
        self._known.move_to_end(question)
        if len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)
        return self._known[question][1]

    def _study(self, name: str, objective: Objective, which: Which, model: str) -> Study:
        return study(
            name,
            objective,
            which,
            model=model,
            policies=self._policies,
            predictions=self._predictions,
            max_prior_strength=self._max_prior_strength,
        )
