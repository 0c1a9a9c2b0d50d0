from collections.abc import Sequence

import numpy as np

from service.clients import ClientPolicy, Owner, fit
from service.metrics import Metrics
from service.prediction_store import KeptPrediction
from service.recorder import Recorder
from service.replay import Rectangle, candidates
from service.scoring import Knobs
from tests.service.fakes import FakeModel


class Store:
    """Keeps in memory what is written, but for what belongs to a client that is gone."""

    def __init__(self, gone: str = "") -> None:
        self.rows: list[KeptPrediction] = []
        self._gone = gone

    def write(self, owners: Sequence[Owner], predictions: Sequence[KeptPrediction]) -> int:
        assert [owner.name for owner in owners] == [each.client for each in predictions]
        kept = [each for each in predictions if each.client != self._gone]
        self.rows += kept
        return len(kept)


def note(recorder: Recorder, times: int, client: str = "shop") -> list[str]:
    manifest = FakeModel().manifest
    logits = np.eye(len(manifest.classes), dtype=np.float32)[0]
    terms = fit(ClientPolicy(), manifest, 4.0)
    lines = {"factual_logits": logits, "counterfactual_logits": -logits}
    return [recorder.note(Owner(client, 5.0), terms, manifest, Knobs(1.0), winner=0, **lines) for _ in range(times)]


def frequent(name: str) -> ClientPolicy:
    """Return the policy of a client that sees one class nearly always."""
    shares = {info.name: 1.0 for info in FakeModel().manifest.classes}
    return ClientPolicy(target_distribution=shares | {name: 100.0})


def make_recorder(store: Store, metrics: Metrics, *, rate: float, share: float = 1.0) -> Recorder:
    return Recorder(store, metrics, share=share, rate=rate, max_waiting=100_000, max_prior_strength=4.0)


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


def test_what_the_store_leaves_out_is_not_counted_as_written() -> None:
    store, metrics = Store(gone="shop"), Metrics()
    recorder = make_recorder(store, metrics, rate=1e9)
    note(recorder, 3)
    note(recorder, 2, "other")
    recorder.flush()
    assert len(store.rows) == metrics.registry.get_sample_value("evenkeel_store_written_total") == 2
    assert recorder.waiting == 0


def test_of_a_share_so_many_are_kept_and_the_others_have_an_identifier_too() -> None:
    store = Store()
    recorder = make_recorder(store, Metrics(), rate=1e9, share=0.25)
    identifiers = note(recorder, 4_000)
    recorder.flush()
    assert len(set(identifiers)) == 4_000
    assert {row.id for row in store.rows} < set(identifiers)
    assert abs(len(store.rows) - 1_000) < 220  # eight standard deviations


def test_of_clients_in_turn_each_prediction_is_kept_by_its_own_target() -> None:
    store, manifest = Store(), FakeModel().manifest
    recorder = make_recorder(store, Metrics(), rate=1e9)
    draw, expected = np.random.default_rng(0), {}
    classes = len(manifest.classes)
    clients = {info.name: fit(frequent(info.name), manifest, 4.0) for info in manifest.classes[:2]}
    for _ in range(30):
        for name, terms in clients.items():
            factual, counterfactual = draw.normal(size=(2, classes)).astype(np.float32)
            knobs = Knobs(0.5, 0.25, terms.log_target)
            logits = {"factual_logits": factual, "counterfactual_logits": counterfactual}
            identifier = recorder.note(Owner(name, 5.0), terms, manifest, knobs, winner=1, **logits)
            found = candidates(
                factual[None],
                counterfactual[None],
                log_class_share=manifest.log_class_share(),
                log_target=terms.log_target,
                rectangle=Rectangle(manifest.alpha.minimum, manifest.alpha.maximum, 4.0),
            )
            same = name, manifest.version, 0.5, 0.25, 4.0, terms.target_version, 1
            expected[identifier] = (*same, found[0].pack(classes))
    recorder.flush()
    assert len({row.target for row in store.rows}) == 2
    assert {row.id: (row.client, row.model, *row[4:]) for row in store.rows} == expected
