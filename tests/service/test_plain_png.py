"""The short way through a PNG gives Pillow's pixels, and leaves everything unusual to Pillow."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from service.plain_png import decode_plain_png, lacks_pixels

PIXELS = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
PIXELS_IN_ROWS = b"".join(b"\0" + row.tobytes() for row in PIXELS)
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


def pixels_of(image: Image.Image | NDArray[np.uint8] | None) -> object:
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


def with_pixels(raw: bytes, *, parts: int = 1, interlaced: int = 0) -> bytes:
    content, size = zlib.compress(raw), 17
    header = chunk(b"IHDR", struct.pack(">II5B", size, size, 8, 2, 0, 0, interlaced))
    cuts = [len(content) * part // parts for part in range(parts + 1)]
    pixels = b"".join(chunk(b"IDAT", content[a:b]) for a, b in pairwise(cuts))
    return png()[:8] + header + pixels + chunk(b"IEND", b"")


WHOLE = {
    0: 17 * (1 + 3 * 17),
    1: sum(h * (1 + 3 * w) for w, h in ((3, 3), (2, 3), (5, 2), (4, 5), (9, 4), (8, 9), (17, 8))),
}


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("parts", [1, 3])
def test_rows_that_are_missing_are_seen_where_pillow_leaves_them_black(interlaced: int, parts: int) -> None:
    size = WHOLE[interlaced]
    assert not lacks_pixels(with_pixels(bytes(size), parts=parts, interlaced=interlaced))
    assert not lacks_pixels(with_pixels(bytes(size + 9), parts=parts, interlaced=interlaced))
    for short in (0, 52, size - 52, size - 1):
        data = with_pixels(bytes(short), parts=parts, interlaced=interlaced)
        assert lacks_pixels(data)
        assert decode_plain_png(data, MANY) is None


def all_of_zeros() -> bytes:
    return with_pixels(bytes(100 * 2**20))  # nearly all of it behind the last pixel


def all_in_one_chunk() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, 8 * 2**20, dtype=np.uint8).tobytes()
    header = chunk(b"IHDR", struct.pack(">II5B", 1000, 2000, 8, 6, 0, 0, 0))
    return png()[:8] + header + chunk(b"IDAT", zlib.compress(noise, 0)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("make", [all_of_zeros, all_in_one_chunk])
def test_pixels_are_looked_through_in_parts_and_not_beyond_the_last(make: Callable[[], bytes]) -> None:
    data = make()
    tracemalloc.start()
    try:
        assert not lacks_pixels(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_nothing_lacks_in_what_pillow_writes(mode: str) -> None:
    grey = Image.fromarray(PIXELS[:, :, 0])
    sink = io.BytesIO()
    grey.convert(mode).save(sink, "PNG")
    assert not lacks_pixels(sink.getvalue())


@pytest.mark.parametrize(("name", "size"), [(b"gAMA", 4), (b"sRGB", 1), (b"cHRM", 32), (b"pHYs", 9), (b"tIME", 7)])
def test_a_chunk_of_another_length_is_left_to_pillow(name: bytes, size: int) -> None:
    assert decode_plain_png(with_chunk(name, bytes(size)), MANY) is not None
    for other in (0, size - 1, size + 1):
        assert decode_plain_png(with_chunk(name, bytes(other)), MANY) is None


@pytest.mark.parametrize("name", [b"iHDR", b"tEXt"])
def test_a_first_chunk_of_another_name_is_left_to_pillow(name: bytes) -> None:
    data = png()
    assert decode_plain_png(data[:8] + chunk(name, data[16:29]) + data[33:], MANY) is None


@pytest.mark.parametrize("wrong", ["a byte behind", "no checksum", "cut before it"])
def test_bytes_behind_the_pixels_matter_as_to_pillow(wrong: str) -> None:
    content = zlib.compress(PIXELS_IN_ROWS)
    content = {"a byte behind": content + b"x", "no checksum": content[:-4], "cut before it": content[:-9]}[wrong]
    data = png()[:33] + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    found = decode_plain_png(data, MANY)
    try:
        whole = Image.open(io.BytesIO(data))
        whole.load()
    except OSError:
        assert found is None
    else:
        assert not lacks_pixels(data)
        assert pixels_of(found) == pixels_of(whole) == PIXELS.tolist()


def test_checksums_of_chunks_count_and_not_that_of_the_pixels_within() -> None:
    content = zlib.compress(PIXELS_IN_ROWS)[:-4] + b"abcd"
    data = png()[:33] + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    assert pixels_of(decode_plain_png(data, MANY)) == PIXELS.tolist()
    assert decode_plain_png(data[:-13] + b"x" + data[-12:], MANY) is None


def test_a_damaged_chunk_without_effect_is_left_to_pillow_which_refuses_it() -> None:
    data = with_chunk(b"gAMA", struct.pack(">I", 45_455))
    at = data.index(b"gAMA") + 4
    damaged = data[:at] + b"\1" + data[at + 1 :]
    assert pixels_of(decode_plain_png(data, MANY)) == PIXELS.tolist()
    assert decode_plain_png(damaged, MANY) is None
