"""Large bodies, read in place by a real process: what is answered, what goes wrong, and what the connection is then."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.service.test_process import Process, running
from tests.service.tiny_model import write_tiny_bundle

SIZE = 1_500_000
"""Bytes of the JSON, nearly all of them spaces: with pixels of small pictures alone a body is soon refused."""
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("large")
    bundle = write_tiny_bundle(folder / "tiny").path
    with running(bundle, folder / "log", request_timeout="1", database_url=f"sqlite:///{folder}/state.sqlite") as one:
        yield one


def request(size: int, *headers: str) -> tuple[bytes, bytes]:
    """Return head and body of an inference request whose JSON has so many bytes, or as few as it can have."""
    pixels = PIXELS.tobytes()
    parameters = {"binary_data_size": len(pixels)}
    image = {"name": "image", "datatype": "UINT8", "shape": PIXELS.shape, "parameters": parameters}
    asked = {"inputs": [image], "outputs": [{"name": "logits"}], "parameters": {"alpha": 1.5}}
    message = json.dumps(asked).encode().ljust(size)
    lines = [
        *("POST /v2/models/tiny/infer HTTP/1.1", "Host: x", f"Inference-Header-Content-Length: {len(message)}"),
        *(f"Content-Length: {len(message) + len(pixels)}", *headers, "", ""),
    ]
    return "\r\n".join(lines).encode(), message + pixels


class Talk:
    """A connection to the service."""

    def __init__(self, service: Process) -> None:
        self.socket = socket.create_connection(("127.0.0.1", service.port), timeout=20)
        self.answers = self.socket.makefile("rb")

    def __enter__(self) -> "Talk":
        return self

    def __exit__(self, *_: object) -> None:
        self.answers.close()
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def hear(self) -> tuple[int, Any]:
        """Return status and content of the next answer."""
        head = list(iter(self.answers.readline, b"\r\n"))
        length = next((int(line.split(b":")[1]) for line in head if line.lower().startswith(b"content-length:")), 0)
        return int(head[0].split()[1]), json.loads(self.answers.read(length) or b"null")


def test_large_requests_and_what_follows_them_are_answered_as_small_ones(service: Process) -> None:
    with Talk(service) as talk:
        talk.send(*request(0))
        status, small = talk.hear()
        assert status == 200
        talk.send(*request(SIZE), *request(0), *request(SIZE), *request(SIZE))
        for _ in range(4):
            status, large = talk.hear()
            assert (status, large["outputs"]) == (200, small["outputs"])


def test_a_client_that_asks_first_is_told_to_go_on(service: Process) -> None:
    head, body = request(SIZE, "Expect: 100-continue")
    with Talk(service) as talk:
        talk.send(head)
        assert talk.hear() == (100, None)
        talk.send(body)
        assert talk.hear()[0] == 200


def test_a_body_that_stops_is_refused_and_the_connection_goes_on_behind_it(service: Process) -> None:
    head, body = request(SIZE)
    with Talk(service) as talk:
        talk.send(head, body[: SIZE // 2])
        status, said = talk.hear()
        assert (status, said["code"], said["value"]) == (408, "body_too_slow", SIZE // 2)
        talk.send(body[SIZE // 2 :], *request(SIZE))
        assert talk.hear()[0] == 200


def test_a_body_that_is_never_ended_ends_its_connection(service: Process) -> None:
    head, body = request(SIZE)
    with Talk(service) as talk:
        talk.send(head, body[: SIZE // 2])
        assert talk.hear()[0] == 408
        begin = time.monotonic()
        assert talk.answers.read() == b""
        assert time.monotonic() - begin < 10


def test_who_leaves_within_a_body_is_counted_and_no_one_else_notices(service: Process) -> None:
    head, body = request(SIZE)
    line = b'evenkeel_errors_total{code="client_left"} 1.0'
    assert line not in service.get("/metrics")[1]
    with Talk(service) as stays:
        stays.send(head, body[: SIZE // 2])
        with Talk(service) as leaves:
            leaves.send(head, body[: SIZE // 2])
            time.sleep(0.1)
        stays.send(body[SIZE // 2 :])
        assert stays.hear()[0] == 200
    assert line in service.get("/metrics")[1]


def test_one_that_states_too_many_bytes_is_refused_before_they_come(service: Process) -> None:
    head, _ = request(30 << 20)
    with Talk(service) as talk:
        talk.send(head)
        status, said = talk.hear()
        assert (status, said["code"], said["field"]) == (413, "body_too_large", "Content-Length")
