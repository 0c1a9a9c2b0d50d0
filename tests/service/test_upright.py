import io
import warnings
from concurrent.futures import Future

import numpy as np
import pytest
from PIL import Image, ImageOps

from service.images import ImageDecoder
from service.manifest import InputSpec
from service.upright import upright
from trainer.pixels import open_rgb

SPEC = {"height": 16, "width": 16, "resize": "exact", "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
TURNED, TEXT, RATIONAL = (0x0112, 3, 1, b"\0\x06\0\0"), (0x011A, 2, 4, b"abc\0"), (0x011A, 5, 1, b"\0\0\xff\xff")
PICTURE = np.zeros((16, 16, 3), np.uint8)
PICTURE[:, :8] = 255  # white on the left, and above once it is turned


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Write a directory of tags: number, type, count and value."""
    rows = [tag.to_bytes(2) + kind.to_bytes(2) + count.to_bytes(4) + value for tag, kind, count, value in entries]
    return b"Exif\0\0MM\0*\0\0\0\x08" + len(entries).to_bytes(2) + b"".join(rows) + bytes(4)


@pytest.mark.parametrize("orientation", range(10))
def test_it_turns_as_pillow_does(orientation: int) -> None:
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    image.info["exif"] = exif((0x0112, 3, 1, orientation.to_bytes(2) + b"\0\0"))
    np.testing.assert_array_equal(np.asarray(upright(image)), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize(
    ("said", "is_turned"),
    [
        (b"Exif\0\0no directory of tags", False),
        (b"Exif\0\0MM", False),
        (exif((0x0112, 2, 4, b"abc\0")), False),
        (exif(TURNED), True),
        (exif(TURNED, TEXT), True),  # which Pillow cannot write again
        (exif(TURNED, RATIONAL), True),  # which points behind the end
    ],
    ids=["none", "cut", "text", "whole", "resolution", "pointer"],
)
def test_damaged_exif_costs_no_picture_and_training_sees_the_same(
    kind: str, decoder: str, said: bytes, *, is_turned: bool
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, kind, exif=said)
    served = ImageDecoder(InputSpec.model_validate({**SPEC, "decoder": decoder}), max_pixels=1_000, threads=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged tags
        begun = served.begin(buffer.getvalue(), field="body")
        pixels = begun.result() if isinstance(begun, Future) else begun
        trained = np.asarray(open_rgb(buffer, "x"))
    served.close()
    np.testing.assert_array_equal(pixels, trained)
    above, left = pixels[2, 12].min() > 200, pixels[12, 2].min() > 200
    assert (above, left) == ((True, False) if is_turned else (False, True))
