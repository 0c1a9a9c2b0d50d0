import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.schemas import ErrorResponse, PredictResponse
from tests.service.fakes import FakeModel, picture
from tests.service.routes.conftest import MakeClient
from tests.service.test_reload import wait_until

PNG = {"Content-Type": "image/png"}


def post(client: TestClient, query: str = "", data: bytes | None = None, **headers: str) -> Any:
    return client.post(f"/predict{query}", content=picture() if data is None else data, headers=PNG | headers)


def answer(response: Any) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    PredictResponse.model_validate(response.json())
    content: dict[str, Any] = response.json()["images"][0]
    return content


def error(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    content: dict[str, Any] = response.json()
    ErrorResponse.model_validate(content)
    assert content["code"] == code
    assert content["remedy"]
    return content


def anonymous(content: Any) -> Any:
    """The answer without what names each prediction."""
    if isinstance(content, list):
        return [anonymous(each) for each in content]
    if isinstance(content, dict):
        return {name: anonymous(value) for name, value in content.items() if name != "prediction_id"}
    return content


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_raw_picture_is_classified(client: TestClient, kind: str) -> None:
    data = picture(0, kind=kind)
    response = client.post("/predict?alpha=0", content=data, headers={"Content-Type": f"image/{kind.lower()}"})
    assert answer(response)["predictions"][0]["index"] == 0


def test_the_answer_names_the_class_and_the_model(client: TestClient, model: FakeModel) -> None:
    response = post(client, "?alpha=0&top_k=1", picture(3))
    (prediction,) = answer(response)["predictions"]
    assert (prediction["label"], prediction["index"], prediction["shot_group"]) == ("class 3", 3, "few")
    assert response.json()["model"] == {"name": "tiny", "version": model.manifest.version}


def test_alpha_moves_the_winner_and_the_plain_winner_stays(client: TestClient) -> None:
    before, after = answer(post(client, "?alpha=0.5")), answer(post(client, "?alpha=1.5"))
    assert (before["predictions"][0]["index"], after["predictions"][0]["index"]) == (0, 1)
    assert before["plain"] == after["plain"] == {"label": "class 0", "index": 0, "shot_group": "many"}
    assert (before["stable_interval"], after["stable_interval"]) == ([0.0, 1.0], [1.0, 3.0])


def test_the_logit_is_the_formula_and_probabilities_sum_to_one(client: TestClient) -> None:
    content = answer(post(client, "?alpha=0.5&prior_strength=0&top_k=5"))
    assert content["predictions"][0]["logit"] == pytest.approx(3 - 0.5 * 2)
    assert sum(each["probability"] for each in content["predictions"]) == pytest.approx(1.0)
    assert content["confounder_cosine"] == pytest.approx(0.5)


def test_prior_strength_moves_the_answer_and_the_plain_winner_alike(client: TestClient) -> None:
    content = answer(post(client, "?alpha=0&prior_strength=4"))
    assert content["prior_strength"] == 4
    assert content["plain"]["index"] == content["predictions"][0]["index"] == 4


def test_without_alpha_the_model_chooses_and_the_answer_says_so(client: TestClient) -> None:
    assert {key: answer(post(client))[key] for key in ("alpha", "alpha_source")} == {
        "alpha": 1.0,
        "alpha_source": "model",
    }
    assert answer(post(client, "?alpha=1"))["alpha_source"] == "request"


def test_lines_come_on_request_and_give_every_answer(client: TestClient, model: FakeModel) -> None:
    assert "lines" not in answer(post(client, "?lines=false"))
    lines = answer(post(client, "?lines=true&alpha=0.3"))["lines"]
    assert (lines["factual_logits"], lines["counterfactual_logits"]) == ([3, 1, 0, 0, 0], [2, 0, 0, 0, 0])
    share = model.manifest.log_class_share()
    for each in answer(post(client, "?alpha=1.25&prior_strength=0.75&top_k=5"))["predictions"]:
        factual, counterfactual = (lines[f"{name}_logits"][each["index"]] for name in ("factual", "counterfactual"))
        assert each["logit"] == pytest.approx(factual - 1.25 * counterfactual - 0.75 * share[each["index"]], abs=1e-12)


def test_lines_may_be_asked_for_in_a_form(client: TestClient) -> None:
    assert answer(client.post("/predict", data={"lines": "true"}, files={"image": picture()}))["lines"]


def test_lines_may_be_asked_for_in_json(client: TestClient) -> None:
    image = {"data": base64.b64encode(picture()).decode()}
    assert answer(client.post("/predict", json={"images": [image], "lines": True}))["lines"]
    error(client.post("/predict", json={"images": [image], "lines": "yes"}), 422, "invalid_parameter")


def test_breakpoints_come_on_request(client: TestClient) -> None:
    assert "breakpoints" not in answer(post(client))
    (only,) = answer(post(client, "?breakpoints=true"))["breakpoints"]
    assert (only["alpha"], only["from"]["index"], only["to"]["index"]) == (1.0, 0, 1)


def test_a_form_holds_several_pictures_each_at_its_alpha(client: TestClient) -> None:
    files = [("image", (f"{winner}.png", picture(winner), "image/png")) for winner in (0, 2, 4)]
    response = client.post("/predict?top_k=1", files=files, data={"alpha": ["0", "1.5", "0.5"]})
    answer(response)
    assert [image["predictions"][0]["index"] for image in response.json()["images"]] == [0, 3, 4]
    assert [image["alpha"] for image in response.json()["images"]] == [0, 1.5, 0.5]


def test_a_form_holds_as_many_pictures_and_knobs_as_a_request_may(make_client: MakeClient) -> None:
    client = make_client(max_images_per_request=200)
    knobs = {"alpha": ["0.5"] * 200, "prior_strength": ["0.25"] * 200, "top_k": "1"}
    response = client.post("/predict", files=[("image", ("a", picture()))] * 200, data=knobs)
    assert {(image["alpha"], image["prior_strength"]) for image in response.json()["images"]} == {(0.5, 0.25)}
    assert len(response.json()["images"]) == 200
    error(client.post("/predict", files=[("image", ("a", picture()))] * 1001), 413, "too_many_images")


def test_one_alpha_of_a_form_serves_all_its_pictures(client: TestClient) -> None:
    files = [("image", ("a.png", picture(), "image/png"))] * 2
    response = client.post("/predict", files=files, data={"alpha": "0.25", "top_k": "2", "breakpoints": "true"})
    assert [image["alpha"] for image in response.json()["images"]] == [0.25, 0.25]
    assert len(answer(response)["predictions"]) == 2
    assert answer(response)["breakpoints"]


def test_a_large_part_of_a_form_needs_no_file_on_disk(client: TestClient) -> None:
    data = picture(size=(1200, 1200), kind="PNG", compress_level=0)
    assert len(data) > 2**21
    assert answer(client.post("/predict", files={"image": ("big.png", data, "image/png")}))


def test_json_holds_several_pictures_each_with_its_knobs(client: TestClient) -> None:
    data = base64.b64encode(picture()).decode()
    images = [{"data": data}, {"data": data, "alpha": 1.5}, {"data": data, "prior_strength": 0.5}]
    response = client.post("/predict", json={"images": images, "alpha": 0, "top_k": 1})
    answer(response)
    found = response.json()["images"]
    assert [image["alpha"] for image in found] == [0, 1.5, 0]
    assert [image["prior_strength"] for image in found] == [0, 0, 0.5]
    assert [image["predictions"][0]["index"] for image in found] == [0, 1, 0]


def test_all_forms_agree(client: TestClient) -> None:
    data = picture(2)
    raw = post(client, "?alpha=0.7&breakpoints=1", data).json()
    form = client.post("/predict?alpha=0.7&breakpoints=1", files={"image": ("a.png", data, "image/png")}).json()
    body = {"images": [{"data": base64.b64encode(data).decode(), "alpha": 0.7}], "breakpoints": True}
    assert anonymous(raw) == anonymous(form) == anonymous(client.post("/predict", json=body).json())


def test_mixed_alphas_share_a_batch_and_equal_separate_requests(make_client: MakeClient, model: FakeModel) -> None:
    client = make_client()
    alphas = [0.0, 0.3, 0.9, 1.1, 2.0, 3.0]
    alone = [answer(post(client, f"?alpha={alpha}")) for alpha in alphas]
    model.batches.clear()
    images = [{"data": base64.b64encode(picture()).decode(), "alpha": alpha} for alpha in alphas]
    together = client.post("/predict", json={"images": images}).json()["images"]
    assert anonymous(together) == anonymous(alone)
    assert model.batches == [len(alphas)]


@pytest.mark.parametrize(
    ("query", "field", "value"),
    [
        ("alpha=3.01", "alpha", 3.01),
        ("alpha=-0.01", "alpha", -0.01),
        ("alpha=nan", "alpha", "nan"),
        ("alpha=inf", "alpha", "inf"),
        ("alpha=1e999", "alpha", "inf"),
        ("alpha=", "alpha", ""),
        ("alpha", "alpha", ""),
        ("alpha=1,5", "alpha", "1,5"),
        ("alpha=0x1", "alpha", "0x1"),
        ("alpha=1_0", "alpha", "1_0"),
        ("alpha=%C2%B2", "alpha", "²"),
        ("alpha=1&alpha=1", "alpha", "1"),
        ("aplha=1", "aplha", "1"),
        ("prior_strength=-1", "prior_strength", -1.0),
        ("prior_strength=4.5", "prior_strength", 4.5),
        ("top_k=0", "top_k", 0),
        ("top_k=6", "top_k", 6),
        ("top_k=2.0", "top_k", "2.0"),
        ("top_k=99999999999", "top_k", 99999999999),
        ("top_k=9999999999999999999", "top_k", "9999999999999999999"),
        ("breakpoints=yes", "breakpoints", "yes"),
        ("alpha=%ff", "query", "alpha=%ff"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name_and_value(
    client: TestClient, model: FakeModel, query: str, field: str, value: object
) -> None:
    content = error(post(client, f"?{query}"), 422, "invalid_parameter")
    assert (content["field"], content["value"]) == (field, value)
    assert not model.batches


DATA = base64.b64encode(picture()).decode()


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"{", 400, "invalid_body", "body"),
        (b"\xff", 400, "invalid_body", "body"),
        (b"[]", 422, "invalid_parameter", "body"),
        (b"{}", 422, "invalid_parameter", "images"),
        (b'{"images": []}', 422, "invalid_parameter", "images"),
        (b'{"images": [%s]}' % b",".join([b'{"data": ""}'] * 5000), 413, "too_many_images", "images"),
        (b'{"images": [{%s}]}' % b",".join(b'"%d": 0' % key for key in range(5000)), 422, "invalid_parameter", "body"),
        (b'{"images": [%s]}' % b",".join([b"0"] * 5000), 422, "invalid_parameter", "body"),
        (b'{"images": [{"data": "%s", "alpha": NaN}]}' % DATA.encode(), 422, "invalid_parameter", "images[0].alpha"),
        (b'{"images": [{"data": "%s", "alpha": "1"}]}' % DATA.encode(), 422, "invalid_parameter", "images[0].alpha"),
        (b'{"images": [{"data": "%s", "alpha": true}]}' % DATA.encode(), 422, "invalid_parameter", "images[0].alpha"),
        (b'{"images": [{"data": "%s"}], "alpha": 3.5}' % DATA.encode(), 422, "invalid_parameter", "alpha"),
        (b'{"images": [{"data": "%s"}], "top_k": 9}' % DATA.encode(), 422, "invalid_parameter", "top_k"),
        (b'{"images": [{"data": "%s"}], "colour": 1}' % DATA.encode(), 422, "invalid_parameter", "colour"),
        (b'{"images": [{"data": "data:image/png;base64,AAAA"}]}', 422, "invalid_parameter", "images[0].data"),
        (b'{"images": [{"data": "AAAA"}]}', 400, "invalid_image", "images[0].data"),
    ],
)
def test_wrong_json_is_refused_by_field(client: TestClient, body: bytes, status: int, code: str, field: str) -> None:
    response = client.post("/predict", content=body, headers={"Content-Type": "application/json; charset=utf-8"})
    assert error(response, status, code)["field"] == field


def test_an_option_in_two_places_is_refused(client: TestClient) -> None:
    body = {"images": [{"data": DATA}], "alpha": 1}
    assert error(client.post("/predict?alpha=1", json=body), 422, "invalid_parameter")["field"] == "alpha"
    form = client.post("/predict?top_k=1", files={"image": ("a", picture())}, data={"top_k": "1"})
    assert error(form, 422, "invalid_parameter")["field"] == "top_k"


@pytest.mark.parametrize(
    ("files", "data", "status", "field"),
    [
        ([("image", ("a", picture()))], {"alpha": ["1", "2"]}, 422, "alpha"),
        ([("image", ("a", picture()))], {"alpha": "x"}, 422, "alpha"),
        ([("image", ("a", picture()))], {"colour": "blue"}, 422, "colour"),
        ([("picture", ("a", picture()))], {}, 422, "picture"),
        ([("alpha", ("a", b"1"))], {}, 422, "alpha"),
        ([("image", (None, b"text"))], {}, 422, "image"),
        ([("image", ("a", picture())), ("image", ("b", b"broken"))], {}, 400, "image[1]"),
    ],
)
def test_a_wrong_form_is_refused_by_field(client: TestClient, files: Any, data: Any, status: int, field: str) -> None:
    response = client.post("/predict", files=files, data=data)
    assert error(response, status, response.json()["code"])["field"] == field


def test_a_picture_sent_as_text_is_told_how_to_be_sent_and_not_sent_back(client: TestClient) -> None:
    refused = error(client.post("/predict", files=[("image", (None, b"\x89PNG"))]), 422, "invalid_parameter")
    assert (refused["value"], refused["field"]) == (None, "image")
    assert "curl -F image=@FILE" in refused["remedy"]


@pytest.mark.parametrize("boundary", ["", "; boundary=x"])
def test_a_form_that_is_none_is_refused(client: TestClient, boundary: str) -> None:
    headers = {"Content-Type": f"multipart/form-data{boundary}"}
    error(client.post("/predict", content=b"nonsense", headers=headers), 400, "invalid_body")


def test_a_form_that_is_cut_off_anywhere_is_refused(client: TestClient) -> None:
    parts = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name, value)
        for name, value in ((b'image"; filename="a', picture()), (b"alpha", b"0"), (b"alpha", b"1.5"))
    )
    two = parts.replace(b'name="alpha"\r\n\r\n0', b'name="image"; filename="b"\r\n\r\n' + picture())
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for form in (parts, two):
        for end in range(len(form) - 120, len(form) + len(b"--x--") + 1):
            response = client.post("/predict", content=(form + b"--x--")[:end], headers=headers)
            if end < len(form) + len(b"--x--"):
                assert "closing boundary" in error(response, 400, "invalid_body")["message"]
    assert response.json()["images"][1]["alpha"] == 1.5


