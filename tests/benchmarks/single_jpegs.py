"""JPEGs of about 500x375, one a request, to a process whose model takes no time: what the service adds to decoding.

Decoding alone is the limit: processes that share nothing, one a core. The service has as many decoding threads, and
shares the cores with its clients, of which wrk takes least.
"""

from statistics import median

from service.cores import available_cores
from tests.benchmarks.decoding_alone import Decoding, decode_alone
from tests.benchmarks.large_bodies import SPEC, instant_server
from tests.benchmarks.load import burst
from tests.benchmarks.pictures import jpegs
from tests.benchmarks.result import Figure
from tests.benchmarks.rounds import take_turns
from tests.benchmarks.workplace import Workplace

PART = "Single JPEGs"


def run(workplace: Workplace) -> list[Figure]:
    """Measure both by turns."""
    pictures, seconds, cores = jpegs(workplace.place("pictures")), workplace.seconds(3), available_cores()
    with instant_server("evenkeel", workplace) as server:

        def service() -> Decoding:
            before = server.processor_seconds()
            found = burst(server.url(), pictures, connections=32, seconds=seconds)
            return Decoding(found.rate, (server.processor_seconds() - before) / found.requests)

        def alone() -> Decoding:
            return decode_alone(SPEC, pictures.files, processes=cores, seconds=seconds)

        service()
        found = take_turns({"service": service, "alone": alone}, workplace.rounds(5))
    pairs = list(zip(found["service"], found["alone"], strict=True))
    shown = [f"{median(each.seconds for each in found[name]) * 1e3:.2f} ms" for name in found]
    note = f"{shown[0]} of a core a picture, and {shown[1]}"
    return [
        Figure(PART, "decoding alone", median(each.images for each in found["alone"]), "images/s"),
        Figure(PART, "evenkeel", median(each.images for each in found["service"]), "images/s"),
        Figure(PART, "images/s, evenkeel / decoding alone", median(one.images / limit.images for one, limit in pairs)),
        Figure(
            PART,
            "processor time of a picture, evenkeel / decoding alone",
            median(one.seconds / limit.seconds for one, limit in pairs),
            note=note,
        ),
    ]
