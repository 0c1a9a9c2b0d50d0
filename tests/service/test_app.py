import re
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from service.app import create_app
from service.detector import Detector
from service.exhibits import Exhibits
from service.front_door import FrontDoor
from service.model import Model
from service.reload import Loaded
from service.schemas import ErrorResponse, ModelResponse
from service.scoring import Branches
from service.settings import Settings
from tests.service.fakes import FakeDetector, FakeModel, picture


@pytest.fixture
def client() -> Any:
    with TestClient(create_app(Settings(), FakeModel()), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/predict/", 404, "not_found"),  # a redirect would lose the picture
        ("GET", "/docs", 404, "not_found"),  # the framework's pages load scripts from elsewhere
        ("GET", "/redoc", 404, "not_found"),
    ],
)
def test_what_the_framework_refuses_has_the_same_form(
    client: TestClient, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert ErrorResponse.model_validate(response.json()).code == code


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/predict", "POST"),
        ("DELETE", "/model", "GET, HEAD"),
        ("PATCH", "/clients", "GET, HEAD, POST"),
        ("POST", "/v2/models/fake/ready", "GET, HEAD"),
    ],
)
def test_a_method_that_a_path_does_not_take_is_refused_with_those_that_it_takes(
    client: TestClient, method: str, path: str, allowed: str
) -> None:
    response = client.request(method, path)
    assert response.status_code == 405
    assert response.json()["code"] == "method_not_allowed"
    assert response.headers["Allow"] == allowed


def test_an_unexpected_fault_is_a_500_that_tells_nothing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr("service.routes.predict._answer", broken)
    response = client.post("/predict", content=picture(), headers={"Content-Type": "image/png"})
    assert response.status_code == 500
    assert ErrorResponse.model_validate(response.json()).code == "internal_error"
    assert "swordfish" not in response.text


def test_unknown_paths_share_one_label(client: TestClient) -> None:
    for number in range(3):
        client.get(f"/scan/{number}")
    assert 'evenkeel_requests_total{route="other",status="404"} 3.0' in client.get("/metrics").text


def test_ready_from_start_to_shutdown() -> None:
    app = create_app(Settings(), FakeModel())
    service = app.service
    assert service.readiness.reason == "The service is starting."
    with TestClient(app) as client:
        assert client.get("/readyz").json() == {"status": "ready"}
        assert client.get("/healthz").json() == {"status": "alive"}
        service.readiness.refuse("The service is shutting down.")
        refused = client.get("/readyz")
        assert refused.status_code == 503
        assert ErrorResponse.model_validate(refused.json()).code == "not_ready"
        assert client.get("/healthz").status_code == 200
        assert client.post("/predict", content=picture(), headers={"Content-Type": "image/png"}).status_code == 200
        assert not service.batcher.is_ending()
    assert service.batcher.is_ending()


@pytest.mark.parametrize(
    "path", ["/readyz", "/healthz", "/v2/health/live", "/v2/models/tiny/ready", "/model", "/metrics"]
)
def test_whoever_asks_for_the_head_gets_that_of_the_whole_answer(client: TestClient, path: str) -> None:
    head, whole = client.head(path), client.get(path)
    assert (head.status_code, head.content, whole.status_code) == (200, b"", 200)
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert 'status="200"} 2.0' in client.get("/metrics").text
    assert client.head("/predict").status_code == 405


