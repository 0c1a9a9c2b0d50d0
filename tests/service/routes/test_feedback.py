"""`POST /feedback` where something is in its way: a database that is lost, and labels of what never was."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.service.routes.conftest import MakeClient
from tests.service.routes.test_clients import ADMIN, add, known, until
from tests.service.routes.test_predict import answer, error, post


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "evenkeel.sqlite"


@pytest.fixture
def served(make_client: MakeClient, path: Path) -> TestClient:
    return make_client(database_url=f"sqlite:///{path}", admin_key="operator")


def test_when_the_file_is_removed_nothing_is_acknowledged_that_is_lost_and_the_service_begins_anew(
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
    until(lambda: post(served, Authorization=f"Bearer {key}").status_code == 401)
    assert served.get("/clients", headers=ADMIN).json() == {"clients": []}
    after = {"prediction_id": answer(post(served))["prediction_id"], "label": 0}
    assert served.post("/feedback", json=after).json()["accepted"] == 1
    assert "evenkeel_store_up 1.0" in served.get("/metrics").text
