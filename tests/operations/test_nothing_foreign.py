"""What clients send is data: no address in it is called, no pickle in it is loaded, no path in it is opened."""

import asyncio
import json
import pickle
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.operations.client import request, send
from tests.service.fakes import picture
from tests.service.test_process import Process, running

JSON = {"Content-Type": "application/json"}


class Trap:
    """Unpickled, makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self._path,))


@pytest.fixture(scope="module")
def service(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("foreign")
    with running(tiny_bundle, folder / "log", database_url=f"sqlite:///{folder / 'kept.sqlite'}") as service:
        yield service


async def test_no_address_in_a_request_is_called(service: Process) -> None:
    calls = []
    listener = await asyncio.start_server(lambda *_: calls.append(1), "127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/a.png"
    image = b64encode(picture()).decode()
    bodies = [
        {"images": [{"data": address}]},
        {"images": [{"url": address}]},
        {"images": [{"data": image, "url": address}]},
    ]
    sent = [request(json.dumps(body).encode(), headers=JSON) for body in bodies]
    sent += [request(address.encode()), request(picture(), path=f"/predict?url={address}")]
    sent += [request(path=address, method="GET"), request(method="GET", path="/", headers={"Host": address[7:-6]})]
    sent += [request(picture(), headers={"Content-Type": "image/png", "Referer": address, "X-Forwarded-Host": address})]
    statuses = [(await send(service.port, data)).status for data in sent]
    assert statuses == [422, 422, 422, 400, 422, 404, 200, 200]  # of an address in place of a path the path counts
    await asyncio.sleep(0.2)
    listener.close()
    assert not calls


async def test_no_pickle_in_a_request_is_loaded(service: Process, tmp_path: Path) -> None:
    made = tmp_path / "made"
    trap = pickle.dumps(Trap(made))
    for kind in ("image/png", "application/json", "application/octet-stream", "application/x-pickle"):
        for path in ("/predict", "/feedback", "/v2/models/tiny/infer"):
            headers = {"Content-Type": kind}
            if path.startswith("/v2"):
                headers["Inference-Header-Content-Length"] = "0"
            assert 400 <= (await send(service.port, request(trap, path=path, headers=headers))).status < 500
    assert not made.exists()
    pickle.loads(trap)
    assert made.exists()  # so it would have been


@pytest.mark.parametrize(
    "path", ["/static/../../etc/passwd", "/static/x/..%2f..%2fetc%2fpasswd", "/samples/..%2f0.png"]
)
async def test_no_path_of_a_request_leads_to_a_file(service: Process, path: str) -> None:
    answer = await send(service.port, request(path=path, method="GET"))
    assert (answer.status, answer.json["code"]) == (404, "not_found")