@pytest.mark.parametrize(("coding", "status"), [("gzip", 415), ("br", 415), ("Identity", 200), ("", 200)])
def test_a_compressed_body_is_refused(client: TestClient, coding: str, status: int) -> None:
    answer = client.post("/predict", content=picture(), headers=PNG | {"Content-Encoding": coding})
    assert answer.status_code == status
    if status != 200:
        assert error(answer, 415, "unsupported_media_type")["field"] == "Content-Encoding"


@pytest.mark.parametrize("content_type", ["", "text/plain", "image/gif", "application/x-www-form-urlencoded"])
def test_another_content_type_is_refused_with_those_that_are_served(client: TestClient, content_type: str) -> None:
    response = client.post("/predict", content=b"x", headers={"Content-Type": content_type})
    content = error(response, 415, "unsupported_media_type")
    assert content["field"] == "Content-Type"
    assert "image/png" in content["remedy"]


def test_a_broken_picture_is_refused(client: TestClient) -> None:
    assert error(post(client, data=picture()[:40]), 400, "invalid_image")["field"] == "body"


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_beyond_the_limit_is_refused(make_client: MakeClient, declared: bool) -> None:
    client = make_client(max_body_bytes=1000)
    content: Any = b"x" * 1001 if declared else iter([b"x" * 600] * 2)
    error(client.post("/predict", content=content, headers=PNG), 413, "body_too_large")


