import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from service import tables
from service.clients import ClientPolicy
from service.database import Database
from service.policy_store import PolicyStore
from service.schemas import ChangesResponse, ClientDetails, ClientsResponse, FeedbackResponse, NewKey, TermsResponse
from tests.service.fakes import FakeModel, picture
from tests.service.routes.conftest import MakeClient
from tests.service.routes.test_predict import answer, error, post

ADMIN = {"Authorization": "Bearer operator"}
CLASSES = [f"class {index}" for index in range(5)]


def bearing(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'evenkeel.sqlite'}"


@pytest.fixture
def served(make_client: MakeClient, url: str) -> TestClient:
    return make_client(database_url=url, admin_key="operator")


def add(served: TestClient, name: str = "shop", **policy: Any) -> str:
    response = served.post("/clients", json={"name": name} | policy, headers=ADMIN)
    assert response.status_code == 201, response.text
    return NewKey.model_validate(response.json()).key


def until(condition: Callable[[], bool], seconds: float = 2.0) -> None:
    """A change reaches every process within two seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def known(served: TestClient, key: str, seconds: float = 20) -> None:
    """Wait for a new key, which a test needs to begin; a machine that stands still gets longer than is promised."""
    until(lambda: post(served, **bearing(key)).status_code != 401, seconds)


def test_two_clients_get_different_winners_for_the_same_picture(served: TestClient) -> None:
    head, tail = add(served, "head", alpha=0.2, alpha_max=0.5), add(served, "tail", alpha=1.5, alpha_min=1)
    known(served, tail)
    answers = [answer(post(served, **bearing(key))) for key in (head, tail)]
    assert [each["predictions"][0]["index"] for each in answers] == [0, 1]
    assert [(each["alpha"], each["alpha_source"]) for each in answers] == [(0.2, "client"), (1.5, "client")]
    asked = answer(post(served, "?alpha=0.4", **bearing(head)))
    assert (asked["alpha"], asked["alpha_source"]) == (0.4, "request")
    assert answer(post(served))["alpha_source"] == "model"
    refused = error(post(served, "?alpha=1.5", **bearing(head)), 422, "invalid_parameter")
    assert (refused["field"], refused["value"]) == ("alpha", 1.5)
    assert "0 and 0.5" in refused["message"]
    assert "1 and 3" in error(post(served, "?alpha=0.5", **bearing(tail)), 422, "invalid_parameter")["message"]


def test_the_second_knob_has_its_default_and_bound_too(served: TestClient) -> None:
    key = add(served, prior_strength=0.25, max_prior_strength=0.5)
    known(served, key)
    assert answer(post(served, **bearing(key)))["prior_strength"] == 0.25
    assert answer(post(served, "?prior_strength=0.5", **bearing(key)))["prior_strength"] == 0.5
    assert "0 and 0.5" in error(post(served, "?prior_strength=1", **bearing(key)), 422, "invalid_parameter")["message"]


def test_a_key_tells_its_terms(served: TestClient) -> None:
    anyone = {"alpha": {"minimum": 0, "maximum": 3, "default": 1}}
    assert served.get("/terms").json()["alpha"] == anyone["alpha"]
    key = add(served, alpha=0.25, alpha_max=0.5, prior_strength=0.25, max_prior_strength=0.5)
    known(served, key)
    response = served.get("/terms", headers=bearing(key))
    TermsResponse.model_validate(response.json())
    assert response.json() == {
        "alpha": {"minimum": 0, "maximum": 0.5, "default": 0.25},
        "prior_strength": {"minimum": 0, "maximum": 0.5, "default": 0.25},
    }
    error(served.get("/terms", headers=bearing("wrong")), 401, "invalid_key")


def test_a_stated_class_distribution_moves_the_answer(served: TestClient) -> None:
    shares = dict.fromkeys(CLASSES, 1.0) | {"class 3": 1e6}
    key = add(served, target_distribution=shares)
    known(served, key)
    assert answer(post(served, "?alpha=0", **bearing(key)))["predictions"][0]["index"] == 3
    assert answer(post(served, "?alpha=0"))["predictions"][0]["index"] == 0
    lines = answer(post(served, "?lines=true", **bearing(key)))["lines"]["factual_logits"]
    assert max(lines) == lines[3]


def test_a_policy_that_does_not_fit_the_model_is_refused_when_it_is_set(served: TestClient) -> None:
    response = served.post("/clients", json={"name": "shop", "alpha": 3.5}, headers=ADMIN)
    assert error(response, 409, "policy_mismatch")["field"] == "alpha"
    add(served, alpha=1)
    for changes, status, code in (
        ({"alpha": 9}, 409, "policy_mismatch"),
        ({"alpha_max": 0.5}, 422, "invalid_parameter"),
        ({"colour": "red"}, 422, "invalid_parameter"),
        ({"target_distribution": {"cat": 1, "dog": 1}}, 409, "policy_mismatch"),
    ):
        error(served.patch("/clients/shop", json=changes, headers=ADMIN), status, code)
    assert served.get("/clients/shop", headers=ADMIN).json()["policy"]["alpha"] == 1


def test_a_policy_that_another_process_set_and_that_does_not_fit_is_named_to_the_client(
    served: TestClient, url: str
) -> None:
    database = Database(url)
    key = PolicyStore(database).add("shop", ClientPolicy(alpha=99), who="cli:ann")
    database.close()
    known(served, key)
    assert error(post(served, **bearing(key)), 409, "policy_mismatch")["value"] == 99


def test_changes_reach_a_running_service_in_time_and_are_kept(served: TestClient, url: str) -> None:
    key = add(served, alpha=0.5)
    known(served, key, seconds=2)
    database = Database(url)
    PolicyStore(database).set("shop", {"alpha": 2.0}, who="cli:ann")
    database.close()
    until(lambda: answer(post(served, **bearing(key)))["alpha"] == 2.0)
    served.patch("/clients/shop", json={"alpha": None}, headers=ADMIN)
    until(lambda: answer(post(served, **bearing(key)))["alpha_source"] == "model")
    details = served.get("/clients/shop", headers=ADMIN).json()
    ClientDetails.model_validate(details)
    assert [(each["who"], each["before"], each["after"]) for each in details["changes"]] == [
        ("http:admin", {"alpha": 2.0}, {}),
        ("cli:ann", {"alpha": 0.5}, {"alpha": 2.0}),
        ("http:admin", None, {"alpha": 0.5}),
    ]


def test_changes_outlive_the_client_and_say_who_made_them(served: TestClient) -> None:
    add(served, alpha=1)
    add(served, "album")
    by_ann = ADMIN | {"X-Changed-By": "ann@example.org"}
    assert served.delete("/clients/shop", headers=by_ann).status_code == 204
    response = served.get("/changes?client=shop", headers=ADMIN)
    ChangesResponse.model_validate(response.json())
    assert [(each["what"], each["who"]) for each in response.json()["changes"]] == [
        ("remove", "http:admin:ann@example.org"),
        ("add", "http:admin"),
    ]
    everyones = served.get("/changes", headers=ADMIN).json()["changes"]
    assert [each["client"] for each in everyones] == ["shop", "album", "shop"]
    error(served.get("/changes"), 403, "admin_only")
    served.patch("/clients/album", json={"alpha": 1}, headers=ADMIN | {"X-Changed-By": "Ünal".encode()})
    (newest,) = served.get("/changes?client=album&limit=1", headers=ADMIN).json()["changes"]
    assert newest["who"] == "http:admin:Ünal"
    for query, field in (
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("cleint=album", "cleint"),
        ("limit=1&limit=2", "limit"),
    ):
        assert error(served.get(f"/changes?{query}", headers=ADMIN), 422, "invalid_parameter")["field"] == field
    for who in ("x" * 101, "", "a\tb"):
        refused = served.patch("/clients/album", json={"alpha": 1}, headers=ADMIN | {"X-Changed-By": who})
        assert error(refused, 422, "invalid_parameter")["field"] == "X-Changed-By"
    assert len(served.get("/changes", headers=ADMIN).json()["changes"]) == 4


@pytest.mark.parametrize("value", [True, "1.5", [1.5]])
@pytest.mark.parametrize("field", ["alpha", "alpha_max", "prior_strength", "images_per_second"])
def test_a_policy_takes_numbers_alone(served: TestClient, field: str, value: object) -> None:
    response = served.post("/clients", json={"name": "shop", field: value}, headers=ADMIN)
    assert error(response, 422, "invalid_parameter")["field"] == field


def test_keys_are_made_revoked_and_never_shown_again(served: TestClient) -> None:
    first = add(served)
    second = NewKey.model_validate(served.post("/clients/shop/keys", headers=ADMIN).json())
    known(served, second.key)
    assert post(served, **bearing(first)).status_code == 200
    assert served.delete(f"/clients/shop/keys/{second.key_id}", headers=ADMIN).status_code == 204
    until(lambda: post(served, **bearing(second.key)).status_code == 401)
    listed = served.get("/clients", headers=ADMIN)
    ClientsResponse.model_validate(listed.json())
    assert first not in listed.text
    error(served.delete(f"/clients/shop/keys/{second.key_id}", headers=ADMIN), 404, "unknown_key")


def test_a_removed_client_is_nobody(served: TestClient) -> None:
    key = add(served)
    known(served, key)
    assert served.delete("/clients/shop", headers=ADMIN).status_code == 204
    until(lambda: post(served, **bearing(key)).status_code == 401)
    error(served.get("/clients/shop", headers=ADMIN), 404, "unknown_client")


@pytest.mark.parametrize(("query", "field"), [("objektive=overall", "objektive"), ("knobs=both&knobs=alpha", "knobs")])
def test_a_question_that_is_misspelt_is_not_answered_as_another(served: TestClient, query: str, field: str) -> None:
    add(served)
    response = served.get(f"/clients/shop/tradeoff?{query}", headers=ADMIN)
    assert error(response, 422, "invalid_parameter")["field"] == field


def test_names_are_checked_and_unique(served: TestClient) -> None:
    add(served)
    error(served.post("/clients", json={"name": "shop"}, headers=ADMIN), 409, "client_exists")
    for name in ("", "a b", "../x", "-x", 5, None, "x" * 65, "anonymous", "other"):
        assert error(served.post("/clients", json={"name": name}, headers=ADMIN), 422, "invalid_parameter")["field"]
    error(served.post("/clients", content=b"{", headers=ADMIN), 400, "invalid_body")
    error(served.post("/clients", content=b"[]", headers=ADMIN), 400, "invalid_body")


@pytest.mark.parametrize("path", ["/clients", "/clients/shop"])
def test_the_operators_routes_need_the_operators_key(served: TestClient, path: str) -> None:
    key = add(served)
    for headers in ({}, bearing("wrong"), bearing(key)):
        error(served.get(path, headers=headers), 403, "admin_only")
    error(served.get(path, headers={"Authorization": "Basic b3BlcmF0b3I="}), 401, "invalid_key")


def test_without_an_operators_key_they_stay_closed_and_say_why(make_client: MakeClient, url: str) -> None:
    closed = make_client(database_url=url)
    assert "EVENKEEL_ADMIN_KEY" in error(closed.get("/clients", headers=bearing("")), 403, "admin_only")["remedy"]


def test_the_operators_key_may_be_set_as_its_hash(make_client: MakeClient, url: str) -> None:
    from service.keys import hash_key

    served = make_client(database_url=url, admin_key=f"sha256:{hash_key('operator')}")
    assert served.get("/clients", headers=ADMIN).status_code == 200


def test_with_authentication_every_prediction_needs_a_valid_key(make_client: MakeClient, url: str) -> None:
    served = make_client(database_url=url, admin_key="operator", authentication="on")
    key = add(served)
    known(served, key)
    for headers in ({}, bearing("wrong"), {"Authorization": "Basic eDp5"}):
        response = post(served, **headers)
        error(response, 401, "invalid_key")
        assert response.headers["WWW-Authenticate"] == "Bearer"
        error(served.post("/feedback", json=[], headers=headers), 401, "invalid_key")
    assert served.get("/healthz").status_code == served.get("/readyz").status_code == 200


def test_a_wrong_key_is_never_taken_for_no_key(served: TestClient) -> None:
    error(post(served, **bearing("wrong")), 401, "invalid_key")


def test_a_key_in_another_form_is_never_taken_for_no_key(served: TestClient) -> None:
    key = add(served)
    known(served, key)
    for header in (key, f"Basic {key}", "Basic eDp5", f"Token {key}", "Bearer", "Bearer ", ""):
        refused = error(post(served, Authorization=header), 401, "invalid_key")
        assert "no bearer token" in refused["message"]
        assert "Authorization: Bearer KEY" in refused["remedy"]
        error(served.post("/feedback", json=[], headers={"Authorization": header}), 401, "invalid_key")
    assert post(served, Authorization=f"bearer {key}").status_code == 200


def test_a_client_sends_as_many_images_as_it_may_and_others_do_not_notice(served: TestClient) -> None:
    key = add(served, images_per_second=2)
    known(served, key)
    answers = [post(served, **bearing(key)) for _ in range(4)]
    limited = [each for each in answers if each.status_code == 429]
    assert limited
    error(limited[0], 429, "rate_limited")
    assert 1 <= int(limited[0].headers["Retry-After"]) <= 2
    assert post(served).status_code == 200
    metrics = served.get("/metrics").text
    assert 'evenkeel_rejected_images_total{reason="rate_limited"}' in metrics


def test_clients_have_series_of_their_own_up_to_a_number(make_client: MakeClient, url: str) -> None:
    served = make_client(database_url=url, admin_key="operator", max_client_labels=1)
    keys = [add(served, name) for name in ("first", "second", "third")]
    known(served, keys[-1])
    for key in keys:
        assert post(served, "?alpha=1.05", **bearing(key)).status_code == 200
    metrics = served.get("/metrics").text
    clients = {line.split('client="')[1].split('"')[0] for line in metrics.splitlines() if 'client="' in line}
    assert clients == {"anonymous", "first", "other"}
    assert 'evenkeel_client_flips_total{client="other"} 2.0' in metrics or 'client="other"} 3.0' in metrics
    assert 'evenkeel_client_near_breakpoint_total{client="first"} 1.0' in metrics


def labels_shown(served: TestClient) -> set[str]:
    lines = served.get("/metrics").text.splitlines()
    return {line.split('client="')[1].split('"')[0] for line in lines if 'client="' in line}


def test_a_removed_clients_series_go_and_its_label_is_the_next_oldest_ones(make_client: MakeClient, url: str) -> None:
    served = make_client(database_url=url, admin_key="operator", max_client_labels=2)
    keys = {name: add(served, name) for name in ("first", "second", "third", "fourth")}
    known(served, keys["fourth"])
    for key in keys.values():
        assert post(served, **bearing(key)).status_code == 200
    assert labels_shown(served) == {"anonymous", "first", "second", "other"}
    assert served.delete("/clients/first", headers=ADMIN).status_code == 204
    until(lambda: labels_shown(served) == {"anonymous", "second", "third", "other"})
    assert post(served, **bearing(keys["third"])).status_code == 200
    metrics = served.get("/metrics").text
    assert 'evenkeel_client_alpha_count{client="second"} 1.0' in metrics
    assert 'evenkeel_client_alpha_count{client="third"} 1.0' in metrics
    assert 'evenkeel_client_alpha_count{client="other"} 3.0' in metrics


def test_which_clients_have_series_is_the_same_in_every_process(make_client: MakeClient, url: str) -> None:
    served = make_client(database_url=url, admin_key="operator", max_client_labels=1)
    keys = {name: add(served, name) for name in ("b", "a")}
    known(served, keys["a"])
    served.delete("/clients/b", headers=ADMIN)
    add(served, "b")
    until(lambda: labels_shown(served) == {"anonymous", "a", "other"})
    later = make_client(database_url=url, admin_key="operator", max_client_labels=1)
    known(later, keys["a"])
    assert labels_shown(later) == {"anonymous", "a", "other"}


def label(served: TestClient, content: Any, **headers: str) -> dict[str, Any]:
    response = served.post("/feedback", json=content, headers=headers)
    assert response.status_code == 200, response.text
    FeedbackResponse.model_validate(response.json())
    body: dict[str, Any] = response.json()
    return body


def test_labels_are_taken_one_or_many_late_and_repeatedly(served: TestClient) -> None:
    first, second = (answer(post(served))["prediction_id"] for _ in range(2))
    assert label(served, {"prediction_id": first, "label": "class 0"}) == {"accepted": 1, "refused": []}
    many = [{"prediction_id": first, "label": 1}, {"prediction_id": second, "label": "class 4"}]
    assert label(served, many)["accepted"] == 2
    metrics = served.get("/metrics").text
    assert 'evenkeel_feedback_total{client="anonymous",outcome="wrong",shot_group="few"} 1.0' in metrics


def test_unknown_predictions_and_labels_are_named_one_by_one(served: TestClient) -> None:
    known_id = answer(post(served))["prediction_id"]
    content = [
        {"prediction_id": "nonsense", "label": "class 0"},
        {"prediction_id": known_id, "label": "cat"},
        {"prediction_id": known_id, "label": 5},
        {"prediction_id": known_id, "label": "class 2"},
    ]
    body = label(served, content)
    assert body["accepted"] == 1
    assert [(each["position"], each["label"], each["code"]) for each in body["refused"]] == [
        (0, "class 0", "unknown_prediction"),
        (1, "cat", "unknown_label"),
        (2, 5, "unknown_label"),
    ]


def test_one_that_is_no_label_does_not_refuse_the_others(served: TestClient) -> None:
    first, second = (answer(post(served))["prediction_id"] for _ in range(2))
    content = [
        {"prediction_id": first, "label": 1.5},
        {"prediction_id": first, "label": "class 2"},
        7,
        {"prediction_id": "nonsense", "label": 0},
        {"prediction_id": 5, "label": True},
        {"prediction_id": second, "label": 3, "colour": "red"},
        {"prediction_id": second, "label": 3},
    ]
    body = label(served, content)
    assert body["accepted"] == 2
    assert [(each["position"], each["prediction_id"], each["label"], each["code"]) for each in body["refused"]] == [
        (0, first, None, "malformed"),
        (2, None, None, "malformed"),
        (3, "nonsense", 0, "unknown_prediction"),
        (4, None, None, "malformed"),
        (5, second, 3, "malformed"),
    ]
    assert "colour" in body["refused"][-1]["message"]
    assert error(served.post("/feedback", json=[7, 8]), 422, "invalid_parameter")["remedy"].startswith("The first: ")


def test_of_two_labels_of_one_prediction_the_last_is_kept(served: TestClient, url: str) -> None:
    identifier = answer(post(served))["prediction_id"]
    both = [{"prediction_id": identifier, "label": truth} for truth in (0, 3)]
    assert label(served, both) == {"accepted": 2, "refused": []}
    database = Database(url)
    with database.reading() as connection:
        assert connection.execute(select(tables.labels.c.label)).scalars().all() == [3]
    database.close()


def test_a_client_labels_its_own_predictions_and_the_operator_anyones(served: TestClient) -> None:
    key = add(served)
    known(served, key)
    own = {"prediction_id": answer(post(served, **bearing(key)))["prediction_id"], "label": 0}
    assert label(served, own, **ADMIN)["accepted"] == 1
    assert label(served, own, **bearing(key))["accepted"] == 1
    assert label(served, own)["refused"][0]["code"] == "unknown_prediction"


@pytest.mark.parametrize("content", [[], "text", [{"label": 1}], {"prediction_id": "x", "label": 1.5}, [[]]])
def test_a_body_that_holds_no_labels_is_refused(served: TestClient, content: Any) -> None:
    response = served.post("/feedback", json=content)
    assert response.status_code in {400, 422}
    assert response.json()["remedy"]


def test_what_is_not_sampled_is_not_kept(make_client: MakeClient, url: str) -> None:
    served = make_client(database_url=url, kept_share=0)
    identifier = answer(post(served))["prediction_id"]
    assert label(served, {"prediction_id": identifier, "label": 0})["refused"][0]["code"] == "unknown_prediction"


def test_every_picture_of_a_request_has_an_identifier_of_its_own(served: TestClient) -> None:
    files = [("image", ("a.png", picture(), "image/png"))] * 3
    images = served.post("/predict", files=files).json()["images"]
    assert len({each["prediction_id"] for each in images}) == 3


@pytest.fixture
def away(make_client: MakeClient, tmp_path: Path) -> TestClient:
    """A service whose database was never there."""
    (tmp_path / "file").write_text("")
    return make_client(database_url=f"sqlite:///{tmp_path / 'file' / 'x.sqlite'}", admin_key="operator", store_buffer=2)


def test_why_the_database_is_away_is_for_the_log_and_no_client(away: TestClient, caplog: Any) -> None:
    response = away.post("/feedback", json={"prediction_id": "x", "label": 0})
    assert error(response, 503, "store_unavailable")["message"] == "The database cannot be used."
    assert "The database cannot be used. unable to open database file" in caplog.text


def test_without_a_database_predictions_go_on_and_metrics_say_so(away: TestClient, model: FakeModel) -> None:
    for _ in range(3):
        assert post(away).status_code == 200
    metrics = away.get("/metrics").text
    assert "evenkeel_store_up 0.0" in metrics
    assert "evenkeel_store_waiting 2.0" in metrics
    assert "evenkeel_store_dropped_total 1.0" in metrics
    for response in (
        away.get("/clients", headers=ADMIN),
        away.post("/feedback", json={"prediction_id": "x", "label": 0}),
        post(away, **bearing("some key")),
    ):
        error(response, 503, "store_unavailable")
        assert int(response.headers["Retry-After"]) > 0


def test_where_keys_are_needed_the_service_is_not_ready_before_it_has_read_them(
    make_client: MakeClient, tmp_path: Path
) -> None:
    blocked = tmp_path / "folder"
    blocked.write_text("")
    waiting = make_client(database_url=f"sqlite:///{blocked / 'x.sqlite'}", authentication=True)
    assert "keys could not be read" in error(waiting.get("/readyz"), 503, "not_ready")["message"]
    blocked.unlink()
    until(lambda: waiting.get("/readyz").status_code == 200)
