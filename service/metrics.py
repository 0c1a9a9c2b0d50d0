"""Every Prometheus instrument of the service, in one object with a registry of its own.

Two apps in one process count apart. No label is unbounded: routes are the app's own, status codes and error
codes come from tables, shot groups are three. It knows nothing of how anything is measured.
"""

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, ProcessCollector

from service.client_metrics import ClientInstruments, MovingMean
from service.histogram import LoopHistogram, LoopHistograms
from service.live_gauge import LiveGauge
from service.manifest import SHOT_GROUPS
from service.tallies import LoopCounter, Tally

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_ALPHAS = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4)
_COSINES = tuple(tenth / 10 for tenth in range(-10, 11))

REJECTION_REASONS = ("queue_full", "too_late", "rate_limited", "shutting_down", "deadline_exceeded", "client_left")
STAGES = ("decode", "queue", "inference", "total")
RELOAD_OUTCOMES = ("swapped", "refused", "unchanged")


class Metrics:
    """The instruments, by the name of what they measure."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=registry)
        self.requests = LoopCounter("evenkeel_requests_total", "Requests answered.", ["route", "status"], registry)
        self.errors = Counter(
            "evenkeel_errors_total", "Requests answered with an error, by its code.", ["code"], registry=registry
        )
        stages = LoopHistograms(
            "evenkeel_stage_seconds",
            "Seconds of a request by stage: decode and total per request, queue per image, inference per batch. "
            "The total of a request that ended in 504 is the time until then.",
            _SECONDS,
            registry,
            label="stage",
            values=STAGES,
        )
        self.decode_seconds, self.queue_seconds, self.inference_seconds, self.total_seconds = stages.series.values()
        self.batch_size = _histogram("evenkeel_batch_size", "Images in one run of the model.", _COUNTS, registry)
        self.failed_batches = Counter(
            "evenkeel_failed_batches_total", "Runs of the model that failed.", registry=registry
        )
        self.stalls = Counter(
            "evenkeel_stalls_total", "Times that the model stopped answering and readiness went off.", registry=registry
        )
        self.reloads = Counter(
            "evenkeel_reloads_total",
            f"Reloads of the bundle, by outcome: {', '.join(RELOAD_OUTCOMES)}.",
            ["outcome"],
            registry=registry,
        )
        self.queue_depth = Gauge("evenkeel_queue_depth", "Images admitted that wait to be run.", registry=registry)
        self.runs_at_once = Gauge(
            "evenkeel_runs_at_once", "Runs of the model that there may be at a time.", registry=registry
        )
        self.queue_capacity = Gauge("evenkeel_queue_capacity", "Images that may wait at most.", registry=registry)
        self.images_in_flight = Gauge(
            "evenkeel_images_in_flight", "Images admitted and not yet answered.", registry=registry
        )
        self.rejected_images = Counter(
            "evenkeel_rejected_images_total",
            f"Images not predicted, by reason: {', '.join(REJECTION_REASONS)}.",
            ["reason"],
            registry=registry,
        )
        self.alpha = _histogram("evenkeel_alpha", "Alpha of predictions.", _ALPHAS, registry)
        self.predictions = LoopCounter(
            "evenkeel_predictions_total", "Predictions by the winner's shot group.", ["shot_group"], registry
        )
        self.flips = LoopCounter(
            "evenkeel_flips_total",
            "Predictions whose winner differs from the winner at alpha 0, by the shot groups of both.",
            ["from_group", "to_group"],
            registry,
        )
        self.detections = LoopCounter(
            "evenkeel_detections_total", "Detections answered, by shot group.", ["shot_group"], registry
        )
        self.confounder_cosine = _histogram(
            "evenkeel_confounder_cosine",
            "Cosine between a picture's features and the momentum direction, mean over the slices.",
            _COSINES,
            registry,
        )
        self.confounder_cosine_mean = Gauge(
            "evenkeel_confounder_cosine_mean",
            "Mean of the confounder cosine over about the last 1,000 predictions.",
            registry=registry,
        )
        self.trained_cosine = LiveGauge(
            "evenkeel_confounder_cosine_trained",
            "Mean of the confounder cosine over the training images; none where the bundle does not say.",
            "version",
            registry,
        )
        self.clients = ClientInstruments(registry)
        self.store_up = Gauge(
            "evenkeel_store_up", "1 while the database of policies and feedback answers, else 0.", registry=registry
        )
        self.store_waiting = Gauge(
            "evenkeel_store_waiting", "Predictions that wait to be written to the database.", registry=registry
        )
        self.store_written = Counter(
            "evenkeel_store_written_total", "Predictions written to the database.", registry=registry
        )
        self.store_skipped = LoopCounter(
            "evenkeel_store_skipped_total", "Predictions not kept, beyond EVENKEEL_KEPT_RATE.", (), registry
        ).labels()
        self.store_dropped = LoopCounter(
            "evenkeel_store_dropped_total", "Predictions not kept, as too many waited to be written.", (), registry
        ).labels()
        self.policies_age = Gauge(
            "evenkeel_policies_age_seconds",
            "Seconds since the policies were last seen to be current; since the start, before they first were.",
            registry=registry,
        )
        self.ready = Gauge("evenkeel_ready", "1 while requests are welcome, else 0.", registry=registry)
        self.model = Info("evenkeel_model", "The model that is served, and what runs it.", registry=registry)
        self._mean_cosine = MovingMean()
        self.confounder_cosine_mean.set_function(lambda: self._mean_cosine.value)
        self._predictions: dict[str, Tally] = {group: self.predictions.labels(group) for group in SHOT_GROUPS}
        self._detections: dict[str, Tally] = {group: self.detections.labels(group) for group in SHOT_GROUPS}
        self._requests: dict[tuple[str, int], Tally] = {}
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        """Show every bounded series from the start: a first event then counts as an increase."""
        for reason in REJECTION_REASONS:
            self.rejected_images.labels(reason)
        for outcome in RELOAD_OUTCOMES:
            self.reloads.labels(outcome)
        for group in SHOT_GROUPS:
            for other in SHOT_GROUPS:
                self.flips.labels(group, other)

    def count_request(self, route: str, status: int) -> None:
        """Count one answer; looks a series up once, as `labels` takes a lock and several microseconds."""
        series = self._requests.get((route, status))
        if series is None:
            series = self._requests[route, status] = self.requests.labels(route, status)
        series.inc()

    def observe_prediction(
        self, *, alpha: float, winner_group: str, plain_group: str, flipped: bool, confounder_cosine: float
    ) -> None:
        """Count one prediction."""
        self.alpha.observe(alpha)
        self._predictions[winner_group].inc()
        if flipped:
            self.flips.labels(plain_group, winner_group).inc()
        self.confounder_cosine.observe(confounder_cosine)
        self._mean_cosine.observe(confounder_cosine)

    def observe_detections(self, *, alpha: float, groups: Iterable[str]) -> None:
        """Count one picture of a detector, and its detections by their shot groups."""
        self.alpha.observe(alpha)
        for group in groups:
            self._detections[group].inc()


def _histogram(name: str, documentation: str, bounds: Sequence[float], registry: CollectorRegistry) -> LoopHistogram:
    return LoopHistograms(name, documentation, bounds, registry).series[""]
