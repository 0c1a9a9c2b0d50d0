"""The pictures that are sent: with gradients, edges and noise, as pictures have; the same in every run."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.benchmarks.load import Body


def small_png(folder: Path) -> Body:
    """One PNG of 32x32 pixels."""
    file = folder / "small.png"
    Image.fromarray(_picture(32, 32, 0)).save(file)
    return Body("image/png", [file])


def jpegs(folder: Path, count: int = 16) -> Body:
    """JPEGs of about 500x375 pixels, upright and lying, about 60 kB each."""
    files = []
    for seed in range(count):
        width, height = (500, 375) if seed % 4 else (375, 500)
        file = folder / f"photograph-{seed}.jpg"
        Image.fromarray(_picture(height, width, seed)).save(file, quality=90)
        files.append(file)
    return Body("image/jpeg", files)


def _picture(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    chance = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / chance.uniform(3, 40)) + np.cos(columns / chance.uniform(3, 40)) for _ in range(3)]
    edge = np.where(rows * chance.uniform(0.3, 2) > columns, 60.0, 0.0)
    picture = np.stack([60 * wave + edge + 110 for wave in waves], axis=-1)
    return (picture + chance.normal(0, 8, picture.shape)).clip(0, 255).astype(np.uint8)
