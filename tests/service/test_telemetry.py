import io
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.app import create_app
from service.errors import DeadlineExceeded
from service.keys import new_key, without_keys
from service.settings import Settings
from service.telemetry import Exchange, Trace, continued, log_to_stderr
from service.tracing import Tracing, TracingUnavailable
from tests.service.fakes import FakeModel, picture
from tests.service.routes.conftest import MakeClient
from tests.service.routes.test_inference_protocol import INFER, image

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"
TIMES = ("x-decode-time", "x-queue-time", "x-inference-time", "x-total-time")


@pytest.fixture
def model() -> Iterator[FakeModel]:
    model = FakeModel()
    yield model
    model.gate.set()


@pytest.fixture
def client(model: FakeModel) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(), model), raise_server_exceptions=False) as client:
        yield client


def predict(client: TestClient, **headers: str) -> Any:
    return client.post("/predict", content=picture(), headers={"Content-Type": "image/png"} | headers)


@pytest.mark.parametrize("method", ["predict", "infer", "health", "nowhere"])
def test_every_answer_bears_the_requests_id_and_its_place_in_the_trace(client: TestClient, method: str) -> None:
    headers = {"X-Request-ID": "order-66/a.b", "traceparent": TRACEPARENT}
    ways: dict[str, Callable[[], Any]] = {
        "predict": lambda: predict(client, **headers),
        "infer": lambda: client.post(INFER, json={"inputs": [image(0)]}, headers=headers),
        "health": lambda: client.get("/healthz", headers=headers),
        "nowhere": lambda: client.get("/nowhere", headers=headers),
    }
    response = ways[method]()
    assert response.headers.get_list("X-Request-ID") == ["order-66/a.b"]
    trace = continued(response.headers["traceparent"].encode())
    assert trace is not None
    assert (trace.trace_id, trace.flags) == (TRACE, "01")
    assert trace.parent_id != SPAN


@pytest.mark.parametrize(
    "sent", [None, "", "with space", "x" * 129, "new\tline", "ümlaut", "<script>", f"ek_{'x' * 43}"]
)
def test_an_id_that_is_none_is_replaced_by_a_new_one(client: TestClient, sent: str | None) -> None:
    ids = set()
    for _ in range(2):
        headers: Any = [] if sent is None else [(b"x-request-id", sent.encode("latin-1"))]
        ids.add(client.get("/healthz", headers=headers).headers["X-Request-ID"])
    assert len(ids) == 2
    assert all(re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", each) for each in ids)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        TRACEPARENT[:-1],
        TRACEPARENT.upper(),
        TRACEPARENT + "-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
    ],
)
def test_a_header_of_no_trace_begins_none(client: TestClient, header: str) -> None:
    assert continued(header.encode()) is None
    assert "traceparent" not in client.get("/healthz", headers={"traceparent": header}).headers


def test_a_later_version_of_the_header_is_read_as_far_as_it_is_known() -> None:
    trace = continued(f"cc-{TRACE}-{SPAN}-00-what-comes".encode())
    assert trace is not None
    assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-00", trace.header())


@pytest.mark.parametrize("route", ["predict", "infer"])
def test_predictions_tell_their_times_by_stage(client: TestClient, model: FakeModel, route: str) -> None:
    response = predict(client) if route == "predict" else client.post(INFER, json={"inputs": [image(0)]})
    assert response.status_code == 200
    stages = dict(re.findall(r"(\w+);dur=([0-9.]+)", response.headers["Server-Timing"]))
    assert list(stages) == ["decode", "queue", "inference", "total"]
    assert [stages[name.split("-")[1]] for name in TIMES] == [response.headers[name] for name in TIMES]
    values = {name: float(value) for name, value in stages.items()}
    assert values["total"] >= values["decode"] + values["queue"] + values["inference"] - 0.01
    assert values["inference"] > 0
    assert "Server-Timing" not in client.get("/healthz").headers


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e3", "", "soon", "٣", "1" * 30])
def test_a_timeout_that_is_none_is_refused(client: TestClient, value: str) -> None:
    response = client.post(
        "/predict",
        content=picture(),
        headers=[(b"content-type", b"image/png"), (b"x-request-timeout", value.encode())],
    )
    assert response.status_code == 422
    assert response.json()["field"] == "X-Request-Timeout"


