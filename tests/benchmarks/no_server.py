"""Decoding and ONNX Runtime in full batches without a server; prints images/s. A process of its own (`heavy_model`).

python -m tests.benchmarks.no_server BUNDLE BATCH SECONDS PICTURE...
"""

import asyncio
import sys
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter

import numpy as np

from service.bundle import read_bundle
from service.cores import available_cores
from service.images import ImageDecoder, Pixels
from service.model import OnnxModel
from tests.decoding import decode


async def images_per_second(bundle: Path, batch: int, seconds: float, files: list[Path]) -> float:
    """Decode the next batch in threads while the model runs on the one before."""
    model = OnnxModel(read_bundle(bundle), provider="cpu", max_batch_size=batch)
    decoder = ImageDecoder(model.manifest.input, max_pixels=40_000_000, threads=available_cores())
    pictures = cycle([file.read_bytes() for file in files])

    async def decoded() -> Sequence[Pixels]:
        return await asyncio.gather(*(decode(decoder, data) for data in islice(pictures, batch)))

    coming, done, begin = asyncio.create_task(decoded()), 0, perf_counter()
    while perf_counter() - begin < seconds:
        images = np.stack(await coming)
        coming = asyncio.create_task(decoded())
        await asyncio.to_thread(model.branches, images)
        done += batch
    rate = done / (perf_counter() - begin)
    await coming
    return rate


if __name__ == "__main__":
    folder, size, duration, *names = sys.argv[1:]
    print(asyncio.run(images_per_second(Path(folder), int(size), float(duration), [Path(name) for name in names])))