def test_too_many_pixels_and_too_many_images_are_refused(make_client: MakeClient) -> None:
    client = make_client(max_image_pixels=100, max_images_per_request=2)
    error(post(client, data=picture(size=(11, 10))), 413, "image_too_large")
    error(client.post("/predict", json={"images": [{"data": DATA}] * 3}), 413, "too_many_images")
    error(client.post("/predict", files=[("image", ("a", picture()))] * 3), 413, "too_many_images")


def test_a_full_queue_answers_429_with_the_seconds_to_wait(make_client: MakeClient, model: FakeModel) -> None:
    client = make_client(max_queue_size=1, max_images_per_request=1, max_batch_size=1)
    model.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(post, client) for _ in range(8)]
        threading.Timer(1.0, model.gate.set).start()
        statuses = [future.result() for future in waiting]
    refused = [response for response in statuses if response.status_code == 429]
    assert len(refused) == 6
    assert int(refused[0].headers["Retry-After"]) >= 1
    error(refused[0], 429, "queue_full")
    assert post(client).status_code == 200


def test_a_late_answer_is_504(make_client: MakeClient, model: FakeModel) -> None:
    client = make_client(request_timeout=0.1)
    model.gate.clear()
    error(post(client), 504, "deadline_exceeded")
    model.gate.set()
    wait_until(lambda: post(client).status_code == 200)  # once the run has ended that lasted too long


