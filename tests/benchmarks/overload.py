"""Five times more than the model can do: what accepted work then gets of the peak, and how long it waits.

ResNeXt-50 32x4d. The peak is the pace at which full queues are worked off, up to their last answer; then requests come
at five times that rate, each on a connection of its own, whatever becomes of those before. Clients and refusals take of
the same cores, and the faster a machine is at the model the more of them there are. Accepted work may wait for a full
queue, for the batch that runs and for its own: queue + 2 batches images, of which all but itself are answered between
its sending and its answer, or as many by accepted images a second. The images are what the queue's size promises; the
seconds come with how the machine's pace changes within a turn.
"""

import statistics
import time
from bisect import bisect_left, bisect_right

from service.cores import available_cores
from tests.benchmarks.load import Body
from tests.benchmarks.models import HEAVY
from tests.benchmarks.pictures import jpegs
from tests.benchmarks.result import Figure, at_least, at_most
from tests.benchmarks.servers import Server, evenkeel
from tests.benchmarks.workplace import Workplace
from tests.operations.arrivals import at_a_rate
from tests.operations.client import Answer, request

PART = "Overload"
BATCH, QUEUE, TIMES = 8, 64, 5
_MOST_WAITED_FOR = QUEUE + 2 * BATCH
_AT_ONCE = 1e4
"""Requests a second that are as good as all at once."""


def run(workplace: Workplace) -> list[Figure]:
    """Measure the peak and offer five times as much, by turns: a machine's pace drifts from one minute to the next."""
    bundle, pictures = workplace.bundle(HEAVY).path, jpegs(workplace.place("pictures"))
    turns, seconds = workplace.rounds(5), workplace.seconds(10)
    settings = {"max_batch_size": BATCH, "max_queue_size": QUEUE, "request_timeout": 60}
    floods: list[tuple[list[Answer], float]] = []
    clients = 0.0  # seconds of the processor
    with evenkeel(bundle, workplace.place("run-overload"), **settings) as server:
        _time_full_queue(server, pictures)  # warms up
        times = [_time_full_queue(server, pictures)]
        for _ in range(turns):
            begin, spent = time.monotonic(), time.process_time()
            answers = _flood(server, pictures, TIMES * QUEUE / times[-1], seconds)
            floods.append((answers, time.monotonic() - begin))  # until the last of those accepted was answered
            clients += time.process_time() - spent
            times += [_time_full_queue(server, pictures), _time_full_queue(server, pictures)]
    return _figures(floods, len(times) * QUEUE / sum(times), clients)


def _time_full_queue(server: Server, pictures: Body) -> float:
    begin = time.monotonic()
    answers = _flood(server, pictures, rate=_AT_ONCE, seconds=QUEUE / _AT_ONCE)
    assert all(answer.status == 200 for answer in answers), "a queue's worth is accepted"
    return time.monotonic() - begin


def _flood(server: Server, pictures: Body, rate: float, seconds: float) -> list[Answer]:
    headers = {"Content-Type": pictures.content_type}
    data = [request(file.read_bytes(), headers=headers) for file in pictures.files]
    return at_a_rate(server.port, data, rate=rate, count=round(rate * seconds))


def _figures(floods: list[tuple[list[Answer], float]], peak: float, clients: float) -> list[Figure]:
    answers = [answer for its, _ in floods for answer in its]
    accepted = sorted(answer.seconds for answer in answers if answer.status == 200)
    refused = [answer for answer in answers if answer.status == 429]
    total = sum(lasted for _, lasted in floods)
    rate = len(accepted) / total
    ahead = max(_p99(_ahead(its)) for its, _ in floods)
    waits = max(_wait(its, lasted) for its, lasted in floods)
    told = sorted({int(answer.headers["retry-after"]) for answer in refused})
    note = (
        f"{len(answers)} requests, {len(accepted)} accepted, {len(refused)} refused, told to come back after {told} s; "
        f"the clients took {clients / total / available_cores():.1%} of the cores"
    )
    other = len(answers) - len(accepted) - len(refused)
    return [
        Figure(PART, "peak", peak, "images/s", note=f"full queues of {QUEUE}, batches of {BATCH}"),
        Figure(PART, "accepted images/s at 5 times the peak / peak", rate / peak, goal=at_least(0.9), note=note),
        Figure(PART, "answers that are neither 200 nor 429", other, goal=at_most(0)),
        Figure(PART, "p99 of the accepted", _p99(accepted), "s"),
        Figure(
            PART,
            f"p99 of the accepted, by images answered meanwhile / a queue of {QUEUE}",
            ahead / _MOST_WAITED_FOR,
            goal=at_most(1),
            note=f"the worst turn: {ahead:.0f} images, of {_MOST_WAITED_FOR}",
        ),
        Figure(
            PART,
            f"p99 of the accepted / a queue of {QUEUE}",
            waits,
            goal=at_most(1),
            note="the worst turn, by its own pace",
        ),
        Figure(PART, "median of a refusal", statistics.median(answer.seconds for answer in refused) * 1e3, "ms"),
    ]


def _wait(answers: list[Answer], lasted: float) -> float:
    """Return the 99th percentile of the accepted, by the time that a full queue and two batches take at their pace."""
    accepted = [answer.seconds for answer in answers if answer.status == 200]
    return _p99(accepted) / (_MOST_WAITED_FOR * lasted / len(accepted))


def _ahead(answers: list[Answer]) -> list[float]:
    """Return for each of the accepted how many were answered from its sending to its answer, itself among them."""
    accepted = [answer for answer in answers if answer.status == 200]
    ends = sorted(answer.sent + answer.seconds for answer in accepted)
    return [bisect_right(ends, answer.sent + answer.seconds) - bisect_left(ends, answer.sent) for answer in accepted]


def _p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]
