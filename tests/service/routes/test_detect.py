"""`POST /predict` and its neighbours while a detector is served."""

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco
from PIL import Image
from starlette.testclient import TestClient

from service.app import create_app
from service.detection_schemas import DetectResponse
from service.exhibits import Exhibits, PrecisionOverAlpha, Sample
from service.inference_schemas import InferResponse, ModelMetadataResponse
from service.reload import Loaded
from service.routes import detect, infer_answer
from service.schemas import EvaluationResponse, ModelResponse, SamplesResponse, TermsResponse
from service.settings import Settings
from service.tensors import split_message
from tests.service.fakes import FakeDetector, FakeModel, picture
from tests.service.routes.test_predict import PNG, error
from tests.service.tiny_detector import BOXES, HEIGHT, ROWS, SCORES, SIDE, SLOPES, WIDTH

ADMIN = {"Authorization": "Bearer the operator's key"}
CURVES = {"alpha": [0.0, 1.5], "box": {"AP": [0.3, 0.4], "APr": [None, None]}, "mask": {"AP": [0.2, 0.3]}}
EXHIBITS = Exhibits((Sample(picture(3)),), 7, average_precision=PrecisionOverAlpha.model_validate(CURVES))


@pytest.fixture
def detector() -> Iterator[FakeDetector]:
    detector = FakeDetector()
    yield detector
    detector.gate.set()