@pytest.mark.parametrize("path", ["/predict", INFER])
def test_a_client_may_wait_shorter_but_no_longer_than_the_setting(model: FakeModel, path: str) -> None:
    with TestClient(create_app(Settings(request_timeout=1.2), model), raise_server_exceptions=False) as client:
        model.gate.clear()
        for seconds, least, most in (("0.05", 0.05, 1.0), ("60", 1.2, 10)):
            headers = {"Content-Type": "image/png", "X-Request-Timeout": seconds}
            body: Any = {"content": picture()} if path == "/predict" else {"json": {"inputs": [image(0)]}}
            if path != "/predict":
                del headers["Content-Type"]
            response = client.post(path, headers=headers, **body)
            assert response.json()["code"] == DeadlineExceeded.code
            assert least <= response.elapsed.total_seconds() < most
        model.gate.set()
    assert sum(model.batches) == 1, "what had expired was run"


@pytest.mark.parametrize("path", ["/predict", INFER])
def test_a_request_that_ends_in_504_counts_in_the_total_time_as_an_answer_does(model: FakeModel, path: str) -> None:
    with TestClient(create_app(Settings(request_timeout=0.3), model), raise_server_exceptions=False) as client:
        model.gate.clear()
        late = predict(client) if path == "/predict" else client.post(path, json={"inputs": [image(0)]})
        assert late.status_code == 504
        model.gate.set()
        assert client.get("/clients").status_code == 403, "no other refusal counts"
        text = client.get("/metrics").text
        assert 'evenkeel_stage_seconds_count{stage="total"} 1.0' in text
        assert 'evenkeel_stage_seconds_bucket{le="0.25",stage="total"} 0.0' in text


