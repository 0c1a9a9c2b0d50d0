import numpy as np

from service.clients import ClientPolicy, fit
from service.metrics import Metrics
from service.prediction_store import KeptPrediction
from service.recorder import Recorder
from service.scoring import Knobs
from tests.service.fakes import FakeModel


class Store:
    """Keeps in memory what is written."""

    def __init__(self) -> None:
        self.rows: list[KeptPrediction] = []

    def write(self, predictions: list[KeptPrediction]) -> None:
        self.rows += predictions


def note(recorder: Recorder, times: int) -> list[str]:
    manifest = FakeModel().manifest
    logits = np.eye(len(manifest.classes), dtype=np.float32)[0]
    terms = fit(ClientPolicy(), manifest, 4.0)
    lines = {"factual_logits": logits, "counterfactual_logits": -logits}
    return [recorder.note("shop", terms, manifest, Knobs(1.0), winner=0, **lines) for _ in range(times)]


def make_recorder(store: Store, metrics: Metrics, *, rate: float) -> Recorder:
    return Recorder(store, metrics, share=1.0, rate=rate, max_waiting=100_000, max_prior_strength=4.0)  # type: ignore[arg-type]


def test_ten_thousand_at_once_are_kept_and_of_what_follows_no_more_than_the_rate() -> None:
    store, metrics = Store(), Metrics()
    recorder = make_recorder(store, metrics, rate=0.001)
    identifiers = note(recorder, 10_300)
    recorder.flush()
    assert len(set(identifiers)) == 10_300
    assert [row.id for row in store.rows] == identifiers[:10_000]
    assert metrics.registry.get_sample_value("evenkeel_store_skipped_total") == 300


def test_below_the_rate_every_prediction_is_kept() -> None:
    store, metrics = Store(), Metrics()
    recorder = make_recorder(store, metrics, rate=1e9)
    note(recorder, 12_000)
    recorder.flush()
    assert len(store.rows) == 12_000