@pytest.fixture
def make_client(detector: FakeDetector, tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    clients: list[TestClient] = []

    def make(**settings: Any) -> TestClient:
        kept = {"database_url": f"sqlite:///{tmp_path / 'x.sqlite'}", "admin_key": "the operator's key"}
        app = create_app(Settings(**kept, **settings), detector, EXHIBITS)
        client = TestClient(app, raise_server_exceptions=False)
        clients.append(client)
        return client.__enter__()

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client()


def red(size: tuple[int, int] = (WIDTH, HEIGHT), value: int = 255, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(buffer, kind, **options)
    return buffer.getvalue()


def post(client: TestClient, query: str = "", data: bytes | None = None, **headers: str) -> Any:
    return client.post(f"/predict{query}", content=red() if data is None else data, headers=PNG | headers)


def answer(response: Any) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    DetectResponse.model_validate(response.json())
    content: dict[str, Any] = response.json()["images"][0]
    return content


def expected_scores(alpha: float, redness: float = 1.0) -> list[float]:
    return sorted(((SCORES + alpha * SLOPES) * redness).clip(0, 1).tolist(), reverse=True)


def test_the_answer_says_what_is_where_and_how_sure(client: TestClient, detector: FakeDetector) -> None:
    response = post(client, "?alpha=0")
    content = answer(response)
    assert response.json()["model"] == {"name": "tiny-detector", "version": detector.manifest.version}
    assert (content["alpha"], content["alpha_source"]) == (0, "request")
    assert (content["width"], content["height"]) == (WIDTH, HEIGHT)
    best = content["detections"][0]
    assert (best["label"], best["index"], best["shot_group"]) == ("person", 0, "many")
    assert best["box"] == pytest.approx((BOXES[0] * [WIDTH, HEIGHT, WIDTH, HEIGHT]).tolist())
    scores = [each["score"] for each in content["detections"]]
    assert scores == pytest.approx([score for score in expected_scores(0) if score > 0.05])


def test_alpha_changes_scores_and_what_is_found(client: TestClient) -> None:
    found = {alpha: answer(post(client, f"?alpha={alpha}"))["detections"] for alpha in (0, 3)}
    assert [len(each) for each in found.values()] == [4, 5]
    rare = [max(each["score"] for each in some if each["shot_group"] == "few") for some in found.values()]
    assert rare == pytest.approx([0.3, 0.9])


def test_boxes_and_masks_lie_in_the_pictures_own_pixels(client: TestClient, detector: FakeDetector) -> None:
    width, height = 300, 100
    content = answer(post(client, "?alpha=0", red((width, height))))
    assert detector.runs == [((11, WIDTH), 0.0)]  # 10.67 rows
    for each in content["detections"]:
        x1, y1, x2, y2 = each["box"]
        assert each["mask"]["size"] == [height, width]
        mask = coco.decode(each["mask"])
        assert mask.shape == (height, width)
        rows, columns = np.nonzero(mask)
        assert x1 - 0.5 <= columns.min() <= columns.max() + 1 <= x2 + 0.5
        assert y1 - 0.5 <= rows.min() <= rows.max() + 1 <= y2 + 0.5
    best = content["detections"][0]
    assert best["box"] == pytest.approx((BOXES[0] * [width, height, width, height]).tolist(), rel=1e-5)


def test_a_picture_that_was_not_held_upright_is_answered_upright(client: TestClient) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    response = client.post(
        "/predict", content=red((40, 30), kind="JPEG", exif=turned), headers={"Content-Type": "image/jpeg"}
    )
    content = answer(response)
    assert (content["width"], content["height"]) == (30, 40)


def test_options_leave_out_what_is_not_wanted(client: TestClient) -> None:
    assert len(answer(post(client, "?alpha=0&top_k=2"))["detections"]) == 2
    assert [each["score"] for each in answer(post(client, "?alpha=0&score_threshold=0.4"))["detections"]] == (
        pytest.approx([0.9, 0.5])
    )
    assert answer(post(client, "?score_threshold=1"))["detections"] == []
    without = answer(post(client, "?masks=false"))["detections"]
    assert without
    assert not any("mask" in each for each in without)


def test_masks_that_pass_too_many_columns_are_refused_with_what_to_do(
    client: TestClient, detector: FakeDetector
) -> None:
    def checker(outputs: Any) -> None:
        outputs["boxes"][:] = (0, 0, WIDTH, HEIGHT)
        outputs["masks"][:] = np.indices((SIDE, SIDE)).sum(axis=0) % 2

    detector.spoil = checker
    files = [("image", (f"{number}.png", red((16_384, 1)), "image/png")) for number in range(32)]
    asked = {"score_threshold": "0"}
    refused = error(client.post("/predict", files=files, data=asked), 413, "answer_too_large")
    assert refused["field"] == "masks"
    assert refused["message"].startswith("The masks of image[0] ")
    assert "masks=false" in refused["remedy"]
    for remedy in ({"masks": "false"}, {"top_k": "1"}):
        assert client.post("/predict", files=files, data=asked | remedy).status_code == 200
    assert answer(client.post("/predict", files=files[:1], data=asked))["detections"][0]["mask"]
    assert client.get("/readyz").status_code == 200
    assert "evenkeel_failed_batches_total 0.0" in client.get("/metrics").text


def test_a_black_picture_holds_nothing(client: TestClient) -> None:
    assert answer(post(client, data=red(value=0)))["detections"] == []


def test_a_form_holds_pictures_of_any_size_each_at_its_alpha(client: TestClient, detector: FakeDetector) -> None:
    sizes = [(32, 24), (64, 12), (7, 90)]
    files = [("image", (f"{width}.png", red((width, height)), "image/png")) for width, height in sizes]
    response = client.post("/predict", files=files, data={"alpha": ["0", "1.5", "3"], "masks": "false", "top_k": "1"})
    answer(response)
    images = response.json()["images"]
    assert [(image["width"], image["height"]) for image in images] == sizes
    assert [image["alpha"] for image in images] == [0, 1.5, 3]
    for image, (width, height) in zip(images, sizes, strict=True):
        (best,) = image["detections"]
        assert best["score"] == pytest.approx(expected_scores(image["alpha"])[0], rel=1e-5)
        scale = np.array([width, height, width, height])
        assert best["box"] in [pytest.approx(box, rel=1e-4) for box in (BOXES * scale).tolist()]
    assert [run[0] for run in detector.runs] == [(24, 32), (6, 32), (24, 2)]


def test_json_agrees_with_raw_and_takes_an_alpha_for_each_picture(client: TestClient) -> None:
    data = base64.b64encode(red((50, 20))).decode()
    body = {"images": [{"data": data}, {"data": data, "alpha": 2}], "alpha": 0.5, "top_k": 3, "score_threshold": 0.1}
    response = client.post("/predict", json=body)
    raw = [post(client, f"?alpha={alpha}&top_k=3&score_threshold=0.1", red((50, 20))) for alpha in (0.5, 2)]
    assert response.json()["images"] == [answer(each) for each in raw]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("?prior_strength=1", "prior_strength"),
        ("?breakpoints=true", "breakpoints"),
        ("?lines=true", "lines"),
        ("?explain=true", "explain"),
        ("?score_threshold=1.1", "score_threshold"),
        ("?score_threshold=-0.1", "score_threshold"),
        ("?score_threshold=low", "score_threshold"),
        ("?top_k=0", "top_k"),
        ("?top_k=6", "top_k"),
        ("?top_k=1000000000", "top_k"),
        ("?score_threshold=nan", "score_threshold"),
        ("?score_threshold=1e999", "score_threshold"),
        ("?masks=maybe", "masks"),
        ("?masks=true&masks=true", "masks"),
        ("?alpha=3.5", "alpha"),
    ],
)
def test_what_a_detector_does_not_take_is_refused_by_name(client: TestClient, query: str, field: str) -> None:
    refused = error(post(client, query), 422, "invalid_parameter")
    assert refused["field"] == field
    if field in {"prior_strength", "breakpoints", "lines", "explain"}:
        assert refused["message"].startswith(f"{field} is for another task than the model's")
        assert "score_threshold" in refused["remedy"]


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"masks": "no"}, "masks"),
        ({"lines": True}, "lines"),
        ({"score_threshold": 2}, "score_threshold"),
        ({"images": [{"data": "AAAA", "prior_strength": 1}]}, "images[0].prior_strength"),
        ({"images": [{"data": "AAAA", "top_k": 3}]}, "images[0].top_k"),
        ({"images": [{"data": "AAAA", "alpha": 9}]}, "images[0].alpha"),
    ],
)
def test_json_is_checked_alike(client: TestClient, content: dict[str, Any], field: str) -> None:
    body = {"images": [{"data": base64.b64encode(red()).decode()}]} | content
    refused = error(client.post("/predict", json=body), 422, "invalid_parameter")
    assert refused["field"] == field
    told: dict[str, tuple[object, str]] = {
        "lines": (True, "Use alpha, score_threshold, top_k, masks, or leave it out.")
    }
    told["images[0].prior_strength"] = (1, "Use alpha, or leave it out.")
    told["images[0].top_k"] = (3, "Send it beside images, not within.")
    if field in told:
        name = field.rpartition(".")[2]
        whose = "the whole request" if name == "top_k" else "another task than the model's"
        assert refused["message"].startswith(f"{name} is for {whose}")
        assert (refused["value"], refused["remedy"]) == told[field]


