from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.activation_maps import ActivationMaps
from service.app import create_app
from service.exhibits import Exhibits
from service.predictor import Explained, Predictor, Tensors, Wants, Work
from service.schemas import ErrorResponse, PredictResponse
from service.scoring import Knobs
from service.settings import Settings
from tests.service.conftest import CLASSES
from tests.service.fakes import FakeModel, picture

WEIGHT = np.random.default_rng(0).normal(size=(CLASSES, 3)).astype(np.float32)
MAPS = ActivationMaps(WEIGHT, np.eye(1, 3, dtype=np.float32), np.array([0, 1], np.float32))


class WatchedModel(FakeModel):
    """The fake model; it notes each run that copies the feature map out."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_maps = 0

    def branches_and_feature_map(self, images: np.ndarray) -> Any:
        self.feature_maps += 1
        return super().branches_and_feature_map(images)


@pytest.fixture
def watched() -> WatchedModel:
    return WatchedModel()


@pytest.fixture
def client(watched: WatchedModel) -> Iterator[TestClient]:
    with ExitStack() as stack:
        app = create_app(Settings(), watched, Exhibits(activation_maps=MAPS))
        yield stack.enter_context(TestClient(app, raise_server_exceptions=False))


def ask(client: TestClient, query: str, **json: Any) -> Any:
    response = client.post(f"/predict{query}", content=picture(3), headers={"Content-Type": "image/png"})
    assert response.status_code == 200, response.text
    PredictResponse.model_validate(response.json())
    return response.json()["images"][0]


def test_an_explanation_is_of_the_winner_at_the_alpha_used_and_at_0_and_of_the_plain_winner(
    client: TestClient,
) -> None:
    maps = ask(client, "?alpha=1.5&explain=true")["activation_maps"]
    assert [(each["index"], each["alpha"]) for each in maps] == [(4, 1.5), (4, 0.0), (3, 0.0)]
    feature_map = np.zeros((3, 8, 8), np.float32)
    feature_map[0] = 30
    for each in maps:
        (expected,) = MAPS.of(feature_map, each["alpha"], [each["index"]])
        np.testing.assert_allclose(each["values"], expected)
        assert each["logit"] == pytest.approx(expected.sum())
        assert each["label"] == f"class {each['index']}"


def test_maps_that_are_the_same_are_given_once(client: TestClient) -> None:
    maps = ask(client, "?alpha=0&explain=true")["activation_maps"]
    assert [(each["index"], each["alpha"]) for each in maps] == [(3, 0.0)]


def test_who_does_not_ask_gets_none_and_no_feature_map_is_fetched(client: TestClient, watched: WatchedModel) -> None:
    plain = ask(client, "?alpha=1.5")
    assert "activation_maps" not in plain
    assert "activation_maps" not in ask(client, "?alpha=1.5&explain=false")
    assert watched.feature_maps == 0
    explained = ask(client, "?alpha=1.5&explain=true")
    assert watched.feature_maps == 1
    for name in ("predictions", "plain", "stable_interval"):
        assert explained[name] == plain[name]


def test_pictures_of_a_form_are_each_explained_at_their_own_alpha(client: TestClient) -> None:
    files = [("image", ("a.png", picture(1), "image/png")), ("image", ("b.png", picture(2), "image/png"))]
    response = client.post("/predict", files=files, data={"alpha": ["0", "2"], "explain": "true"})
    PredictResponse.model_validate(response.json())
    found = [[(each["index"], each["alpha"]) for each in one["activation_maps"]] for one in response.json()["images"]]
    assert found == [[(1, 0.0)], [(3, 2.0), (3, 0.0), (2, 0.0)]]


def test_a_batch_of_those_who_ask_and_those_who_do_not_gives_each_what_it_wants() -> None:
    predictor = Predictor(FakeModel())
    wants: tuple[Wants, ...] = ("score", "explained", "tensors", "feature_map", "score")
    pixels = np.zeros((len(wants), 8, 8, 3), np.uint8)
    pixels[:, 0, 0, 0] = 10 * np.arange(len(wants))
    outcomes = predictor.run([Work(predictor, *each) for each in zip(pixels, [Knobs(0.0)] * 5, wants, strict=True)])
    for index, (outcome, want) in enumerate(zip(outcomes, wants, strict=True)):
        if isinstance(outcome, Tensors):
            assert (want in {"tensors", "feature_map"}, outcome.logits.argmax()) == (True, index)
            continue
        assert isinstance(outcome, Explained) == (want == "explained")
        score = outcome.score if isinstance(outcome, Explained) else outcome
        assert score.ranking[0] == index
        if isinstance(outcome, Explained):
            np.testing.assert_array_equal(outcome.feature_map, pixels[index].transpose(2, 0, 1))


def test_a_bundle_without_its_classifier_says_so() -> None:
    with TestClient(create_app(Settings(), FakeModel()), raise_server_exceptions=False) as client:
        response = client.post("/predict?explain=true", content=picture(), headers={"Content-Type": "image/png"})
        error = ErrorResponse.model_validate(response.json())
        assert (response.status_code, error.field, error.value) == (422, "explain", True)
        assert "exported anew" in str(error.remedy)
