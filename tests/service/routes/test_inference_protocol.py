"""The Open Inference Protocol as HTTP: every path, both forms of tensors, every refusal."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.inference_schemas import (
    InferResponse,
    LiveResponse,
    ModelMetadataResponse,
    ModelReadyResponse,
    ProtocolError,
    ReadyResponse,
    ServerMetadataResponse,
)
from service.long_lists import LONG
from tests.service.fakes import FakeModel
from tests.service.routes.conftest import MakeClient
from tests.service.routes.test_clients import add, bearing, until

INFER = "/v2/models/tiny/infer"


def pixels(*winners: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    images = np.zeros((len(winners), 8, 8, 3), np.uint8)
    images[:, :, :, 0] = np.array(winners)[:, None, None] * 10
    return images


def image(*winners: int, **changes: Any) -> dict[str, Any]:
    images = pixels(*winners)
    return {"name": "image", "datatype": "UINT8", "shape": list(images.shape), "data": images.tolist()} | changes


def knob(name: str, *values: float, **changes: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "FP32", "shape": [len(values)], "data": list(values)} | changes


def infer(client: TestClient, *inputs: dict[str, Any], **rest: Any) -> dict[str, Any]:
    response = client.post(INFER, json={"inputs": list(inputs), **rest})
    assert response.status_code == 200, response.text
    content: dict[str, Any] = response.json()
    InferResponse.model_validate(content)
    return content


def tensor(content: dict[str, Any], name: str) -> Any:
    (found,) = [output for output in content["outputs"] if output["name"] == name]
    return np.array(found["data"]).reshape(found["shape"])


def refused(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    content: dict[str, Any] = response.json()
    ProtocolError.model_validate(content)
    assert content["code"] == code
    assert content["error"] == content["message"]
    return content


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/v2", ServerMetadataResponse),
        ("/v2/health/live", LiveResponse),
        ("/v2/health/ready", ReadyResponse),
        ("/v2/models/tiny", ModelMetadataResponse),
        ("/v2/models/tiny/versions/VERSION", ModelMetadataResponse),
        ("/v2/models/tiny/ready", ModelReadyResponse),
        ("/v2/models/tiny/versions/VERSION/ready", ModelReadyResponse),
    ],
)
def test_every_question_is_answered(client: TestClient, model: FakeModel, path: str, schema: Any) -> None:
    response = client.get(path.replace("VERSION", model.manifest.version))
    assert response.status_code == 200
    schema.model_validate(response.json())


def test_the_metadata_is_the_contract_of_the_bundle(client: TestClient) -> None:
    content = client.get("/v2/models/tiny").json()
    shapes = {tensor["name"]: tensor["shape"] for tensor in content["inputs"] + content["outputs"]}
    assert shapes["image"] == [-1, 8, 8, 3]
    assert shapes["alpha"] == shapes["prior_strength"] == [-1]
    assert shapes["logits"] == shapes["factual_logits"] == shapes["counterfactual_logits"] == [-1, 5]
    assert shapes["confounder_cosine"] == [-1, 2]
    assert shapes["prediction_id"] == [-1, 1]
    assert shapes["feature_map"] == [-1, 3, 8, 8]


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/tiny/versions/1", "/v2/nowhere"])
def test_another_model_or_version_is_not_found_in_the_protocols_form(client: TestClient, path: str) -> None:
    refused(client.get(path), 404, "not_found")


def test_not_ready_is_said_of_the_server_and_of_the_model(client: TestClient) -> None:
    client.app.service.readiness.refuse("The service is shutting down.")  # type: ignore[attr-defined]
    for path in ("/v2/health/ready", "/v2/models/tiny/ready"):
        refused(client.get(path), 503, "not_ready")
    assert client.get("/v2/health/live").status_code == 200


def test_tensors_go_in_and_all_but_the_feature_map_comes_out(client: TestClient, model: FakeModel) -> None:
    content = infer(client, image(0, 3), knob("alpha", 0, 1.5), id="seven")
    assert content["id"] == "seven"
    assert (content["model_name"], content["model_version"]) == ("tiny", model.manifest.version)
    assert [output["name"] for output in content["outputs"]] == [
        "logits",
        "factual_logits",
        "counterfactual_logits",
        "confounder_cosine",
        "prediction_id",
    ]
    assert tensor(content, "logits").argmax(axis=1).tolist() == [0, 4]
    np.testing.assert_allclose(tensor(content, "confounder_cosine"), 0.5)


def test_the_logits_are_the_formula(client: TestClient) -> None:
    strength = 0.5
    content = infer(client, image(0, 1), knob("alpha", 0.5, 2), knob("prior_strength", strength, 0))
    share = client.app.service.predictor.log_class_share  # type: ignore[attr-defined]
    factual, counterfactual = tensor(content, "factual_logits"), tensor(content, "counterfactual_logits")
    expected = factual - np.array([[0.5], [2]]) * counterfactual - np.array([[strength], [0]]) * share
    np.testing.assert_allclose(tensor(content, "logits"), expected, rtol=1e-6)


def test_the_feature_map_comes_on_request(client: TestClient) -> None:
    content = infer(client, image(2), outputs=[{"name": "feature_map"}])
    np.testing.assert_array_equal(tensor(content, "feature_map"), pixels(2).transpose(0, 3, 1, 2))


def test_the_knobs_may_be_parameters_of_the_request_and_the_default_is_the_models(client: TestClient) -> None:
    plain = infer(client, image(0), parameters={"alpha": 0})
    assert tensor(plain, "logits").argmax() == 0
    shifted = infer(client, image(0), parameters={"alpha": 0, "prior_strength": 4})
    assert tensor(shifted, "logits").argmax() == 4
    model_default = infer(client, image(0))
    np.testing.assert_allclose(tensor(model_default, "logits")[0, :2], [1, 1])


def test_flat_data_and_knobs_as_columns_are_the_same(client: TestClient) -> None:
    nested = infer(client, image(1, 2), knob("alpha", 0.5, 2))
    flat = infer(client, image(1, 2, data=pixels(1, 2).ravel().tolist()), knob("alpha", 0.5, 2, shape=[2, 1]))
    assert nested["outputs"][:-1] == flat["outputs"][:-1]


def post_long(client: TestClient, *inputs: dict[str, Any]) -> Any:
    body = json.dumps({"inputs": list(inputs)}, indent=9)
    assert len(body) > LONG
    return client.post(INFER, content=body)


def test_a_long_body_is_read_as_a_short_one(client: TestClient) -> None:
    winners = [number % 4 for number in range(32)]
    alphas = knob("alpha", *(number / 16 for number in range(32)))
    short = infer(client, image(*winners), alphas)
    for data in (pixels(*winners).tolist(), pixels(*winners).ravel().tolist()):
        response = post_long(client, image(*winners, data=data), alphas)
        assert response.status_code == 200, response.text
        assert response.json()["outputs"][:-1] == short["outputs"][:-1]


@pytest.mark.parametrize("wrong", [256, -1, 0.5, "1", True, None, 10**30, [], [1]])
def test_a_wrong_number_of_a_long_body_is_refused_by_its_field(client: TestClient, wrong: object) -> None:
    data: list[Any] = [0] * 192 * 32
    data[5000] = wrong
    content = post_long(client, image(*[0] * 32, data=data)).json()
    assert content["field"] in {"image.data", "body"}
    assert content["code"] == "invalid_parameter"


def test_a_long_list_that_holds_something_else_is_refused_by_its_field(client: TestClient) -> None:
    data = [*[[0] * 64] * 640, ["a"]]
    assert refused(post_long(client, image(0, data=data)), 422, "invalid_parameter")["field"] == "image.data"


def test_where_json_is_broken_is_said_unless_lists_were_set_aside(client: TestClient) -> None:
    broken = b'{"inputs": [{"data": [%b1]}], x}'
    assert "column" in refused(client.post(INFER, content=broken % b""), 400, "invalid_body")["message"]
    said = refused(client.post(INFER, content=broken % (b"1," * LONG)), 400, "invalid_body")["message"]
    assert "cannot be read" in said
    assert "column" not in said


def test_a_ranking_names_value_index_and_label(client: TestClient) -> None:
    wanted = [{"name": "logits", "parameters": {"classification": 2}}]
    content = infer(client, image(1, 3), parameters={"alpha": 0}, outputs=wanted)
    assert content["outputs"] == [
        {
            "name": "logits",
            "datatype": "BYTES",
            "shape": [2, 2],
            "data": ["3.000000:1:class 1", "1.000000:2:class 2", "3.000000:3:class 3", "1.000000:4:class 4"],
        }
    ]


def test_more_rows_than_a_batch_are_split_and_come_back_in_order(make_client: MakeClient, model: FakeModel) -> None:
    client = make_client(max_batch_size=3)
    model.batches.clear()
    winners = [0, 4, 2, 3, 1, 0, 4]
    content = infer(client, image(*winners), parameters={"alpha": 0})
    assert tensor(content, "logits").argmax(axis=1).tolist() == winners
    assert model.batches == [3, 3, 1]


def binary_request(message: dict[str, Any], *parts: bytes) -> dict[str, Any]:
    head = json.dumps(message).encode()
    return {"content": b"".join((head, *parts)), "headers": {"Inference-Header-Content-Length": str(len(head))}}


def binary_image(*winners: int, **changes: Any) -> tuple[dict[str, Any], bytes]:
    raw = pixels(*winners).tobytes()
    described = image(*winners, parameters={"binary_data_size": len(raw)}) | changes
    return {key: value for key, value in described.items() if key != "data"}, raw


def test_binary_tensors_go_in_and_out(client: TestClient) -> None:
    described, raw = binary_image(4, 1)
    alpha = np.array([0, 1.5], "<f4").tobytes()
    column = {"name": "alpha", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": len(alpha)}}
    message = {
        "inputs": [described, column],
        "outputs": [
            {"name": "logits", "parameters": {"binary_data": True}},
            {"name": "confounder_cosine"},
            {"name": "factual_logits", "parameters": {"binary_data": True, "classification": 1}},
        ],
    }
    response = client.post(INFER, **binary_request(message, raw, alpha))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers["Inference-Header-Content-Length"])
    content = json.loads(response.content[:length])
    InferResponse.model_validate(content)
    sizes = [output.get("parameters", {}).get("binary_data_size") for output in content["outputs"]]
    assert sizes == [2 * 5 * 4, None, 2 * (4 + len("3.000000:4:class 4"))]
    logits = np.frombuffer(response.content, "<f4", 10, length).reshape(2, 5)
    assert logits.argmax(axis=1).tolist() == [4, 2]
    assert response.content[length + 40 :].startswith(b"\x12\x00\x00\x003.000000:4:class 4")


def test_binary_data_output_holds_for_all_outputs_that_do_not_say_otherwise(client: TestClient) -> None:
    outputs = [{"name": "logits"}, {"name": "confounder_cosine", "parameters": {"binary_data": False}}]
    message = {"inputs": [image(0)], "outputs": outputs, "parameters": {"binary_data_output": True}}
    response = client.post(INFER, json=message)
    content = json.loads(response.content[: int(response.headers["Inference-Header-Content-Length"])])
    assert ["data" in output for output in content["outputs"]] == [False, True]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [image(0)], "more": 1}, "request.more"),
        ({"inputs": [image(0)], "id": 7}, "id"),
        ({"inputs": [7]}, "inputs[0]"),
        ({"inputs": [knob("alpha", 1)]}, "inputs"),
        ({"inputs": [image(0), image(0)]}, "image"),
        ({"inputs": [image(0), {**image(0), "name": "mask"}]}, "inputs[1].name"),
        ({"inputs": [image(0, datatype="FP32")]}, "image.datatype"),
        ({"inputs": [image(0, shape=[1, 8, 8])]}, "image.shape"),
        ({"inputs": [image(0, shape=[1, 8, 9, 3])]}, "image.shape"),
        ({"inputs": [image(0, shape=[0, 8, 8, 3], data=[])]}, "image.shape"),
        ({"inputs": [image(0, shape=[-1, 8, 8, 3])]}, "image.shape"),
        ({"inputs": [image(0, shape=[True, 8, 8, 3])]}, "image.shape"),
        ({"inputs": [image(0, shape="1883")]}, "image.shape"),
        ({"inputs": [image(0, data=None)]}, "image.data"),
        ({"inputs": [image(0, data=[1, 2])]}, "image.data"),
        ({"inputs": [image(0, data=[[1, 2], [3]])]}, "image.data"),
        ({"inputs": [image(0, data=[0.5] * 192)]}, "image.data"),
        ({"inputs": [image(0, data=[256] * 192)]}, "image.data"),
        ({"inputs": [image(0, data=[-1] * 192)]}, "image.data"),
        ({"inputs": [image(0, data=["1"] * 192)]}, "image.data"),
        ({"inputs": [image(0, data=[True] * 192)]}, "image.data"),
        ({"inputs": [image(0, data=[True, *[1] * 191])]}, "image.data"),
        ({"inputs": [image(0, 1), knob("alpha", True, 1.5)]}, "alpha.data"),
        ({"inputs": [image(0, data=[10**30] * 192)]}, "image.data"),
        ({"inputs": [image(0, data=[[0] * 64] * 3)]}, "image.data"),
        ({"inputs": [image(0, extra=1)]}, "inputs[0].extra"),
        ({"inputs": [image(0, parameters={"shared_memory_region": "r"})]}, "image.parameters"),
        ({"inputs": [image(0, parameters={"binary_data_size": "192"})]}, "image.parameters.binary_data_size"),
        ({"inputs": [image(0, parameters={"binary_data_size": 192})]}, "image"),
        ({"inputs": [image(0), knob("alpha", 9)]}, "alpha[0]"),
        ({"inputs": [image(0), knob("alpha", 1e300)]}, "alpha[0]"),
        ({"inputs": [image(0), knob("alpha", 1, 2)]}, "alpha.shape"),
        ({"inputs": [image(0), knob("alpha", 1, data=["x"])]}, "alpha.data"),
        ({"inputs": [image(0), knob("prior_strength", -1)]}, "prior_strength[0]"),
        ({"inputs": [image(0), knob("alpha", 1)], "parameters": {"alpha": 1}}, "alpha"),
        ({"inputs": [image(0)], "parameters": {"alpha": "1"}}, "parameters.alpha"),
        ({"inputs": [image(0)], "parameters": {"alpha": 9}}, "parameters.alpha"),
        ({"inputs": [image(0)], "parameters": {"priority": 1}}, "parameters.priority"),
        ({"inputs": [image(0)], "parameters": {"timeout": 0}}, "parameters.timeout"),
        ({"inputs": [image(0)], "parameters": {"binary_data_output": 1}}, "parameters.binary_data_output"),
        ({"inputs": [image(0)], "parameters": []}, "parameters"),
        ({"inputs": [image(0)], "outputs": {}}, "outputs"),
        ({"inputs": [image(0)], "outputs": [{"name": "probabilities"}]}, "outputs[0].name"),
        ({"inputs": [image(0)], "outputs": [{"name": "logits"}] * 2}, "logits"),
        (
            {"inputs": [image(0)], "outputs": [{"name": "logits", "parameters": {"classification": 6}}]},
            "logits.parameters.classification",
        ),
        (
            {"inputs": [image(0)], "outputs": [{"name": "confounder_cosine", "parameters": {"classification": 1}}]},
            "confounder_cosine.parameters.classification",
        ),
        ({"inputs": [image(0)], "outputs": [{"name": "logits", "parameters": {"x": 1}}]}, "logits.parameters.x"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_field(client: TestClient, message: Any, field: str) -> None:
    content = refused(client.post(INFER, content=json.dumps(message)), 422, "invalid_parameter")
    assert content["field"] == field
    assert content["remedy"]
    assert content["value"] == 1 or field != "parameters.priority"


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ("1234", '"1234"'),
        ([1, 2], "2 values"),
        ([[1, 2], [3]], "[[1,2],[3]]"),
        ([True, False], "2 values"),
        ([*[0] * 191, True], "true or false"),
        ([*[0] * 191, "untrue"], "texts"),
        ([1.0] * 192, "numbers with a point, or too large"),
        ([10**30] * 192, "numbers with a point, or too large"),
        (["1"] * 192, "texts"),
        ([None] * 192, "null or an object"),
        ([256] * 192, "256 to 256"),
    ],
)
def test_values_that_do_not_fit_are_shown(client: TestClient, data: Any, shown: str) -> None:
    message = {"inputs": [image(0, data=data)]}
    content = refused(client.post(INFER, content=json.dumps(message)), 422, "invalid_parameter")
    assert (content["field"], content["value"]) == ("image.data", shown)


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ([0] * 10_000, "the list has another length"),
        ([*[0] * (192 * 32 - 1), None], "the list has another shape, or holds something else"),
        ([0.5] * (192 * 32), "numbers with a point, or too large"),
    ],
)
def test_values_of_a_long_list_that_do_not_fit_are_told(client: TestClient, data: Any, shown: str) -> None:
    content = post_long(client, image(*[0] * 32, data=data)).json()
    assert (content["field"], content["value"]) == ("image.data", shown)


def test_null_is_what_was_not_set(client: TestClient) -> None:
    described, raw = binary_image(3)
    outputs = [
        {"name": "logits", "parameters": None},
        {"name": "confounder_cosine", "parameters": {"binary_data": None}},
    ]
    unset = {"id": None, "parameters": None, "outputs": outputs}
    plain = infer(client, image(3, parameters=None), **unset)
    message = {"inputs": [described | {"data": None}], **unset}
    assert client.post(INFER, **binary_request(message, raw)).json()["outputs"] == plain["outputs"]
    assert infer(client, image(3), parameters={"alpha": None, "binary_data_output": None}, outputs=None)["outputs"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"parameters": {"alpha": 0, "alpha": 3}, "inputs": [%b]}', "alpha"),
        (b'{"inputs": [], "inputs": [%b]}', "inputs"),
        (b'{"inputs": [%b], "outputs": [{"name": "logits", "name": "logits"}]}', "name"),
        (b'{"id": "a", "inputs": [%b], "id": "b"}', "id"),
    ],
)
def test_a_repeated_key_is_refused_however_long_the_body(client: TestClient, body: bytes, field: str) -> None:
    for count in (1, 32):
        content = client.post(INFER, content=body % json.dumps(image(*[0] * count), indent=9).encode())
        assert (content.json()["code"], content.json()["field"]) == ("invalid_parameter", field)


def test_a_repeated_list_is_refused(client: TestClient) -> None:
    text = json.dumps(image(0))
    twice = text[:-1] + ', "data": [' + "0," * 191 + "0]}"
    assert refused(client.post(INFER, content=f'{{"inputs": [{twice}]}}'), 422, "invalid_parameter")["field"] == "data"


def test_a_query_string_is_refused_by_name(client: TestClient) -> None:
    content = refused(client.post(f"{INFER}?alpha=3", json={"inputs": [image(0)]}), 422, "invalid_parameter")
    assert (content["field"], content["value"], content["remedy"]) == ("alpha", "3", "This address takes none.")


@pytest.mark.parametrize("part", ["parameters", "outputs", "image"])
def test_what_is_nested_too_deep_is_refused(client: TestClient, part: str) -> None:
    for depth in (20, 300, 900):
        nested = "[" * depth + "]" * depth
        text = json.dumps({"inputs": [image(0, data="DEEP" if part == "image" else [0])], part: "DEEP"})
        response = client.post(INFER, content=text.replace('"DEEP"', nested))
        assert response.status_code in {400, 422}, response.text
        ProtocolError.model_validate(response.json())


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"\xff\xfe", b'{"a": NaN}', b"[" * 5000])
def test_what_is_no_json_object_is_refused(client: TestClient, body: bytes) -> None:
    refused(client.post(INFER, content=body), 400, "invalid_body")


@pytest.mark.parametrize("length", ["0", "-1", "x", "²", "999999", "1e3", ""])
def test_a_json_length_that_cannot_be_is_refused(client: TestClient, length: str) -> None:
    headers = [("Inference-Header-Content-Length", length.encode())]
    refused(client.post(INFER, content=b"{}", headers=headers), 400, "invalid_body")


def test_binary_tensors_of_another_size_are_refused(client: TestClient) -> None:
    described, raw = binary_image(0)
    short = client.post(INFER, **binary_request({"inputs": [described]}, raw[:-1]))
    assert refused(short, 400, "invalid_body")["field"] == "image"
    long = client.post(INFER, **binary_request({"inputs": [described]}, raw, b"?"))
    assert refused(long, 400, "invalid_body")["field"] == "body"
    wrong, raw = binary_image(0, parameters={"binary_data_size": 191})
    mismatch = client.post(INFER, **binary_request({"inputs": [wrong]}, raw))
    assert refused(mismatch, 422, "invalid_parameter")["field"] == "image.parameters.binary_data_size"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_knob_that_is_no_number_is_refused(client: TestClient, value: float) -> None:
    described, raw = binary_image(0)
    alpha = {"name": "alpha", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    request = binary_request({"inputs": [described, alpha]}, raw, np.float32(value).tobytes())
    assert refused(client.post(INFER, **request), 422, "invalid_parameter")["field"] == "alpha[0]"


def test_limits_and_errors_are_those_of_predict(make_client: MakeClient, model: FakeModel) -> None:
    client = make_client(max_images_per_request=2, max_body_bytes=20_000, request_timeout=0.2)
    refused(client.post(INFER, json={"inputs": [image(0, 1, 2)]}), 413, "too_many_images")
    refused(client.post(INFER, content=b" " * 20_001), 413, "body_too_large")
    refused(client.post(INFER, json={}, headers={"Content-Encoding": "gzip"}), 415, "unsupported_media_type")
    model.failing = lambda images: True
    refused(client.post(INFER, json={"inputs": [image(0)]}), 500, "inference_failed")
    model.failing = lambda images: False
    model.gate.clear()
    refused(client.post(INFER, json={"inputs": [image(0)]}), 504, "deadline_exceeded")
    model.gate.set()


def test_the_protocols_timeout_is_in_microseconds_and_bounded_by_the_setting(
    make_client: MakeClient, model: FakeModel
) -> None:
    client = make_client(request_timeout=1.0)
    model.gate.clear()
    for timeout in (50_000, 3_600_000_000):
        response = client.post(INFER, json={"inputs": [image(0)], "parameters": {"timeout": timeout}})
        refused(response, 504, "deadline_exceeded")
    model.gate.set()


def test_an_output_too_long_for_json_is_refused_and_comes_as_bytes(client: TestClient, model: FakeModel) -> None:
    model.feature_map_shape = (3, 800, 800)
    asked = {"inputs": [image(0)], "outputs": [{"name": "feature_map"}]}
    assert refused(client.post(INFER, json=asked), 422, "invalid_parameter")["field"] == "feature_map"
    asked["outputs"][0]["parameters"] = {"binary_data": True}
    assert client.post(INFER, json=asked).status_code == 200


def test_predictions_are_counted_as_those_of_predict(client: TestClient) -> None:
    infer(client, image(0, 1), knob("alpha", 0, 3))
    text = client.get("/metrics").text
    assert 'evenkeel_predictions_total{shot_group="many"} 1.0' in text
    assert 'evenkeel_flips_total{from_group="many",to_group="medium"} 1.0' in text
    assert 'evenkeel_requests_total{route="/v2/models/{name}/infer",status="200"} 1.0' in text


@pytest.fixture
def shop(make_client: MakeClient, tmp_path: Path) -> tuple[TestClient, dict[str, str]]:
    """The service with a client of its own policy, and the header that makes it that client."""
    served = make_client(database_url=f"sqlite:///{tmp_path / 'x.sqlite'}", admin_key="operator")
    header = bearing(add(served, "shop", alpha=1.5, alpha_min=1, images_per_second=20))
    until(lambda: infer_as(served, header, image(0)).status_code != 401)
    return served, header


def infer_as(served: TestClient, header: dict[str, str], *inputs: dict[str, Any]) -> Any:
    return served.post(INFER, json={"inputs": list(inputs)}, headers=header)


def test_a_clients_key_brings_its_policy_and_its_rate(shop: tuple[TestClient, dict[str, str]]) -> None:
    served, header = shop
    assert tensor(infer_as(served, header, image(0)).json(), "logits").argmax() == 1
    assert tensor(infer(served, image(0), parameters={"alpha": 0.5}), "logits").argmax() == 0
    refused(infer_as(served, header, image(0), knob("alpha", 0.5)), 422, "invalid_parameter")
    refused(infer_as(served, bearing("no-key"), image(0)), 401, "invalid_key")
    assert 'evenkeel_client_predictions_total{client="shop",shot_group="many"} 2.0' in served.get("/metrics").text
    answers = (infer_as(served, header, image(*[0] * 10)) for _ in range(100))
    limited = next(response for response in answers if response.status_code != 200)
    refused(limited, 429, "rate_limited")
    assert int(limited.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("bounds", [{"alpha_max": 0.1, "alpha": 0}, {"alpha_min": 0.7, "alpha": 1}])
def test_a_clients_own_bound_may_be_sent_in_fp32(
    make_client: MakeClient, tmp_path: Path, bounds: dict[str, float]
) -> None:
    served = make_client(database_url=f"sqlite:///{tmp_path / 'x.sqlite'}", admin_key="operator")
    header = bearing(add(served, "shop", **bounds))
    until(lambda: infer_as(served, header, image(0)).status_code != 401)
    bound = bounds.get("alpha_max", bounds.get("alpha_min", 0))
    within, beyond = (np.float32(bound), np.float32(bound) + (1 if "alpha_max" in bounds else -1) * np.float32(1e-6))
    described, raw = binary_image(0)
    alpha = {"name": "alpha", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    for value, status in ((within, 200), (beyond, 422)):
        request = binary_request({"inputs": [described, alpha]}, raw, value.tobytes())
        request["headers"] |= header
        assert served.post(INFER, **request).status_code == status


def test_predictions_can_be_labelled_and_replayed(shop: tuple[TestClient, dict[str, str]]) -> None:
    served, header = shop
    content = infer_as(served, header, image(0, 3)).json()
    named = tensor(content, "prediction_id")
    assert named.shape == (2, 1)
    labels = [{"prediction_id": str(row[0]), "label": label} for row, label in zip(named, (1, 2), strict=True)]
    assert served.post("/feedback", json=labels, headers=header).json() == {"accepted": 2, "refused": []}
    text = served.get("/metrics").text  # at alpha 1.5 the first is class 1, and the second is not class 2
    assert 'evenkeel_feedback_total{client="shop",outcome="right",shot_group="many"} 1.0' in text
    assert served.get("/clients/shop/tradeoff", headers=header).json()["labels"] == 2


def test_predictions_of_which_the_request_wants_no_name_are_not_kept(client: TestClient) -> None:
    recorder = client.app.service.keeping.recorder  # type: ignore[attr-defined]
    infer(client, image(0), outputs=[{"name": "logits"}])
    recorder.flush()
    assert client.get("/metrics").text.count("evenkeel_store_written_total 0.0") == 1
    infer(client, image(0), outputs=[{"name": "prediction_id"}])
    recorder.flush()
    assert client.get("/metrics").text.count("evenkeel_store_written_total 1.0") == 1


def test_what_is_near_a_breakpoint_is_counted(shop: tuple[TestClient, dict[str, str]]) -> None:
    served, header = shop
    infer_as(served, header, image(0), knob("alpha", 1.05))  # the winner changes at 1
    assert 'evenkeel_client_near_breakpoint_total{client="shop"} 1.0' in served.get("/metrics").text


def test_rows_of_two_batches_are_answered_though_a_neighbour_in_one_asks_for_its_feature_map(
    make_client: MakeClient, model: FakeModel
) -> None:
    client = make_client(max_batch_size=2, max_images_per_request=2)
    batcher = client.app.service.batcher  # type: ignore[attr-defined]

    def until_waiting(count: int) -> None:
        until(lambda: batcher.depth == count)

    with ThreadPoolExecutor(3) as senders:
        model.gate.clear()
        first = senders.submit(infer, client, image(0))
        until(lambda: batcher._running)
        mapped = senders.submit(infer, client, image(0), outputs=[{"name": "feature_map"}])
        until_waiting(1)
        parted = senders.submit(infer, client, image(1, 3), outputs=[{"name": "logits"}])
        until_waiting(3)
        model.gate.set()
        assert tensor(mapped.result(), "feature_map").shape == (1, 3, 8, 8)
        assert tensor(parted.result(), "logits").shape[0] == 2
        assert first.result()
