"""Every fault a few times, many at once, against one real process; `python -m tests.operations.faults` for more."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.operations.client import metric, request, send
from tests.operations.fault import Fault
from tests.operations.faults import FAULTS, SETTINGS, Footprint, settled, tried
from tests.operations.picture_faults import bombs
from tests.operations.test_listening import WARNING
from tests.service.fakes import picture
from tests.service.test_process import Process, running

pytestmark = pytest.mark.alone

TIMES = 5
Outcomes = dict[str, Counter[str]]


@pytest.fixture(scope="module")
def service(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("faults")
    settings = SETTINGS | {"database_url": f"sqlite:///{folder / 'kept.sqlite'}"}
    with running(tiny_bundle, folder / "log", **settings) as service:
        yield service


@pytest.fixture(scope="module")
def before(service: Process) -> Footprint:
    return asyncio.run(settled(service))


@pytest.fixture(scope="module")
def outcomes(service: Process, before: Footprint) -> Outcomes:
    bombs()  # takes a while to make, and would keep everyone else waiting

    async def all_at_once() -> list[Counter[str]]:
        return await asyncio.gather(*(tried(service, fault, TIMES) for fault in FAULTS))

    return {fault.name: its for fault, its in zip(FAULTS, asyncio.run(all_at_once()), strict=True)}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_gets_the_answer_it_should(outcomes: Outcomes, fault: Fault) -> None:
    assert outcomes[fault.name].total() == TIMES
    assert outcomes[fault.name].keys() <= fault.expected


async def test_after_all_of_them_the_service_is_as_before(
    service: Process, before: Footprint, outcomes: Outcomes
) -> None:
    after = await settled(service)
    assert (await send(service.port, request(picture(1)))).status == 200
    assert metric(service, "evenkeel_images_in_flight") == 0
    assert after.descriptors <= before.descriptors + 10  # the database's connections and threads' own come with use
    assert after.megabytes < before.megabytes + 150
    log = service.log.read_text()
    assert "Traceback" not in log
    assert WARNING not in log


async def test_what_is_no_http_is_answered_in_the_form_of_all_errors(service: Process) -> None:
    answer = await send(service.port, b"hello\r\n\r\n")
    assert (answer.status, answer.json["code"]) == (400, "invalid_request")
    assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert answer.headers["connection"] == "close"
    assert metric(service, 'evenkeel_errors_total{code="invalid_request"}') >= 1
