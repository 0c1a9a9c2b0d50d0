"""More work than the model can do: what is taken is done, the rest is told so at once, and what is dead is not done."""

import asyncio
import json
import os
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.operations.arrivals import at_a_rate
from tests.operations.client import PNG, Answer, leave, metric, request, send
from tests.operations.conftest import TRIAL
from tests.operations.trial_service import FAILING, HANGING
from tests.service.fakes import picture
from tests.service.test_process import Process, running
from tests.service.test_reload import wait_until

pytestmark = pytest.mark.alone

IMAGES_RUN = "evenkeel_batch_size_sum"
PACE, QUEUE, BATCH = 0.05, 40, 4
"""Of the fixture `slow`: seconds for each image, images that may wait, images in one run."""

ANY, HANGS, FAILS = (request(picture(red // 10)) for red in (0, HANGING, FAILING))


def statuses(answers: list[Answer]) -> dict[int, int]:
    return dict(Counter(answer.status for answer in answers))


async def test_at_five_times_capacity_whoever_is_taken_is_answered_in_time_and_the_rest_is_told_when_to_come(
    slow: Process,
) -> None:
    assert (await send(slow.port, ANY)).status == 200  # it knows its pace now
    before = metric(slow, IMAGES_RUN)
    answers = await asyncio.to_thread(at_a_rate, slow.port, [ANY], rate=5 / PACE, count=160)
    taken = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 429]
    assert len(taken) + len(refused) == 160, statuses(answers)
    assert len(refused) > len(taken) >= QUEUE
    assert metric(slow, IMAGES_RUN) - before == len(taken)
    longest = (QUEUE + BATCH) * PACE
    assert max(float(answer.headers["x-queue-time"]) for answer in taken) < 1.5e3 * longest
    assert {int(answer.headers["retry-after"]) for answer in refused} <= {
        2,
        3,
        4,
    }  # 2.2 s, rounded up, on a busy machine
    assert {answer.json["code"] for answer in refused} == {"queue_full"}
    assert max(answer.seconds for answer in refused) < longest


async def test_what_has_expired_or_was_abandoned_costs_no_run_of_the_model(slow: Process) -> None:
    hurried = request(picture(), headers={**PNG, "X-Request-Timeout": "0.6"})
    before, left = metric(slow, IMAGES_RUN), metric(slow, 'evenkeel_rejected_images_total{reason="client_left"}')
    patient = [asyncio.create_task(send(slow.port, HANGS))]  # 2 s, which nobody knows beforehand
    await asyncio.sleep(0.1)
    late = [asyncio.create_task(send(slow.port, hurried)) for _ in range(6)]
    gone = [leave(slow.port, ANY, after=0.2) for _ in range(10)]
    patient += [asyncio.create_task(send(slow.port, ANY)) for _ in range(6)]
    await asyncio.gather(*gone)
    assert statuses(await asyncio.gather(*patient)) == {200: 7}
    assert statuses(await asyncio.gather(*late)) == {504: 6}
    assert metric(slow, IMAGES_RUN) - before == 7
    assert metric(slow, 'evenkeel_rejected_images_total{reason="client_left"}') - left == 10
    assert metric(slow, "evenkeel_images_in_flight") == 0


@pytest.mark.parametrize(("queue", "batch", "patience"), [(400, 32, 4.0), (40, 4, 1.0)])
async def test_whoever_would_wait_too_long_is_told_so_at_once_and_the_rest_is_answered_in_time(
    tiny_bundle: Path, tmp_path: Path, queue: int, batch: int, patience: float
) -> None:
    """Places for more than can be answered in time: whoever takes one would be answered when nobody waits any more."""
    settings = {"trial_seconds": f"{PACE}", "max_batch_size": f"{batch}", "max_queue_size": f"{queue}"}
    settings |= {"request_timeout": f"{patience}", "database_url": f"sqlite:///{tmp_path / 'kept.sqlite'}"}
    with running(tiny_bundle, tmp_path / "log", TRIAL, **settings) as service:
        assert (await send(service.port, ANY)).status == 200
        begin = time.monotonic()
        answers = await asyncio.to_thread(
            at_a_rate, service.port, [ANY], rate=5 / PACE, count=round(2 * patience * 5 / PACE)
        )
        seconds = time.monotonic() - begin
    found = statuses(answers)
    assert found.keys() <= {200, 429, 504}
    assert found[200] * PACE > 0.8 * seconds
    assert found.get(504, 0) < 0.1 * found[200]
    told = [int(answer.headers["retry-after"]) for answer in answers if answer.status == 429]
    assert 0.5 * patience < max(told) <= patience + 1


async def test_where_decoding_is_what_takes_long_its_pace_says_who_is_too_late(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    large = request(picture(size=(3000, 3000), kind="JPEG"), headers={"Content-Type": "image/jpeg"})
    settings = {"request_timeout": "2", "decode_threads": "1", "database_url": f"sqlite:///{tmp_path / 'kept.sqlite'}"}
    with running(tiny_bundle, tmp_path / "log", TRIAL, **settings) as service:
        begin = time.monotonic()
        for _ in range(10):
            assert (await send(service.port, large)).status == 200
        rate = 10 / (time.monotonic() - begin)
        answers = await asyncio.to_thread(at_a_rate, service.port, [large], rate=4 * rate, count=round(24 * rate))
    found = statuses(answers)
    assert found.keys() <= {200, 429, 504}
    assert found[200] > 3 * rate  # of six seconds' worth; none but the first were answered before
    assert found[429] > found.get(504, 0)


def processor_seconds(service: Process) -> float:
    fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def form_of(*pictures: bytes, timeout: float) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    body = b"".join(head + each + b"\r\n" for each in pictures) + b"--x--\r\n"
    return request(body, headers={"Content-Type": "multipart/form-data; boundary=x", "X-Request-Timeout": f"{timeout}"})


async def test_what_has_expired_or_was_abandoned_is_decoded_no_further(slow: Process) -> None:
    large, begin = picture(size=(4000, 4000), kind="JPEG"), processor_seconds(slow)
    assert (await send(slow.port, form_of(large, timeout=10))).status == 200
    one = processor_seconds(slow) - begin
    for leaves in (False, True):
        begin, data = processor_seconds(slow), form_of(*[large] * 24, timeout=10 if leaves else 0.5)
        if leaves:
            await leave(slow.port, data, after=0.5)
        else:
            answer = await send(slow.port, data)
            assert (answer.status, answer.json["code"]) == (504, "deadline_exceeded")
        await asyncio.to_thread(wait_until, lambda: metric(slow, "evenkeel_queue_depth") == 0)
        assert processor_seconds(slow) - begin < 16 * one


async def test_a_form_that_takes_long_to_read_is_read_no_further_once_nobody_waits(slow: Process) -> None:
    begin, data = processor_seconds(slow), form_of(b"\r\n--xy" * 3_300_000, timeout=0.5)  # takes some ten seconds
    answer = await send(slow.port, data)
    assert (answer.status, answer.json["code"]) == (504, "deadline_exceeded")
    assert processor_seconds(slow) - begin < 3
    await leave(slow.port, form_of(b"\r\n--xy" * 3_300_000, timeout=10), after=1)
    await asyncio.sleep(0.5)
    begin = processor_seconds(slow)
    await asyncio.sleep(0.5)
    assert processor_seconds(slow) - begin < 0.25


INFER = '/v2/models/tiny/infer {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": %s}]}'


@pytest.mark.parametrize("place", [INFER, '/v2/models/tiny/infer {"x": %s}', '/predict {"images": %s}', "/feedback %s"])
async def test_a_body_of_millions_of_values_is_refused_and_holds_nobody_up(slow: Process, place: str) -> None:
    path, _, around = place.partition(" ")
    body = around.encode() % (b"[" + b"[]," * 6_000_000 + b"[]]")
    asking = asyncio.create_task(
        send(slow.port, request(body, path=path, headers={"Content-Type": "application/json"}))
    )
    longest = 0.0
    while not asking.done():
        alive = await send(slow.port, request(path="/healthz", method="GET", headers={}))
        longest = max(longest, alive.seconds)
    assert 400 <= (await asking).status < 500
    assert longest < 1  # to read it takes three seconds or more


@pytest.mark.parametrize("place", ['/predict {"images": [%s]}', "/feedback [%s]", "/feedback %s"])
async def test_a_body_of_many_keys_costs_the_service_little(slow: Process, place: str) -> None:
    path, _, around = place.partition(" ")
    count = 6_000 if path == "/predict" else 200_000
    body = around.encode() % (b'{"data": "QQ==", %b}' % b",".join(b'"k%d":0' % key for key in range(count)))
    sent, begin = request(body, path=path, headers={"Content-Type": "application/json"}), processor_seconds(slow)
    for _ in range(10):
        assert (await send(slow.port, sent)).status in {400, 422}
    assert processor_seconds(slow) - begin < 1  # to name each of them took 0.2 s and 6 s


async def test_a_failing_picture_fails_alone(slow: Process) -> None:
    first = asyncio.create_task(send(slow.port, ANY))
    await asyncio.sleep(0.02)
    good = [request(picture(), headers={**PNG, "X-Request-ID": f"good-{number}"}) for number in range(7)]
    bad = request(picture(FAILING // 10), headers={**PNG, "X-Request-ID": "bad"})
    answers = await asyncio.gather(send(slow.port, bad), *(send(slow.port, data) for data in good))
    assert (await first).status == 200
    assert [answer.status for answer in answers] == [500] + [200] * 7
    assert answers[0].json["code"] == "inference_failed"
    assert b"memory" not in answers[0].body
    log = slow.log.read_text()
    assert "a batch of 1 failed: RuntimeError('the device is out of memory') [bad]" in log
    assert re.search(r"a batch of [2-4] failed; its halves are run apart\n", log)  # it was nobody's alone
    assert "[good-" not in log


async def test_while_the_model_hangs_readiness_is_off_and_the_process_alive(slow: Process) -> None:
    before = metric(slow, "evenkeel_stalls_total")
    hanging = asyncio.create_task(send(slow.port, HANGS))
    await asyncio.to_thread(wait_until, lambda: slow.get("/readyz")[0] == 503)
    assert json.loads(slow.get("/readyz")[1])["message"] == "The model has stopped answering."
    assert slow.get("/healthz")[0] == 200
    assert (await hanging).status == 200
    await asyncio.to_thread(wait_until, lambda: slow.get("/readyz")[0] == 200)
    assert metric(slow, "evenkeel_stalls_total") - before == 1
    assert "not ready until it does" in slow.log.read_text()


async def test_a_picture_on_which_the_model_fails_leaves_readiness_on_however_often_it_is_sent(slow: Process) -> None:
    before = metric(slow, "evenkeel_stalls_total")
    for _ in range(20):  # for four times the patience, and nobody sends another
        assert (await send(slow.port, FAILS)).status == 500
        assert slow.get("/readyz")[0] == 200
        await asyncio.sleep(0.1)
    assert metric(slow, "evenkeel_stalls_total") == before


async def test_a_model_that_fails_on_every_picture_is_not_ready_until_it_works_and_comes_back_without_traffic(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    broken, settings = tmp_path / "broken", {"database_url": f"sqlite:///{tmp_path / 'kept.sqlite'}"}
    settings |= {"trial_broken": str(broken), "stall_timeout": "0.5"}
    with running(tiny_bundle, tmp_path / "log", TRIAL, **settings) as service:
        assert (await send(service.port, ANY)).status == 200
        broken.touch()
        assert (await send(service.port, ANY)).status == 500  # the only one
        await asyncio.to_thread(wait_until, lambda: service.get("/readyz")[0] == 503)
        await asyncio.sleep(1)
        assert service.get("/readyz")[0] == 503
        assert service.get("/healthz")[0] == 200
        broken.unlink()
        await asyncio.to_thread(wait_until, lambda: service.get("/readyz")[0] == 200)
        assert metric(service, "evenkeel_stalls_total") == 1
        assert "the model answers again: ready" in service.log.read_text()
