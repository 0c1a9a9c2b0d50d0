"""What clients' labels recommend, and when it is worked out: with a database, without HTTP."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from service.callers import Callers
from service.clients import ClientPolicy, Owner
from service.database import Database
from service.errors import StoreUnavailable
from service.metrics import Metrics
from service.objectives import parse_objective
from service.policy_store import Client, PolicyStore
from service.prediction_store import KeptPrediction, PredictionStore
from service.recommendations import Recommendations
from service.replay import Candidates
from tests.service.conftest import CLASSES
from tests.service.fakes import make_manifest

MANIFEST = make_manifest()


class CountingPolicies(PolicyStore):
    """Policies that know how often a client was looked at."""

    looks = 0

    def client(self, name: str) -> Client:
        self.looks += 1
        return super().client(name)


class World:
    """Clients, what they were answered, and what looks at it."""

    def __init__(self, database: Database, max_labels: int = 10) -> None:
        self.policies = CountingPolicies(database, clock=lambda: 0.0)
        self.predictions = PredictionStore(database, clock=count(1000).__next__)
        self.predictions.remember_model(MANIFEST, MANIFEST.version)
        self.callers = Callers(Metrics(), max_labels)
        self.recommendations = Recommendations(
            self.policies, self.predictions, self.callers, parse_objective("balanced"), 4.0
        )
        self._numbers = count()

    def add(self, name: str, **policy: float) -> None:
        self.policies.add(name, ClientPolicy.model_validate(policy), who="ann")
        self.callers.load(self.policies.snapshot())

    def send(self, name: str, samples: int, *, plain_is_right: bool) -> None:
        """Keep so many labelled predictions: the plain class wins below alpha 1, the one after it from there on."""
        kept, labels = [], {}
        for number in range(samples):
            plain, after = number % CLASSES, (number + 1) % CLASSES
            both = Candidates(np.array([plain, after]), np.float32([3, 1]), np.float32([2, 0]))
            identifier = f"{next(self._numbers):026x}"
            packed = both.pack(CLASSES)
            kept.append(
                KeptPrediction(identifier, name, MANIFEST.version, float(number), 0.0, 0.0, 4.0, "", plain, packed)
            )
            labels[identifier] = plain if plain_is_right else after
        self.predictions.write([Owner(name, 0.0)] * samples, kept)
        self.predictions.label(labels)

    def update(self) -> dict[str, float]:
        self.recommendations.update(MANIFEST.version)
        return self.recommendations.alphas(MANIFEST.version)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'evenkeel.sqlite'}")
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


def test_labels_recommend_an_alpha_and_keeping_it_is_one_too(world: World) -> None:
    world.add("rescue", alpha=0)
    world.add("album", alpha=0.25)
    world.send("rescue", 60, plain_is_right=False)
    world.send("album", 60, plain_is_right=True)
    assert world.update() == {"rescue": pytest.approx(2.0), "album": 0.25}


def test_it_stays_within_the_clients_bounds(world: World) -> None:
    world.add("rescue", alpha=0, alpha_max=1.5)
    world.send("rescue", 60, plain_is_right=False)
    assert world.update() == {"rescue": pytest.approx(1.25)}


def test_where_labels_do_not_suffice_nothing_is_recommended(world: World) -> None:
    world.add("few", alpha=0)
    world.add("none", alpha=0)
    world.send("few", 49, plain_is_right=False)
    world.send("", 60, plain_is_right=False)
    assert world.update() == {}
    world.send("few", 1, plain_is_right=False)
    assert world.update() == {"few": pytest.approx(2.0)}


def test_only_what_changed_is_looked_at_again(world: World) -> None:
    world.add("rescue", alpha=0)
    world.add("album", alpha=0)
    for name in ("rescue", "album"):
        world.send(name, 60, plain_is_right=False)
    world.update()
    looks = world.policies.looks
    assert len(world.update()) == 2
    assert world.policies.looks == looks
    world.send("rescue", 1, plain_is_right=True)
    world.update()
    assert world.policies.looks == looks + 1
    world.policies.set("album", {"alpha_max": 1.5}, who="ann")
    world.callers.load(world.policies.snapshot())
    assert world.update()["album"] == pytest.approx(1.25)


def test_a_policy_that_does_not_fit_and_a_client_that_is_gone_have_none(world: World) -> None:
    world.add("rescue", alpha=0)
    world.add("album", alpha=0)
    for name in ("rescue", "album"):
        world.send(name, 60, plain_is_right=False)
    assert world.update().keys() == {"rescue", "album"}
    world.policies.set("rescue", {"alpha": 7}, who="ann")
    world.policies.remove("album", who="ann")
    assert world.update() == {"rescue": pytest.approx(2.0)}  # the policies are not read yet
    world.callers.load(world.policies.snapshot())
    assert world.update() == {}
    assert world.callers.alphas(MANIFEST, 4.0) == {"anonymous": MANIFEST.alpha.default}


def test_clients_without_a_label_of_their_own_have_none(database: Database) -> None:
    world = World(database, max_labels=1)
    world.add("first", alpha=0)
    world.add("second", alpha=0)
    for name in ("first", "second"):
        world.send(name, 60, plain_is_right=False)
    assert world.update().keys() == {"first"}
    assert world.callers.alphas(MANIFEST, 4.0) == {"anonymous": MANIFEST.alpha.default, "first": 0}


def test_what_was_found_stays_while_the_database_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add("rescue", alpha=0)
    world.send("rescue", 60, plain_is_right=False)
    found = world.update()

    def away(_: str) -> None:
        raise StoreUnavailable("gone", remedy="start it")

    monkeypatch.setattr(world.predictions, "label_counts", away)
    with pytest.raises(StoreUnavailable):
        world.update()
    assert world.recommendations.alphas(MANIFEST.version) == found


def test_labels_of_a_former_model_recommend_nothing_for_the_one_that_is_served(world: World) -> None:
    world.add("rescue", alpha=0)
    world.send("rescue", 60, plain_is_right=False)
    assert world.update() == {"rescue": pytest.approx(2.0)}
    assert world.recommendations.alphas("n" * 16) == {}  # at once, before anything is looked at again
    world.recommendations.update("n" * 16)
    assert world.recommendations.alphas("n" * 16) == {}
    assert world.update() == {"rescue": pytest.approx(2.0)}
