"""Requests made from the OpenAPI document, right ones and wrong ones, against a real socket; bounded.

For longer by hand: EVENKEEL_FUZZ_EXAMPLES=2000 python -m pytest tests/service/test_openapi_fuzz.py
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.app import create_app
from service.settings import Settings
from tests.service.fakes import FakeModel
from tests.service.test_process import free_port

pytestmark = pytest.mark.filterwarnings("ignore")

EXAMPLES = int(os.environ.get("EVENKEEL_FUZZ_EXAMPLES", "10"))
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]


DOCUMENT = schemathesis.openapi.from_dict(create_app(Settings(), FakeModel()).openapi())


def operations() -> Iterator[APIOperation[Any, Any, Any, Any]]:
    for found in DOCUMENT.get_all_operations():
        assert isinstance(found, Ok), found
        yield found.ok()


OPERATIONS = {operation.label: operation for operation in operations()}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, database = free_port(), tmp_path_factory.mktemp("fuzz") / "x.sqlite"
    app = create_app(Settings(database_url=f"sqlite:///{database}", request_timeout=2), FakeModel())
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("label", OPERATIONS)
def test_no_request_gets_what_the_document_does_not_say(address: str, label: str, mode: GenerationMode) -> None:
    try:
        cases = OPERATIONS[label].as_strategy(generation_mode=mode)
    except Unsatisfiable:
        return  # nothing can be wrong about it

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(case=cases)
    def ask(case: Any) -> None:
        response = case.call(base_url=address, timeout=20)
        case.validate_response(response, checks=CHECKS)
        assert response.status_code < 500 or response.status_code in {503, 504}  # a hurried request may be late

    with suppress(Unsatisfiable):
        ask()
