"""What is counted for each client. The label is one of a bounded number: `service.callers` chooses it.

It knows nothing of how anything is measured.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter

from service.live_gauge import LiveGauge
from service.manifest import SHOT_GROUPS, ShotGroup
from service.tallies import LoopCounter, LoopSummary

OUTCOMES = ("right", "wrong")


class MovingMean:
    """The mean of all values at first, and of about the last 1,000 later, with less weight to the older.

    >>> mean = MovingMean()
    >>> for value in (1.0, 2.0, 6.0):
    ...     mean.observe(value)
    >>> mean.value
    3.0
    """

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.count, self.value = 0, 0.0

    def observe(self, value: float) -> None:
        """Take in one value."""
        self.count += 1
        self.value += max(1 / self.count, 0.001) * (value - self.value)


class ClientInstruments:
    """The instruments of all clients."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.predictions = LoopCounter(
            "evenkeel_client_predictions_total",
            "Predictions by client and by the winner's shot group.",
            ["client", "shot_group"],
            registry,
        )
        self.detections = LoopCounter(
            "evenkeel_client_detections_total",
            "Detections answered, by client and by shot group.",
            ["client", "shot_group"],
            registry,
        )
        self.flips = LoopCounter(
            "evenkeel_client_flips_total",
            "Predictions whose winner differs from the winner at alpha 0, by client and by the shot groups of both.",
            ["client", "from_group", "to_group"],
            registry,
        )
        self.near_breakpoint = LoopCounter(
            "evenkeel_client_near_breakpoint_total",
            "Predictions whose winner changes within 0.1 of the alpha served, by client.",
            ["client"],
            registry,
        )
        self.alpha = LoopSummary("evenkeel_client_alpha", "Alpha of predictions, by client.", ["client"], registry)
        self.prior_strength = LoopSummary(
            "evenkeel_client_prior_strength", "prior_strength of predictions, by client.", ["client"], registry
        )
        self.feedback = Counter(
            "evenkeel_feedback_total",
            "Labels received, by client, by the true class's shot group, and by whether the answer was right.",
            ["client", "shot_group", "outcome"],
            registry=registry,
        )
        self.current_alpha = LiveGauge(
            "evenkeel_client_current_alpha",
            "Alpha of a client's requests that name none, under the model that is served.",
            "client",
            registry,
        )
        self.recommended_alpha = LiveGauge(
            "evenkeel_client_recommended_alpha",
            "Alpha that a client's labels recommend: the current one where they say to keep it; none where they are "
            "too few.",
            "client",
            registry,
        )
        self._cosines: dict[str, MovingMean] = {}
        LiveGauge(
            "evenkeel_client_confounder_cosine_mean",
            "Mean of the confounder cosine over about the last 1,000 predictions, by client.",
            "client",
            registry,
        ).set_function(self._mean_cosines)

    def of(self, label: str) -> "ClientCounts":
        """Return the series of one client, from zero."""
        return ClientCounts(self, label, self._cosines.setdefault(label, MovingMean()))

    def forget(self, label: str) -> None:
        """Remove the series of a client that has no label of its own any more."""
        for each in (
            self.predictions,
            self.detections,
            self.flips,
            self.near_breakpoint,
            self.alpha,
            self.prior_strength,
            self.feedback,
        ):
            each.remove_by_labels({"client": label})
        self._cosines.pop(label, None)

    def _mean_cosines(self) -> dict[str, float]:
        return {label: mean.value for label, mean in list(self._cosines.items()) if mean.count}


class ClientCounts:
    """The series of one client, looked up once."""

    __slots__ = (
        "_alpha",
        "_cosine",
        "_detections",
        "_feedback",
        "_flips",
        "_near_breakpoint",
        "_predictions",
        "_prior_strength",
    )

    def __init__(self, instruments: ClientInstruments, label: str, cosine: MovingMean) -> None:
        self._predictions = {group: instruments.predictions.labels(label, group) for group in SHOT_GROUPS}
        self._detections = {group: instruments.detections.labels(label, group) for group in SHOT_GROUPS}
        self._flips = {
            (group, other): instruments.flips.labels(label, group, other)
            for group in SHOT_GROUPS
            for other in SHOT_GROUPS
        }
        self._near_breakpoint = instruments.near_breakpoint.labels(label)
        self._alpha = instruments.alpha.labels(label)
        self._prior_strength = instruments.prior_strength.labels(label)
        self._cosine = cosine
        self._feedback = {
            (group, outcome): instruments.feedback.labels(label, group, outcome)
            for group in SHOT_GROUPS
            for outcome in OUTCOMES
        }

    def observe_prediction(
        self,
        *,
        alpha: float,
        prior_strength: float,
        winner_group: ShotGroup,
        plain_group: ShotGroup,
        flipped: bool,
        near_breakpoint: bool,
        confounder_cosine: float,
    ) -> None:
        """Count one prediction."""
        self._predictions[winner_group].inc()
        self._alpha.observe(alpha)
        self._prior_strength.observe(prior_strength)
        self._cosine.observe(confounder_cosine)
        if flipped:
            self._flips[plain_group, winner_group].inc()
        if near_breakpoint:
            self._near_breakpoint.inc()

    def observe_detections(self, *, alpha: float, groups: Iterable[ShotGroup]) -> None:
        """Count one picture of a detector, which has no winner, and its detections by their shot groups."""
        self._alpha.observe(alpha)
        for group in groups:
            self._detections[group].inc()

    def observe_label(self, group: ShotGroup, *, right: bool) -> None:
        """Count one label."""
        self._feedback[group, "right" if right else "wrong"].inc()