def test_a_forms_part_for_another_task_is_refused_as_such(client: TestClient) -> None:
    form = {"files": {"image": ("a.png", red(), "image/png")}, "data": {"prior_strength": "0.5"}}
    refused = error(client.post("/predict", **form), 422, "invalid_parameter")
    assert refused["message"].startswith("prior_strength is for another task than the model's")
    assert (refused["field"], refused["value"]) == ("prior_strength", "0.5")


def test_the_number_that_a_remedy_names_may_be_sent(client: TestClient) -> None:
    remedy = error(post(client, "?score_threshold=low"), 422, "invalid_parameter")["remedy"]
    assert answer(post(client, f"?score_threshold={remedy.removeprefix('Send one such as ').rstrip('.')}"))


def test_what_is_wrong_with_a_picture_is_said_in_words(client: TestClient) -> None:
    head = red(kind="JPEG")[:20]
    assert "is damaged or incomplete" in error(post(client, data=head), 400, "invalid_image")["message"]


@pytest.mark.parametrize(
    "data", [b"", b"no picture", red()[:60], red(kind="GIF")], ids=["empty", "text", "cut off", "another format"]
)
def test_what_is_no_picture_is_refused(client: TestClient, data: bytes) -> None:
    assert error(post(client, data=data), 400, "invalid_image")["field"] == "body"