def test_every_request_may_bear_a_key_by_the_interfaces_description(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["security"] == [{}, {"key": []}]


def test_the_model_tells_its_public_part(client: TestClient) -> None:
    content = client.get("/model").json()
    model = ModelResponse.model_validate(content)
    assert (model.name, model.provider, model.alpha.default) == ("tiny", "cpu", 1.0)
    assert "provenance" not in content


def test_openapi_documents_each_form_with_its_errors(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    operation = schema["paths"]["/predict"]["post"]
    assert set(operation["requestBody"]["content"]) == {
        "image/jpeg",
        "image/png",
        "image/webp",
        "multipart/form-data",
        "application/json",
    }
    assert {parameter["name"] for parameter in operation["parameters"]} == {
        "X-Request-Timeout",
        "alpha",
        "prior_strength",
        "top_k",
        "breakpoints",
        "lines",
        "explain",
        "score_threshold",
        "masks",
    }
    assert {"200", "400", "413", "415", "422", "429", "503", "504"} <= set(operation["responses"])
    for reference in re.findall(r'"\$ref":\s*"#/([^"]+)"', client.get("/openapi.json").text):
        part: Any = schema
        for step in reference.split("/"):
            part = part[step]


def test_the_example_of_the_docs_works(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    examples = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        assert client.post("/predict", json=example["value"]).status_code == 200


def test_each_app_counts_for_itself() -> None:
    with (
        TestClient(create_app(Settings(), FakeModel())) as first,
        TestClient(create_app(Settings(), FakeModel())) as other,
    ):
        first.get("/healthz")
        assert 'route="/healthz"' in first.get("/metrics").text
        assert 'route="/healthz"' not in other.get("/metrics").text


def test_the_service_loads_nothing_of_training() -> None:
    script = (
        "import sys, service.__main__\n"
        "loaded = {'torch', 'torchvision', 'timm', 'onnx', 'datasets', 'sklearn', 'trainer'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


class Threaded(FakeModel):
    """Takes so many seconds for a run, and notes in which thread it is."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.threads: list[str] = []

    def branches(self, images: NDArray[np.uint8]) -> Branches:
        self.threads.append(threading.current_thread().name.partition("_")[0])
        time.sleep(self.seconds)
        return super().branches(images)


def predict(client: TestClient, count: int = 1) -> None:
    files = [("image", ("a.png", picture(), "image/png"))] * count
    assert client.post("/predict", files=files).status_code == 200


def swap(client: TestClient, app: FrontDoor, model: Model | Detector) -> None:
    assert app.reloader
    client.portal.call(app.reloader._swap, Loaded(model, Exhibits()))  # type: ignore[union-attr]


def test_another_model_is_run_in_a_thread_until_its_own_pace_is_known() -> None:
    old, new, slow = Threaded(), Threaded(), Threaded(0.01)
    app = create_app(Settings(), old, load=lambda version: None)
    with TestClient(app) as client:
        for model in (old, new, slow):
            swap(client, app, model)
            for _ in range(60):
                predict(client)
            assert set(model.threads[:50]) == {"inference"}
    assert len(set(old.threads)) == len(set(new.threads)) == 2  # known to be brief, they hold up the loop
    assert set(slow.threads) == {"inference"}


def test_another_model_has_batches_of_its_own_size() -> None:
    app = create_app(Settings(max_batch_size=4), FakeModel(), load=lambda version: None)

    def runs(client: TestClient, model: Model | Detector) -> float:
        swap(client, app, model)
        before = app.service.metrics.registry.get_sample_value("evenkeel_batch_size_count") or 0.0
        predict(client, 4)
        return (app.service.metrics.registry.get_sample_value("evenkeel_batch_size_count") or 0.0) - before

    with TestClient(app) as client:
        assert [runs(client, model) for model in (FakeModel(), FakeDetector(), FakeModel())] == [1, 4, 1]


@pytest.mark.parametrize("kind", [FakeModel, FakeDetector])
def test_the_loop_rests_for_models_on_its_own_cores_alone(
    kind: type[FakeModel | FakeDetector], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu, on_device = kind(), kind()
    monkeypatch.setattr(on_device, "provider", "cuda")
    app = create_app(Settings(), on_device, load=lambda version: None)
    assert not app.service.batcher._shares_cores
    assert create_app(Settings(), on_cpu).service.batcher._shares_cores
    with TestClient(app) as client:
        for model in (on_cpu, on_device):
            swap(client, app, model)
            assert app.service.batcher._shares_cores == (model is on_cpu)
