"""Training and serving see the same pixels, whatever the picture: golden pictures through both decoders."""

import asyncio
import io
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from service.bundle import InputSpec
from service.images import ImageDecoder
from tests.decoding import decode
from tests.end_to_end.golden import SPECS, expected, files
from trainer.pixels import open_rgb, to_pixels

PIXELS = expected()


def served(data: bytes, spec: InputSpec) -> NDArray[np.uint8]:
    decoder = ImageDecoder(spec, max_pixels=10**6, threads=1)
    try:
        return asyncio.run(decode(decoder, data))
    finally:
        decoder.close()


@pytest.mark.parametrize("file", files(), ids=lambda file: file.name)
@pytest.mark.parametrize("name", SPECS)
def test_a_golden_picture_has_its_pixels_in_training_and_in_serving(file: Path, name: str) -> None:
    data, spec, golden = file.read_bytes(), SPECS[name], PIXELS[f"{file.name}/{name}"]
    np.testing.assert_array_equal(to_pixels(open_rgb(io.BytesIO(data), file.name), spec), golden)
    decoders: tuple[Literal["pillow", "simplejpeg"], ...] = ("pillow", "simplejpeg")
    for decoder in decoders:
        np.testing.assert_array_equal(served(data, spec.model_copy(update={"decoder": decoder})), golden)
    assert golden.std() > 10, "a picture of one colour would agree too easily"


def test_every_golden_picture_has_pixels_and_none_is_left_over() -> None:
    assert PIXELS.keys() == {f"{file.name}/{name}" for file in files() for name in SPECS}


def test_cropping_with_the_resize_differs_by_rounding_alone() -> None:
    for file in files():
        with_resize, after_resize = (
            PIXELS[f"{file.name}/{crop}"].astype(int) for crop in ("with_resize", "after_resize")
        )
        assert np.abs(with_resize - after_resize).max() <= 1