def test_a_model_that_fails_is_500_for_its_batch_alone(client: TestClient, model: FakeModel) -> None:
    model.failing = lambda images: bool((images[:, 0, 0, 0] == 40).any())
    error(post(client, data=picture(4)), 500, "inference_failed")
    assert post(client).status_code == 200


def test_predictions_are_counted(client: TestClient) -> None:
    answer(post(client, "?alpha=0"))
    answer(post(client, "?alpha=2", picture(1)))  # 1 is many, 2 is medium
    error(post(client, "?alpha=9"), 422, "invalid_parameter")
    text = client.get("/metrics").text
    for line in (
        'evenkeel_requests_total{route="/predict",status="200"} 2.0',
        'evenkeel_requests_total{route="/predict",status="422"} 1.0',
        'evenkeel_errors_total{code="invalid_parameter"} 1.0',
        'evenkeel_predictions_total{shot_group="many"} 1.0',
        'evenkeel_predictions_total{shot_group="medium"} 1.0',
        'evenkeel_flips_total{from_group="many",to_group="medium"} 1.0',
        'evenkeel_alpha_bucket{le="0.0"} 1.0',
        'evenkeel_stage_seconds_count{stage="total"} 2.0',
        'evenkeel_stage_seconds_count{stage="decode"} 2.0',
        'evenkeel_stage_seconds_count{stage="inference"} 2.0',
        "evenkeel_confounder_cosine_mean 0.5",
        "evenkeel_queue_depth 0.0",
        "evenkeel_ready 1.0",
    ):
        assert line in text.splitlines(), line


