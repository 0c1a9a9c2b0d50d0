"""The short way through a PNG gives Pillow's pixels, and leaves everything unusual to Pillow."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from service.plain_png import decode_plain_png

PIXELS = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
MANY = 10_000


def png(**options: object) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(PIXELS).save(sink, "PNG", **options)
    return sink.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def with_chunk(name: bytes, content: bytes, *, before: bytes = b"IDAT") -> bytes:
    data = png()
    at = data.index(before) - 4
    return data[:at] + chunk(name, content) + data[at:]


def pixels_of(image: Image.Image | None) -> object:
    assert image is not None
    return np.asarray(image).tolist()


@pytest.mark.parametrize("level", [0, 1, 9])
def test_a_plain_picture_has_pillows_pixels(level: int) -> None:
    assert pixels_of(decode_plain_png(png(compress_level=level), MANY)) == PIXELS.tolist()


def test_pixels_in_several_chunks_and_chunks_without_effect_are_plain() -> None:
    data = with_chunk(b"pHYs", struct.pack(">IIB", 1, 1, 0))
    at = data.index(b"IDAT") - 4
    content = data[at + 8 : at + 8 + int.from_bytes(data[at : at + 4], "big")]
    parted = data[:at] + chunk(b"IDAT", content[:50]) + chunk(b"IDAT", content[50:]) + chunk(b"IEND", b"")
    assert pixels_of(decode_plain_png(parted, MANY)) == PIXELS.tolist()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "I;16"])
def test_other_modes_are_left_to_pillow(mode: str) -> None:
    sink = io.BytesIO()
    Image.fromarray(PIXELS[:, :, 0]).convert(mode).save(sink, "PNG")
    assert decode_plain_png(sink.getvalue(), MANY) is None


def test_what_may_change_the_picture_is_left_to_pillow() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "<x/>")
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (png(pnginfo=text), png(exif=exif), with_chunk(b"tRNS", b"\0" * 6), with_chunk(b"acTL", b"\0" * 8)):
        assert decode_plain_png(data, MANY) is None


def test_what_is_broken_is_left_to_pillow() -> None:
    data = png()
    middle = data.index(b"IDAT") + 40
    broken = {
        "empty": b"",
        "signature only": data[:8],
        "cut in the header": data[:20],
        "cut in the pixels": data[:middle],
        "without an end": data[:-12],
        "a flipped byte": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "pixels missing": data[: data.index(b"IDAT") - 4] + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + data[-12:],
        "no pixels": data[: data.index(b"IDAT") - 4] + data[-12:],
        "a second header": with_chunk(b"IHDR", data[16:29]),
    }
    assert [name for name, content in broken.items() if decode_plain_png(content, MANY) is not None] == []


def test_more_pixels_than_allowed_are_left_to_pillow() -> None:
    assert decode_plain_png(png(), 13 * 17) is not None
    assert decode_plain_png(png(), 13 * 17 - 1) is None