def test_security_headers_are_on_every_answer(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError

    answers = [client.get(path) for path in ("/healthz", "/nowhere", "/metrics", "/openapi.json")]
    answers += [predict(client), client.post("/predict", content=b"")]
    monkeypatch.setattr("service.routes.model._PUBLIC", 7)
    answers.append(client.get("/model"))
    assert answers[-1].status_code == 500
    for response in answers:
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert response.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert "server" not in response.headers
        assert response.headers["X-Request-ID"]


@pytest.fixture
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("service", "__main__"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_log_lines_as_json_bear_id_trace_and_traceback(root_logger: None, capsys: Any) -> None:
    log_to_stderr("info", "json")
    Exchange.begin([(b"x-request-id", b"seven"), (b"traceparent", TRACEPARENT.encode())])
    try:
        raise RuntimeError("no memory")
    except RuntimeError:
        logging.getLogger("service.x").exception("a batch of %d failed", 3)
    (line,) = capsys.readouterr().err.splitlines()
    content = json.loads(line)
    assert (content["level"], content["logger"], content["message"]) == ("error", "service.x", "a batch of 3 failed")
    assert (content["request_id"], content["trace_id"]) == ("seven", TRACE)
    assert "RuntimeError: no memory" in content["exception"]


def test_log_lines_as_text_bear_the_id(root_logger: None, capsys: Any) -> None:
    log_to_stderr("info", "text")
    Exchange.begin([(b"x-request-id", b"seven")])
    logging.getLogger("service.x").info("hello")
    assert re.search(r"INFO service.x: hello \[seven\]$", capsys.readouterr().err)


def test_no_log_line_is_ended_or_coloured_by_what_it_tells_of(root_logger: None, capsys: Any) -> None:
    log_to_stderr("info", "text")
    logging.getLogger("service.access").info("GET %s", "/clients/x\n2026 INFO forged\x1b[31m\x00 ünal")
    (line,) = capsys.readouterr().err.splitlines()
    assert r"GET /clients/x\n2026 INFO forged\x1b[31m\x00 ünal" in line


def test_debugging_tells_what_the_service_says_and_not_what_pictures_hold(root_logger: None, capsys: Any) -> None:
    log_to_stderr("debug", "text")
    logging.getLogger("service.x").debug("hello")
    described = Image.Exif()
    described[0x010E] = "a secret"  # ImageDescription
    written = io.BytesIO()
    Image.new("RGB", (8, 8)).save(written, "JPEG", exif=described)
    with Image.open(written) as image:
        assert image.getexif()[0x010E] == "a secret"
    (line,) = capsys.readouterr().err.splitlines()
    assert "DEBUG service.x: hello" in line


def test_a_key_in_a_path_is_not_logged(make_client: MakeClient, caplog: Any) -> None:
    key = new_key()
    with caplog.at_level(logging.INFO, "service.access"):
        make_client(access_log=True).delete(f"/clients/shop/keys/{key}")
    assert caplog.records[-1].fields["path"] == "/clients/shop/keys/ek_..."
    assert key not in caplog.text
    assert without_keys("/clients/week_2026-11-27-of-the-long-november/x") == (
        "/clients/week_2026-11-27-of-the-long-november/x"
    )


def test_the_access_log_has_a_line_for_each_request(make_client: MakeClient, caplog: Any) -> None:
    client = make_client(access_log=True)
    with caplog.at_level(logging.INFO, "service.access"):
        predict(client)
        client.get("/v2/models/other?secret=1")
    fields = [record.fields for record in caplog.records if record.name == "service.access"]
    assert [(each["method"], each["path"], each["status"]) for each in fields] == [
        ("POST", "/predict", 200),
        ("GET", "/v2/models/other", 404),
    ]
    assert "secret" not in caplog.text


@pytest.fixture
def make_client(model: FakeModel) -> Iterator[MakeClient]:
    clients: list[TestClient] = []

    def make(**settings: Any) -> TestClient:
        clients.append(TestClient(create_app(Settings(**settings), model), raise_server_exceptions=False))
        return clients[-1].__enter__()

    yield make
    for client in clients:
        client.__exit__(None, None, None)


def test_spans_follow_the_callers_and_hold_the_stages(client: TestClient) -> None:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    app: Any = client.app
    app.tracing = Tracing("http://nowhere.invalid", exporter)
    response = predict(client, traceparent=TRACEPARENT, **{"X-Request-ID": "seven"})
    client.get("/v2/models/other")
    app.tracing.close(10)
    app.tracing = None
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"POST /predict", "decode", "queue", "inference", "GET /v2/models/{name}"}
    request: Any = spans["POST /predict"]
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == SPAN
    assert response.headers["traceparent"] == f"00-{TRACE}-{request.context.span_id:016x}-01"
    assert request.attributes["evenkeel.request_id"] == "seven"
    assert request.attributes["http.response.status_code"] == 200
    stages: list[Any] = [spans[name] for name in ("decode", "queue", "inference")]
    assert {stage.parent.span_id for stage in stages} == {request.context.span_id}
    assert [stage.end_time for stage in stages[:2]] == [stage.start_time for stage in stages[1:]]
    assert spans["GET /v2/models/{name}"].parent is None


@pytest.mark.alone
def test_a_collector_that_does_not_answer_is_not_waited_for_and_the_log_says_what_is_lost(caplog: Any) -> None:
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    gate = threading.Event()

    class Hanging(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            gate.wait(20)
            return SpanExportResult.FAILURE

    tracing = Tracing("http://nowhere.invalid", Hanging())
    exchange = Exchange.begin([])
    tracing.end(tracing.begin(exchange, "GET"), exchange, "GET", "/", 200)
    begin = time.monotonic()
    tracing.close(0.2)
    assert time.monotonic() - begin < 2
    assert "the collector has not taken the last spans in 0.2 s: they are lost" in caplog.text
    gate.set()


def test_spans_without_opentelemetry_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(TracingUnavailable, match=r"install evenkeel\[service,telemetry\]"):
        create_app(Settings(otlp_endpoint="http://collector:4318/v1/traces"), FakeModel())


def test_nothing_of_opentelemetry_is_loaded_unless_asked_for() -> None:
    import subprocess

    script = "import sys, service.__main__; assert not [m for m in sys.modules if m.startswith('opentelemetry.sdk')]"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_span_id_is_never_the_callers() -> None:
    traces = {continued(TRACEPARENT.encode()) for _ in range(100)}
    assert len(traces) == 100
    assert all(isinstance(trace, Trace) and trace.span_id != SPAN for trace in traces)
