"""Studies over the network are bounded and remembered: how often one is made, and who has to come again."""

import asyncio
import threading
from collections.abc import Iterator
from itertools import count

import pytest

from service.clients import ClientPolicy
from service.errors import RateLimited, UnknownClient
from service.manifest import ManifestDraft
from service.objectives import parse_objective
from service.policy_store import Client
from service.prediction_store import LabelCount
from service.studies import Studies
from tests.service.fakes import make_detection_manifest

MODEL = "m" * 16
OVERALL, BALANCED = parse_objective("overall"), parse_objective("balanced")


class Stores:
    """Policies and predictions in one; they count the studies begun, and hold them up while the gate is shut."""

    def __init__(self) -> None:
        self.policy, self.labels, self.begun = ClientPolicy(), LabelCount(1, 1.0), 0
        self.manifest: ManifestDraft | None = make_detection_manifest()  # of which nothing more is asked
        self.gate = threading.Event()
        self.gate.set()

    def client(self, name: str) -> Client:
        if name == "gone":
            raise UnknownClient("There is no client of this name.")
        return Client(name, self.policy, 0.0, ())

    def label_count(self, client: str, model: str) -> LabelCount:
        return self.labels

    def model(self, version: str) -> ManifestDraft | None:
        self.begun += 1
        assert self.gate.wait(10)
        return self.manifest


@pytest.fixture
def stores() -> Stores:
    return Stores()


@pytest.fixture
def studies(stores: Stores) -> Iterator[Studies]:
    studies = Studies(stores, stores, 4.0)
    yield studies
    stores.gate.set()
    studies.close()


async def test_a_study_is_made_again_only_when_what_it_is_made_of_or_asked_for_has_changed(
    studies: Studies, stores: Stores
) -> None:
    async def begun() -> int:
        assert (await studies.of("shop", OVERALL, "alpha", MODEL)).client == "shop"
        return stores.begun

    assert [await begun(), await begun()] == [1, 1]
    stores.labels = LabelCount(2, 2.0)
    assert [await begun(), await begun()] == [2, 2]
    stores.policy = ClientPolicy(alpha=1)
    assert await begun() == 3
    await studies.of("shop", BALANCED, "alpha", MODEL)
    await studies.of("shop", OVERALL, "both", MODEL)
    assert stores.begun == 5
    assert await begun() == 5
    await studies.of("shop", OVERALL, "alpha", "n" * 16)
    assert stores.begun == 6


async def test_what_is_said_of_a_model_that_the_database_does_not_know_yet_is_not_remembered(
    studies: Studies, stores: Stores
) -> None:
    stores.manifest, known = None, stores.manifest
    assert (
        await studies.of("shop", OVERALL, "alpha", MODEL)
    ).keep == f"the database does not know the model {MODEL} yet"
    stores.manifest = known
    assert (await studies.of("shop", OVERALL, "alpha", MODEL)).model == MODEL
    assert stores.begun == 2


async def test_as_many_as_are_remembered_and_no_more(studies: Studies, stores: Stores) -> None:
    for number in range(65):
        await studies.of(f"client {number}", OVERALL, "alpha", MODEL)
    await studies.of("client 64", OVERALL, "alpha", MODEL)
    assert stores.begun == 65
    await studies.of("client 0", OVERALL, "alpha", MODEL)
    assert stores.begun == 66


async def test_one_of_a_client_at_a_time_and_whoever_leaves_does_not_begin_another(
    studies: Studies, stores: Stores
) -> None:
    stores.gate.clear()
    first = asyncio.create_task(studies.of("shop", OVERALL, "alpha", MODEL))
    for _ in count():
        if stores.begun:
            break
        await asyncio.sleep(0.01)
    with pytest.raises(RateLimited, match="worked out already"):
        await studies.of("shop", BALANCED, "both", MODEL)
    other = asyncio.create_task(studies.of("other", OVERALL, "alpha", MODEL))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    with pytest.raises(RateLimited):
        await studies.of("shop", OVERALL, "alpha", MODEL)
    assert stores.begun == 1
    stores.gate.set()
    assert (await other).client == "other"
    assert (await studies.of("shop", OVERALL, "alpha", MODEL)).client == "shop"


async def test_what_fails_gives_its_place_back(studies: Studies) -> None:
    for _ in range(2):
        with pytest.raises(UnknownClient):
            await studies.of("gone", OVERALL, "alpha", MODEL)
