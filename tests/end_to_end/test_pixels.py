"""Training and serving see the same pixels, whatever the picture's mode: golden pictures through both decoders."""

import asyncio
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from service.bundle import InputSpec
from service.images import ImageDecoder
from trainer.pixels import open_rgb, to_pixels

SHORTEST = InputSpec(height=16, width=16, resize="shortest_side", resize_size=20, mean=(0, 0, 0), std=(1, 1, 1))
EXACT = InputSpec(height=9, width=7, resize="exact", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))


def encode(mode: str, kind: str, orientation: int | None = None) -> bytes:
    generator = np.random.default_rng(0)
    if mode == "I;16":
        image = Image.fromarray(generator.integers(0, 2**16, (33, 21), dtype=np.uint16))
    else:
        image = Image.fromarray(generator.integers(0, 256, (33, 21, 4), dtype=np.uint8), "RGBA").convert(mode)
    if mode == "P":
        image.info["transparency"] = bytes(range(256))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    sink = BytesIO()
    options = {"transparency": image.info["transparency"]} if mode == "P" else {}
    image.save(sink, kind, exif=exif, **options)
    return sink.getvalue()


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize("spec", [SHORTEST, EXACT], ids=["shortest_side", "exact"])
@pytest.mark.parametrize(
    ("mode", "kind", "orientation"),
    [(mode, "PNG", None) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    + [("RGB", "JPEG", 6), ("CMYK", "JPEG", None), ("L", "JPEG", None), ("RGB", "WEBP", None)],
)
def test_a_picture_is_the_same_in_training_and_in_serving(
    mode: str, kind: str, orientation: int | None, spec: InputSpec
) -> None:
    data = encode(mode, kind, orientation)
    trained = to_pixels(open_rgb(BytesIO(data), "picture"), spec)
    decoder = ImageDecoder(spec, max_pixels=10**6, threads=1)
    served = asyncio.run(decoder.decode(data, field="picture"))
    decoder.close()
    np.testing.assert_array_equal(served, trained)
    assert trained.std() > 10, "a picture of one colour would agree too easily"
