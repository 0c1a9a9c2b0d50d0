"""Decoding alone, in processes that share nothing: the most that single JPEGs can reach on a machine's cores."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from itertools import cycle
from multiprocessing import get_context

from service.bundle import InputSpec
from service.images import ImageDecoder

_UNTIL_ALL_RUN = 5.0
"""Seconds that processes may take to start; each decodes meanwhile, so that all cores are busy once it counts."""


def decoding_rate(spec: InputSpec, pictures: Sequence[bytes], *, processes: int, seconds: float) -> float:
    """Return the images/s of so many processes that decode, resize and crop as the service does, and do nothing else.

    Raises:
        RuntimeError: a process took too long to start.
    """
    begin = time.time() + _UNTIL_ALL_RUN
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        counts = list(pool.map(partial(_decode, spec, pictures, begin, begin + seconds), range(processes)))
    return sum(counts) / seconds


def _decode(spec: InputSpec, pictures: Sequence[bytes], begin: float, end: float, number: int) -> int:
    if time.time() > begin:
        raise RuntimeError(f"process {number} took more than {_UNTIL_ALL_RUN:g} s to start")
    decoder = ImageDecoder(spec, max_pixels=40_000_000, threads=1)
    done = 0
    for picture in cycle([*pictures[number:], *pictures[:number]]):
        if isinstance(pixels := decoder.begin(picture, field="image"), Future):
            pixels.result()
        if (now := time.time()) >= end:
            break
        done += now >= begin
    decoder.close()
    return done
