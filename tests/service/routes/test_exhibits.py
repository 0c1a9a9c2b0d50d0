from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.exhibits import AccuracyOverAlpha, Exhibits, Sample
from service.schemas import ErrorResponse, EvaluationResponse, SamplesResponse
from service.settings import Settings
from tests.service.fakes import FakeModel, picture

CURVE = {"alpha": [0.0, 3.0], "overall": [0.5, 0.6], "balanced": [0.4, 0.5], "few": [0.1, 0.3]}
EXHIBITS = Exhibits((Sample(picture(3), 3), Sample(picture(0))), 7, AccuracyOverAlpha.model_validate(CURVE))


@pytest.fixture
def showing() -> Iterator[TestClient]:
    with TestClient(create_app(Settings(), FakeModel(), EXHIBITS)) as client:
        yield client


def test_samples_are_listed_with_their_true_class(showing: TestClient) -> None:
    content = showing.get("/samples").json()
    SamplesResponse.model_validate(content)
    assert content["samples"] == [
        {"path": "samples/0.png", "truth": {"label": "class 3", "index": 3, "shot_group": "few"}},
        {"path": "samples/1.png", "truth": None},
    ]


def test_a_sample_is_a_picture_to_predict(showing: TestClient) -> None:
    sample = showing.get("/samples/0.png")
    assert sample.headers["content-type"] == "image/png"
    answer = showing.post("/predict?alpha=0", content=sample.content, headers={"Content-Type": "image/png"}).json()
    assert answer["images"][0]["predictions"][0]["index"] == 3


def test_a_browser_that_has_a_sample_is_told_so(showing: TestClient) -> None:
    tag = showing.get("/samples/0.png").headers["etag"]
    again = showing.get("/samples/0.png", headers={"If-None-Match": f'"other", W/{tag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert showing.get("/samples/1.png", headers={"If-None-Match": tag}).status_code == 200


@pytest.mark.parametrize("number", ["2", "-1", "x", "99999999999999999999", "²"])
def test_a_sample_that_is_not_there_is_refused(showing: TestClient, number: str) -> None:
    response = showing.get(f"/samples/{number}.png")
    assert response.status_code == 404
    error = ErrorResponse.model_validate(response.json())
    assert (error.field, error.value) == ("number", number)
    assert error.remedy == "There are 2 samples, counted from 0; GET /samples lists them."


def test_the_evaluation_is_the_bundles_curve(showing: TestClient) -> None:
    content = showing.get("/model/evaluation").json()
    EvaluationResponse.model_validate(content)
    assert content == {"test_images": 7, "accuracy": CURVE, "average_precision": None}


def test_a_model_without_anything_to_show_says_so(client: TestClient) -> None:
    assert client.get("/samples").json() == {"samples": []}
    assert client.get("/model/evaluation").json() == {"test_images": None, "accuracy": None, "average_precision": None}
