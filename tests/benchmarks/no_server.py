"""Decoding and ONNX Runtime in full batches without a server, in both ways that one would write it: images/s of each.

python -m tests.benchmarks.no_server BUNDLE BATCH SECONDS PICTURE...

Overlapped: the next batch is decoded in threads while the model runs on the one before. Serial: decoded, then run. A
process of its own (`heavy_model`).
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


class NoServer:
    """Decodes and runs pictures, over and over."""

    def __init__(self, bundle: Path, batch: int, files: list[Path]) -> None:
        self._model = OnnxModel(read_bundle(bundle), provider="cpu", max_batch_size=batch)
        self._decoder = ImageDecoder(self._model.manifest.input, max_pixels=40_000_000, threads=available_cores())
        self._pictures = cycle([file.read_bytes() for file in files])
        self._batch = batch

    async def overlapped(self, seconds: float) -> float:
        """Return the images/s."""
        coming, done, begin = asyncio.create_task(self._decoded()), 0, perf_counter()
        while perf_counter() - begin < seconds:
            images = np.stack(await coming)
            coming = asyncio.create_task(self._decoded())
            await asyncio.to_thread(self._model.branches, images)
            done += self._batch
        rate = done / (perf_counter() - begin)
        await coming
        return rate

    async def serial(self, seconds: float) -> float:
        """Return the images/s."""
        done, begin = 0, perf_counter()
        while perf_counter() - begin < seconds:
            self._model.branches(np.stack(await self._decoded()))
            done += self._batch
        return done / (perf_counter() - begin)

    async def _decoded(self) -> Sequence[Pixels]:
        return await asyncio.gather(*(decode(self._decoder, data) for data in islice(self._pictures, self._batch)))


if __name__ == "__main__":
    folder, size, duration, *names = sys.argv[1:]
    alone = NoServer(Path(folder), int(size), [Path(name) for name in names])
    print(*(asyncio.run(way(float(duration))) for way in (alone.overlapped, alone.serial)))