def test_an_output_that_is_no_answer_fails_its_picture_alone(client: TestClient, detector: FakeDetector) -> None:
    def spoil(outputs: Any) -> None:
        if detector.runs[-1][1] == 1.5:
            outputs["scores"][0] = np.nan

    detector.spoil = spoil
    error(post(client, "?alpha=1.5"), 500, "inference_failed")
    assert answer(post(client, "?alpha=1"))["detections"]


def test_a_full_queue_says_when_to_come_again(make_client: Callable[..., TestClient], detector: FakeDetector) -> None:
    client = make_client(max_queue_size=1, max_images_per_request=1)
    detector.gate.clear()
    waiting = [threading.Thread(target=post, args=(client,)) for _ in range(2)]

    def shows(line: str) -> bool:
        return gauges(client) == line

    for count, thread in enumerate(waiting, 1):  # the first is run, the second waits
        thread.start()
        line = f"evenkeel_images_in_flight {count}.0\nevenkeel_queue_depth {count - 1}.0"
        wait_until(partial(shows, line))
    refused = post(client)
    error(refused, 429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    detector.gate.set()
    for thread in waiting:
        thread.join(20)
    assert answer(post(client))


def gauges(client: TestClient) -> str:
    lines = client.get("/metrics").text.splitlines()
    names = "evenkeel_images_in_flight ", "evenkeel_queue_depth "
    return "\n".join(sorted(line for line in lines if line.startswith(names)))


def test_no_run_is_on_the_event_loop_however_fast(client: TestClient, detector: FakeDetector) -> None:
    for _ in range(60):
        post(client, "?masks=false")
    assert all(name.startswith("inference") for name in detector.threads)


def test_no_answer_is_written_on_the_event_loop(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def noting(write: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            threads.append(threading.current_thread())
            return write(*arguments)

        return noted

    for module in (detect, infer_answer):
        monkeypatch.setattr(module, "_written", noting(module._written))
    assert answer(post(client))["detections"]
    assert client.post(INFER, json=message()).status_code == 200
    assert client.portal is not None
    assert len(threads) == 2
    assert client.portal.call(threading.current_thread) not in threads


def test_a_client_has_its_alpha_and_its_bounds(make_client: Callable[..., TestClient]) -> None:
    client = make_client()
    policy = {"name": "shop", "alpha": 0.5, "alpha_max": 1}
    key = {"Authorization": f"Bearer {client.post('/clients', json=policy, headers=ADMIN).json()['key']}"}
    wait_until(lambda: client.get("/terms", headers=key).status_code == 200)
    terms = client.get("/terms", headers=key).json()
    TermsResponse.model_validate(terms)
    assert terms["alpha"] == {"minimum": 0, "maximum": 1, "default": 0.5}
    assert terms["prior_strength"] == {"minimum": 0, "maximum": 0, "default": 0}
    content = answer(post(client, **key))
    assert (content["alpha"], content["alpha_source"]) == (0.5, "client")
    assert error(post(client, "?alpha=2", **key), 422, "invalid_parameter")["field"] == "alpha"
    metrics = client.get("/metrics").text
    assert 'evenkeel_client_alpha_count{client="shop"} 1.0' in metrics
    for group in ("many", "medium", "few"):
        count = sum(each["shot_group"] == group for each in content["detections"])
        assert f'evenkeel_client_detections_total{{client="shop",shot_group="{group}"}} {count}.0' in metrics
    assert 'evenkeel_client_detections_total{client="anonymous",shot_group="many"} 0.0' in metrics


def test_feedback_and_tuning_say_that_a_detectors_answers_take_none(client: TestClient) -> None:
    label = {"prediction_id": "019f2b77c1d04be01f33a2c9d5", "label": "person"}
    (refused,) = client.post("/feedback", json=[label]).json()["refused"]
    assert refused["code"] == "unknown_prediction"
    assert refused["message"].endswith("is a detector, whose answers take no feedback.")
    client.post("/clients", json={"name": "shop"}, headers=ADMIN)
    assert "is a detector and takes no labels" in client.get("/clients/shop/tradeoff", headers=ADMIN).json()["keep"]


@pytest.mark.parametrize(
    "policy", [{"prior_strength": 0.5}, {"target_distribution": {"person": 1, "toaster": 1, "hair drier": 1}}]
)
def test_a_policy_that_no_detector_can_follow_is_refused(client: TestClient, policy: dict[str, Any]) -> None:
    refused = error(client.post("/clients", json={"name": "shop"} | policy, headers=ADMIN), 409, "policy_mismatch")
    assert refused["field"] == next(iter(policy))
    assert "the model is a detector" in refused["message"]


def test_the_neighbours_tell_the_truth_of_a_detector(client: TestClient, detector: FakeDetector) -> None:
    model = client.get("/model").json()
    ModelResponse.model_validate(model)
    assert (model["task"], model["detection"]["max_detections"], model["max_prior_strength"]) == ("detection", ROWS, 0)
    assert [each["shot_group"] for each in model["classes"]] == ["many", "medium", "few"]
    evaluation = client.get("/model/evaluation").json()
    EvaluationResponse.model_validate(evaluation)
    assert (evaluation["test_images"], evaluation["accuracy"]) == (7, None)
    assert evaluation["average_precision"] == CURVES
    samples = client.get("/samples").json()
    SamplesResponse.model_validate(samples)
    assert samples == {"samples": [{"path": "samples/0.png", "truth": None}]}


def test_detections_are_counted_by_shot_group(client: TestClient) -> None:
    shown = answer(post(client, "?alpha=3"))["detections"]
    post(client, "?alpha=3&score_threshold=0.99")
    metrics = client.get("/metrics").text
    for group in ("many", "medium", "few"):
        count = sum(each["shot_group"] == group for each in shown)
        assert f'evenkeel_detections_total{{shot_group="{group}"}} {count}.0' in metrics
    assert "evenkeel_alpha_count 2.0" in metrics
    assert 'evenkeel_predictions_total{shot_group="many"} 0.0' in metrics


def test_a_bundle_of_the_other_task_takes_over_while_requests_go_on(detector: FakeDetector) -> None:
    served: list[Loaded] = [Loaded(FakeModel(), Exhibits()), Loaded(detector, EXHIBITS)]
    app: Any = create_app(Settings(), FakeDetector(), load=lambda version: served.pop(0))
    detector.gate.clear()
    with TestClient(app) as client:

        def serves(task: str) -> bool:
            return bool(client.get("/model").json()["task"] == task)

        for task in ("classification", "detection"):
            client.portal.call(app.reloader.request)  # type: ignore[union-attr]
            wait_until(partial(serves, task))
            if task == "classification":
                assert client.post("/predict", content=picture(2), headers=PNG).json()["images"][0]["prediction_id"]
                assert error(post(client, "?masks=false"), 422, "invalid_parameter")["field"] == "masks"
                for _ in range(60):  # fast enough for the event loop
                    client.post("/predict?alpha=0", content=picture(2), headers=PNG)
        answers: list[Any] = []
        waiting = threading.Thread(target=lambda: answers.append(answer(post(client))))
        waiting.start()
        assert client.get("/healthz").status_code == 200  # the loop turns while the detector runs
        detector.gate.set()
        waiting.join(20)
        assert answers[0]["detections"]
        assert all(name.startswith("inference") for name in detector.threads)


# The Open Inference Protocol

INFER = "/v2/models/tiny-detector/infer"


def test_the_protocol_describes_a_detectors_tensors(client: TestClient) -> None:
    content = client.get("/v2/models/tiny-detector").json()
    ModelMetadataResponse.model_validate(content)
    shapes = {each["name"]: (each["datatype"], each["shape"]) for each in content["inputs"] + content["outputs"]}
    assert shapes == {
        "image": ("UINT8", [-1, HEIGHT, WIDTH, 3]),
        "alpha": ("FP32", [-1]),
        "image_size": ("FP32", [-1, 2]),
        "boxes": ("FP32", [-1, ROWS, 4]),
        "scores": ("FP32", [-1, ROWS]),
        "labels": ("INT64", [-1, ROWS]),
        "masks": ("FP32", [-1, ROWS, SIDE, SIDE]),
        "count": ("INT64", [-1]),
    }
    assert "classification" not in client.get("/v2").json()["extensions"]


def message(**changes: Any) -> dict[str, Any]:
    image = np.full((2, HEIGHT, WIDTH, 3), 255, np.uint8)
    inputs = [
        {"name": "image", "datatype": "UINT8", "shape": list(image.shape), "data": image.reshape(-1).tolist()},
        {"name": "alpha", "datatype": "FP32", "shape": [2], "data": [0, 3]},
        {"name": "image_size", "datatype": "FP32", "shape": [2, 2], "data": [24, 32, 12, 16]},
    ]
    return {"inputs": inputs} | changes


def test_the_protocol_gives_the_graphs_outputs(client: TestClient, detector: FakeDetector) -> None:
    response = client.post(INFER, json=message())
    assert response.status_code == 200, response.text
    InferResponse.model_validate(response.json())
    outputs = {each["name"]: each for each in response.json()["outputs"]}
    assert set(outputs) == {"boxes", "scores", "labels", "count"}  # masks are large: on request
    assert detector.runs == [((24, 32), 0.0), ((12, 16), 3.0)]
    assert (outputs["count"]["datatype"], outputs["count"]["data"]) == ("INT64", [4, 5])
    assert outputs["scores"]["data"][:3] == pytest.approx(expected_scores(0)[:3])
    assert outputs["labels"]["data"][4] == -1
    assert 'evenkeel_detections_total{shot_group="many"} 4.0' in client.get("/metrics").text


def test_the_protocol_gives_masks_as_bytes(client: TestClient) -> None:
    wanted = [{"name": name, "parameters": {"binary_data": True}} for name in ("masks", "labels")]
    response = client.post(INFER, json=message(outputs=wanted))
    head, rest = split_message(response.content, response.headers["Inference-Header-Content-Length"])
    assert [each["shape"] for each in head["outputs"]] == [[2, ROWS, SIDE, SIDE], [2, ROWS]]
    labels = np.frombuffer(rest[-2 * ROWS * 8 :], "<i8")
    assert labels.tolist()[:4] == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"parameters": {"prior_strength": 1}}, "parameters.prior_strength"),
        ({"parameters": {"alpha": 9}}, "alpha"),
        ({"outputs": [{"name": "logits"}]}, "outputs[0].name"),
        ({"outputs": [{"name": "scores", "parameters": {"classification": 1}}]}, "scores.parameters.classification"),
    ],
)
def test_the_protocol_refuses_what_a_detector_does_not_have(
    client: TestClient, changes: dict[str, Any], field: str
) -> None:
    response = client.post(INFER, json=message(**changes))
    assert response.status_code == 422, response.text
    assert response.json()["field"] == field


@pytest.mark.parametrize("size", [[0, 16], [25, 32], [12.5, 16]])
def test_the_protocol_refuses_sizes_beyond_the_image(client: TestClient, size: list[float]) -> None:
    content = message()
    content["inputs"][2]["data"] = [*size, 12, 16]
    response = client.post(INFER, json=content)
    assert (response.status_code, response.json()["field"]) == (422, "image_size[0]")


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
