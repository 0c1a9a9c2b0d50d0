"""Decoding alone, in processes that share nothing: the most that single JPEGs can reach on a machine's cores."""

import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from service.bundle import InputSpec
from service.images import ImageDecoder
from tests.benchmarks.workers import Job, work, work_together

_RAMP = 0.3


class Decoding(NamedTuple):
    """What was found.

    Attributes:
        images: a second, by all processes.
        seconds: of the processor, for a picture.
    """

    images: float
    seconds: float


def decode_alone(spec: InputSpec, files: Sequence[Path], *, processes: int, seconds: float) -> Decoding:
    """Have so many processes decode, resize and crop pictures as the service does, and do nothing else.

    Raises:
        RuntimeError: a process has ended, or decoded nothing in time.
    """
    job = {"spec": spec.model_dump(mode="json"), "files": [str(file) for file in files], "seconds": seconds}
    found = work_together(__name__, [{**job, "first": number} for number in range(processes)], ramp=_RAMP)
    count = sum(images for images, _ in found)
    if not count:
        raise RuntimeError(f"nothing was decoded in {seconds:g} s")
    return Decoding(count / seconds, sum(spent for _, spent in found) / count)


def _prepare(job: Job) -> Callable[[float], tuple[int, float]]:
    decoder = ImageDecoder(InputSpec(**job["spec"]), max_pixels=40_000_000, threads=1)
    first = job["first"] % len(job["files"])
    pictures = [Path(file).read_bytes() for file in job["files"][first:] + job["files"][:first]]

    def decode(begin: float) -> tuple[int, float]:
        done, spent = 0, time.process_time()
        for picture in cycle(pictures):
            decoder._whole(picture, "image")  # in this thread: the way to another takes what decoding alone does not
            now = time.time()
            if now >= begin + job["seconds"]:
                break
            if now < begin:
                spent = time.process_time()
            else:
                done += 1
        return done, time.process_time() - spent

    return decode


if __name__ == "__main__":
    work(_prepare)
