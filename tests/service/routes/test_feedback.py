"""`POST /feedback` where something is in its way: a database that is lost, and labels of what never was."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.clients import NOBODY, ClientPolicy, fit
from service.prediction_store import KeptPrediction
from service.scoring import Knobs
from tests.service.fakes import make_manifest
from tests.service.routes.conftest import MakeClient
from tests.service.routes.test_clients import ADMIN, add, known, until
from tests.service.routes.test_predict import answer, error, post


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "evenkeel.sqlite"


@pytest.fixture
def served(make_client: MakeClient, path: Path) -> TestClient:
    return make_client(database_url=f"sqlite:///{path}", admin_key="operator")


def test_when_the_file_is_removed_nothing_is_acknowledged_that_is_lost_and_the_last_known_policies_go_on(
    served: TestClient, path: Path
) -> None:
    key = add(served)
    known(served, key)
    before = {"prediction_id": answer(post(served))["prediction_id"], "label": 0}
    assert served.post("/feedback", json=before).json()["accepted"] == 1
    for file in path.parent.glob("evenkeel.sqlite*"):
        file.unlink()
    response = served.post("/feedback", json=before)
    if response.status_code != 200:  # else the tables were made again in between
        error(response, 503, "store_unavailable")
        assert "evenkeel_store_up 0.0" in served.get("/metrics").text
    until(lambda: served.post("/feedback", json=before).status_code == 200)
    assert served.post("/feedback", json=before).json()["refused"][0]["code"] == "unknown_prediction"
    assert served.get("/clients", headers=ADMIN).json() == {"clients": []}
    time.sleep(1.2)  # more than two looks
    assert post(served, Authorization=f"Bearer {key}").status_code == 200
    after = {"prediction_id": answer(post(served))["prediction_id"], "label": 0}
    assert served.post("/feedback", json=after).json()["accepted"] == 1
    assert "evenkeel_store_up 1.0" in served.get("/metrics").text
    new = add(served, "another")
    known(served, new)
    assert post(served, Authorization=f"Bearer {key}").status_code == 401


def made_up(number: int, ahead: float = 0.0) -> dict[str, str | int]:
    """A label of a prediction that looks as if it were made just now, and never was."""
    return {"prediction_id": f"{int((time.time() + ahead) * 1000):012x}{number:014x}", "label": 0}


def test_labels_of_new_predictions_that_never_were_hold_nobody_up(served: TestClient) -> None:
    key = add(served)
    known(served, key)
    own = {"prediction_id": answer(post(served, Authorization=f"Bearer {key}"))["prediction_id"], "label": 0}
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(served.post, "/feedback", json=made_up(number)) for number in range(12)]
        until(lambda: sum(each.done() for each in waiting) == 8)
        assert served.get("/clients", headers=ADMIN).status_code == 200
        accepted = served.post("/feedback", json=own, headers={"Authorization": f"Bearer {key}"})
        assert accepted.json()["accepted"] == 1
        assert sum(each.done() for each in waiting) == 8
        answers = [each.result() for each in waiting]
    limited = [each for each in answers if each.status_code == 429]
    assert len(limited) == 8
    error(limited[0], 429, "rate_limited")
    assert limited[0].headers["Retry-After"] == "3"
    refused = [each.json()["refused"][0]["code"] for each in answers if each.status_code == 200]
    assert refused == ["unknown_prediction"] * 4
    assert served.post("/feedback", json=own, headers=ADMIN).json()["accepted"] == 1


@pytest.mark.parametrize("ahead", [-2.7, 0.0, 2.7])
def test_a_prediction_that_another_process_has_not_written_yet_is_waited_for(ahead: float, served: TestClient) -> None:
    keeping = served.app.service.keeping  # type: ignore[attr-defined]
    late = f"{int((time.time() + ahead) * 1000):012x}{0:014x}"
    row = KeptPrediction(late, "", keeping._manifest.version, time.time(), 1.0, 0.0, 4.0, "", 0, bytes(10))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(served.post, "/feedback", json={"prediction_id": late, "label": 0})
        time.sleep(0.3)
        assert not waiting.done()
        keeping.predictions.write([NOBODY], [row])
        assert waiting.result().json() == {"accepted": 1, "refused": []}


def test_a_prediction_that_never_was_is_waited_for_no_longer_where_a_clock_is_ahead(served: TestClient) -> None:
    begun = time.monotonic()
    receipt = served.post("/feedback", json=made_up(0, ahead=2.5)).json()
    assert receipt["refused"][0]["code"] == "unknown_prediction"
    assert 2.9 < time.monotonic() - begun < 5.4  # seconds: the clock agrees only after 5.5


def test_a_prediction_that_is_forgotten_meanwhile_costs_no_other_its_label(served: TestClient) -> None:
    key = add(served)
    known(served, key)
    own, other = answer(post(served, Authorization=f"Bearer {key}")), answer(post(served))
    labels = [*({"prediction_id": each["prediction_id"], "label": 0} for each in (own, other)), made_up(0)]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(served.post, "/feedback", json=labels, headers=ADMIN)
        time.sleep(0.5)
        assert not waiting.done()
        assert served.delete("/clients/shop", headers=ADMIN).status_code == 204
        receipt = waiting.result().json()
    assert receipt["accepted"] == 1
    assert [(each["position"], each["code"]) for each in receipt["refused"]] == [
        (0, "unknown_prediction"),
        (2, "unknown_prediction"),
    ]
    assert "evenkeel_store_up 1.0" in served.get("/metrics").text


def test_the_first_labels_of_a_new_models_predictions_find_its_classes(served: TestClient) -> None:
    keeping = served.app.service.keeping  # type: ignore[attr-defined]
    for number in range(5):  # whichever comes first, the thread that prepares the database or the label
        manifest = make_manifest(name=f"model-{number}")
        keeping.remember(manifest)
        noted = keeping.recorder.note(
            NOBODY,
            fit(ClientPolicy(), manifest, 4.0),
            manifest,
            Knobs(1.0),
            winner=0,
            factual_logits=np.zeros(len(manifest.classes), np.float32),
            counterfactual_logits=np.zeros(len(manifest.classes), np.float32),
        )
        label = {"prediction_id": noted, "label": manifest.classes[1].name}
        assert served.post("/feedback", json=label).json() == {"accepted": 1, "refused": []}


def test_labels_of_a_model_that_another_process_has_not_made_known_yet_are_asked_for_again(served: TestClient) -> None:
    keeping, manifest = served.app.service.keeping, make_manifest(name="another")  # type: ignore[attr-defined]
    known_one = {"prediction_id": answer(post(served))["prediction_id"], "label": 0}
    early = f"{int(time.time() * 1000):012x}{0:014x}"
    keeping.predictions.write(
        [NOBODY], [KeptPrediction(early, "", manifest.version, time.time(), 1.0, 0.0, 4.0, "", 0, bytes(10))]
    )
    labels = [known_one, {"prediction_id": early, "label": 0}]
    response = served.post("/feedback", json=labels)
    assert "not known to the database yet" in error(response, 503, "store_unavailable")["message"]
    assert response.headers["Retry-After"] == "1"
    keeping.predictions.remember_model(manifest, manifest.version)
    assert served.post("/feedback", json=labels).json()["accepted"] == 2


@pytest.mark.parametrize("label", ["x" * 201, 1.5, True, None, 10**30])
def test_a_label_of_another_form_is_refused_by_its_own_name(served: TestClient, label: object) -> None:
    refused = error(served.post("/feedback", json={"prediction_id": "a", "label": label}), 422, "invalid_parameter")
    assert refused["field"] == "label"
    assert "at most 200 characters or its index" in refused["message"]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b'[{"prediction_id": "a", "prediction_id": "b", "label": 0}]', 422, "prediction_id"),
        (b"[{%s}]" % b",".join(b'"%d": 0' % key for key in range(5000)), 400, "body"),
        (b"[%s]" % b",".join([b'{"prediction_id": "a", "label": "b", "c": "d"}'] * 1000), 400, "body"),
        (b'[{"prediction_id": "%s", "label": 0}]' % (b"a" * 4_000_000), 400, "body"),
    ],
    ids=["a key twice", "many keys", "a key too many in each", "a long name"],
)
def test_labels_that_no_reader_should_have_to_read_are_refused(
    served: TestClient, body: bytes, status: int, field: str
) -> None:
    response = served.post("/feedback", content=body, headers={"Content-Type": "application/json"})
    assert error(response, status, "invalid_parameter" if status == 422 else "invalid_body")["field"] == field


@pytest.mark.parametrize("name", ['a, {[:"\\', "\u00e9" * 200, "\\" * 200, '"' * 200])
def test_as_many_labels_as_there_may_be_are_read_whatever_is_in_their_names(served: TestClient, name: str) -> None:
    labels = [{"prediction_id": "\\" * 64, "label": name[:200]}] * 1000
    for escaped in (True, False):
        content = json.dumps(labels, ensure_ascii=escaped)
        response = served.post("/feedback", content=content, headers={"Content-Type": "application/json"})
        assert (response.status_code, len(response.json()["refused"])) == (200, 1000)


def test_feedback_takes_no_parameters(served: TestClient) -> None:
    assert error(served.post("/feedback?a=1", json=made_up(0)), 422, "invalid_parameter")["field"] == "a"