@pytest.mark.parametrize(("key", "value"), [("top_k", 2**70), ("zzz", 10**40)])
def test_a_number_that_json_cannot_write_back_is_refused_all_the_same(client: TestClient, key: str, value: int) -> None:
    body = f'{{"images": [{{"data": "aa"}}], "{key}": {value}}}'
    response = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert "bits" in str(error(response, 422, "invalid_parameter")["value"])


@pytest.mark.parametrize("charset", ["unicode_escape", "punycode", "undefined", "no_such_charset"])
def test_a_form_in_an_odd_charset_is_refused(client: TestClient, charset: str) -> None:
    part = b'--XX\r\nContent-Disposition: form-data; name="%s"\r\n\r\n\\ud800\r\n--XX--\r\n'
    for name in (b"alpha", b"\\ud800"):
        content_type = f"multipart/form-data; boundary=XX; charset={charset}"
        response = client.post("/predict", content=part % name, headers={"Content-Type": content_type})
        assert response.status_code in {400, 422}, response.text
        ErrorResponse.model_validate(response.json())


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"alpha": 0, "alpha": 1, "images": [{"data": "%b"}]}', "alpha"),
        (b'{"images": [], "images": [{"data": "%b"}]}', "images"),
        (b'{"images": [{"data": "", "data": "%b"}]}', "data"),
        (b'{"alpha": 1, "\\u0061lpha": 1, "images": [{"data": "%b"}]}', "alpha"),
    ],
)
def test_a_repeated_key_of_json_is_refused_by_name(client: TestClient, body: bytes, field: str) -> None:
    content = body % base64.b64encode(picture())
    response = client.post("/predict", content=content, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["field"]) == (422, field)


def test_a_number_too_long_for_python_is_no_fault_of_the_service(client: TestClient) -> None:
    content = b'{"alpha": %b, "images": [{"data": "%b"}]}' % (b"9" * 5000, base64.b64encode(picture()))
    response = client.post("/predict", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400


@pytest.mark.parametrize("knob", ["alpha", "prior_strength"])
def test_a_negative_zero_is_zero(client: TestClient, knob: str) -> None:
    response = client.post(f"/predict?{knob}=-0", content=picture(), headers={"Content-Type": "image/png"})
    assert b'"%b":0.0' % knob.encode() in response.content


def test_a_key_as_long_as_a_body_is_not_sent_back_whole(client: TestClient) -> None:
    response = client.post("/predict", json={"images": [{"data": DATA}], "x" * 1_000_000: 1})
    assert set(error(response, 422, "invalid_parameter")["field"]) == {"x"}
    assert len(response.content) < 5_000


def test_a_form_of_many_slices_is_read_whole(client: TestClient) -> None:
    pictures = [("image", ("a", picture(winner) + bytes(100_000))) for winner in (1, 3)]
    response = client.post("/predict?alpha=0", files=pictures)
    assert [each["predictions"][0]["index"] for each in response.json()["images"]] == [1, 3]
