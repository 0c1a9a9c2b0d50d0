"""Everything that is kept beyond a request, put together: policies, predictions, labels, and the threads behind them.

It starts without a database and goes on without one: requests are judged by the policies that were last read.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

from service.background import Background
from service.callers import Callers
from service.database import Database
from service.feedback import Feedback
from service.manifest import Manifest
from service.metrics import Metrics
from service.objectives import parse_objective
from service.policy_store import UNREAD, PolicyStore, Snapshot
from service.prediction_store import PredictionStore
from service.recommendations import Recommendations
from service.recorder import Recorder
from service.settings import Settings
from service.studies import Studies

logger = logging.getLogger(__name__)

_LOOK = 0.5
"""Seconds between looks for changed policies: a change reaches every process within two of them, and a little."""

_WRITE = 0.5
"""Seconds between batches of predictions: one costs about a millisecond, however few there are."""

_PRUNE = 60.0
_DAY = 86_400.0


class Keeping:
    """The database's side of an app.

    Attributes:
        callers: who may ask, as last read.
        recorder: where predictions are noted.
        policies, predictions: what blocks; for the threads of `executor`, which clients' labels do not keep busy.
        feedback: accepts labels, in threads of its own.
        studies: what labels say of a client's knobs, in a thread of its own.
    """

    def __init__(self, settings: Settings, manifest: Manifest, metrics: Metrics) -> None:
        self._settings, self._manifest = settings, manifest
        self._metrics = metrics
        self.database = Database(settings.database_url, lambda there: metrics.store_up.set(1 if there else 0))
        self.policies = PolicyStore(self.database)
        self.predictions = PredictionStore(self.database)
        self.callers = Callers(metrics, settings.max_client_labels)
        self.recorder = Recorder(
            self.predictions,
            metrics,
            share=settings.kept_share if settings.kept_predictions else 0.0,
            rate=settings.kept_rate,
            max_waiting=settings.store_buffer,
            max_prior_strength=settings.max_prior_strength,
        )
        self._feedback_executor = ThreadPoolExecutor(4, thread_name_prefix="feedback")
        self.feedback = Feedback(self.predictions, self._write_now, self.callers, self._feedback_executor)
        self.recommendations = Recommendations(
            self.policies,
            self.predictions,
            self.callers,
            parse_objective(settings.recommend_objective),
            settings.max_prior_strength,
        )
        self.studies = Studies(self.policies, self.predictions, settings.max_prior_strength)
        metrics.clients.recommended_alpha.set_function(lambda: self.recommendations.alphas(self._manifest.version))
        metrics.clients.current_alpha.set_function(
            lambda: self.callers.alphas(self._manifest, settings.max_prior_strength)
        )
        self.executor = ThreadPoolExecutor(2, thread_name_prefix="policies")
        self._revision = UNREAD
        self._lost = False
        self._prepared_for: tuple[str, int] | None = None
        self._threads = [
            Background("reading policies", _LOOK, self.refresh),
            Background("writing predictions", _WRITE, self._write, at_the_end=True),
            Background("forgetting old predictions", _PRUNE, self._prune),
        ]
        if settings.recommend_interval:
            self._threads.append(Background("recommending alpha", settings.recommend_interval, self._recommend))

    def begin(self) -> None:
        """Read the policies if the database is there, and start the threads; takes some seconds where it is not."""
        self._threads[0].once()
        for thread in self._threads:
            thread.start()

    def end(self, timeout: float) -> None:
        """Write what waits, if the database is there, and stop the threads; say in the log what was not written.

        Args:
            timeout: seconds that all threads together may take; one that hangs for longer is left to itself.
        """
        deadline = monotonic() + timeout
        for thread in self._threads:
            thread.stop()
        have_ended = [thread.join(max(0.0, deadline - monotonic())) for thread in self._threads]
        if lost := self.recorder.waiting:
            logger.error("%d predictions could not be written to the database and are lost", lost)
        for executor in (self.executor, self._feedback_executor):
            executor.shutdown(wait=False, cancel_futures=True)
        self.studies.close()
        if all(have_ended):
            self.database.close()

    def refresh(self) -> None:
        """Take over changed policies; the first time, and when the tables were lost, bring them up to date before.

        Tables that were lost and made again hold nothing: then the policies that are known stay.

        Raises:
            StoreUnavailable: the database is away.
        """
        if not self._prepared:
            self._prepare()
        snapshot = self.policies.snapshot(self._revision)
        if snapshot is not None and self._was_lost(snapshot):
            return
        self.callers.load(snapshot)
        if snapshot is not None:
            self._revision = snapshot.revision

    def _was_lost(self, found: Snapshot) -> bool:
        """Tell whether what was known is gone from the database, and nobody has put anything in its place yet."""
        lost = self.callers.any_known and not found.was_ever_changed
        if lost and not self._lost:
            logger.warning(
                "The database holds no policy and no change of one, though clients are known: it was emptied or "
                "removed. Requests go on under the last known policies until a backup is put back, the first client is "
                "added, or the service is started again."
            )
        self._lost = lost
        return lost

    def remember(self, manifest: Manifest) -> None:
        """Keep another model, whose predictions come from now on, before the next look at the database ends."""
        self._manifest = manifest

    @property
    def _prepared(self) -> bool:
        """Whether the tables are up to date and the model is known there, as far as anybody has noticed."""
        return self._prepared_for == (self._manifest.version, self.database.losses)

    def _prepare(self) -> None:
        manifest, losses = self._manifest, self.database.losses
        self.database.migrate()
        self.predictions.remember_model(manifest, manifest.version)
        self._prepared_for = manifest.version, losses

    def _write(self) -> None:
        if self._prepared:
            self.recorder.flush()

    def _write_now(self) -> None:
        """Write what waits, once the model that made it is known there: nobody could read a label's name before."""
        if not self._prepared:
            self._prepare()
        self.recorder.flush()

    def _recommend(self) -> None:
        if self._prepared:
            self.recommendations.update(self._manifest.version)

    def _prune(self) -> None:
        if self._prepared:
            self.predictions.prune(
                max_age=self._settings.kept_days * _DAY,
                max_unlabelled=self._settings.kept_predictions,
                max_labelled=self._settings.kept_labels,
            )
