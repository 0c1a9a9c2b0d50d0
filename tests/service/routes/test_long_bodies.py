"""Long JSON is read by few threads: who waits for one has a place in the queue, a deadline, and may leave."""

import asyncio
import base64
import gc
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from service.app import READERS, create_app
from service.routes.context import Service
from service.settings import Settings
from tests.service.fakes import FakeModel, picture
from tests.service.routes.conftest import MakeClient
from tests.service.routes.test_clients import until
from tests.service.routes.test_inference_protocol import image

JSON = {"Content-Type": "application/json"}
SPACE = b" " * 100_000
each_form = pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", json.dumps({"images": [{"data": base64.b64encode(picture()).decode()}]}).encode() + SPACE),
        ("/v2/models/tiny/infer", json.dumps({"inputs": [image(0)]}).encode() + SPACE),
    ],
    ids=["predict", "infer"],
)


@contextmanager
def busy(service: Service) -> Iterator[None]:
    """All threads that read are at something else."""
    gate = threading.Event()
    for _ in range(READERS):
        service.readers.submit(gate.wait, 20)
    try:
        yield
    finally:
        gate.set()


@each_form
def test_a_long_body_whose_turn_does_not_come_in_time_is_dropped_unread(
    make_client: MakeClient, path: str, body: bytes
) -> None:
    client = make_client()
    service: Service = client.app.service  # type: ignore[attr-defined]
    with busy(service):
        late = client.post(path, content=body, headers={**JSON, "X-Request-Timeout": "0.1"})
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        assert service.batcher.depth == 0  # what is still to be read would hold its place
    assert client.post(path, content=body, headers=JSON).status_code == 200


@each_form
def test_a_long_body_takes_a_place_in_the_queue_until_it_is_read(
    make_client: MakeClient, path: str, body: bytes
) -> None:
    client = make_client(max_queue_size=1, max_images_per_request=1)
    service: Service = client.app.service  # type: ignore[attr-defined]
    with ThreadPoolExecutor(1) as senders:
        with busy(service):
            first = senders.submit(client.post, path, content=body, headers=JSON)
            until(lambda: service.batcher.depth == 1)
            second = client.post(path, content=body, headers=JSON)
            assert (second.status_code, second.json()["code"]) == (429, "queue_full")
        assert first.result().status_code == 200


@each_form
async def test_of_a_client_that_leaves_before_its_long_body_is_read_nothing_is_kept(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch, path: str, body: bytes
) -> None:
    monkeypatch.setattr("service.batcher._LONG", 0.005)
    app, left, before = create_app(Settings(), model), asyncio.Event(), sys.getrefcount(body)
    messages, sent = [{"type": "http.request", "body": body}], []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": path}
    scope |= {"root_path": "", "query_string": b"", "headers": [(b"content-type", b"application/json")]}
    with busy(app.service):
        asking = asyncio.create_task(app(scope, receive, send))
        async with asyncio.timeout(10):
            while app.service.batcher.depth == 0:  # noqa: ASYNC110 - it tells by this alone
                await asyncio.sleep(0.005)
            assert sys.getrefcount(body) > before
            left.set()
            await asking
        gc.collect()
        assert app.service.batcher.depth == 0
        assert sys.getrefcount(body) == before
    assert sent[0]["status"] == 499
    app.service.readers.close()
