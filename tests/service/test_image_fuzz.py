"""Mutated real pictures: each is decoded or refused by name, nothing else; bounded, and seeded.

For longer by hand: EVENKEEL_FUZZ_EXAMPLES=20000 python -m pytest tests/service/test_image_fuzz.py
"""

import io
import os
import random
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from service.bundle import InputSpec
from service.errors import ImageTooLarge, InvalidImage
from service.images import ImageDecoder
from tests.decoding import decode

EXAMPLES = int(os.environ.get("EVENKEEL_FUZZ_EXAMPLES", "300"))
SPEC = InputSpec(
    height=16, width=16, resize="shortest_side", resize_size=18, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
)
TELLING = (b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xd8", b"\xff\xda", b"IHDR", b"IDAT", b"acTL", b"ANIM", b"Exif")


def photograph() -> Image.Image:
    """Something with edges, gradients and noise, as pictures have."""
    rows, columns = np.mgrid[0:48, 0:64]
    noise = np.random.default_rng(0).integers(0, 40, (48, 64, 3))
    picture = np.stack([rows * 4, columns * 3, (rows > columns) * 180], axis=-1) + noise
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def originals() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    saved = {
        "jpeg": ("RGB", "JPEG", {"exif": exif}),
        "progressive": ("L", "JPEG", {"progressive": True}),
        "cmyk": ("CMYK", "JPEG", {}),
        "png": ("RGB", "PNG", {"exif": exif}),
        "palette": ("P", "PNG", {"transparency": 0}),
        "alpha": ("RGBA", "PNG", {}),
        "webp": ("RGB", "WEBP", {}),
        "lossless": ("RGBA", "WEBP", {"lossless": True, "exif": exif}),
    }
    files = {}
    for name, (mode, kind, options) in saved.items():
        buffer = io.BytesIO()
        photograph().convert(mode).save(buffer, kind, **options)
        files[name] = buffer.getvalue()
    return files


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Change a few bytes, in the header as often as anywhere, or cut, repeat or mix parts."""
    content = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        where = chance.randrange(min(len(content), chance.choice((32, 200, len(content)))) or 1)
        match chance.randrange(6):
            case 0:
                content[where : where + 1] = bytes([chance.randrange(256)])
            case 1:
                telling = chance.choice(TELLING)
                content[where : where + len(telling)] = telling
            case 2:
                del content[where : where + chance.randrange(1, 64)]
            case 3:
                content[where:where] = content[where : where + chance.randrange(1, 64)]
            case 4:
                content[where:where] = chance.randbytes(chance.randrange(1, 16))
            case _:
                del content[max(1, len(content) - chance.randrange(1, len(content) + 1)) :]
        if not content:
            break
    return bytes(content)


def mutated_within(png: bytes, chance: random.Random) -> bytes:
    """Change what one chunk of a PNG holds, pixels included, and compress and sum it anew.

    A PNG says by its checksums that a byte was changed, and what comes after them would never be met otherwise.
    """
    chunks: list[tuple[bytes, bytes]] = []
    start = 8
    while start < len(png):
        length = int.from_bytes(png[start : start + 4], "big")
        chunks.append((png[start + 4 : start + 8], png[start + 8 : start + 8 + length]))
        start += 12 + length
    chosen = chance.randrange(len(chunks) - 1)  # the last is the end, and empty
    content = png[:8]
    for position, (kind, held) in enumerate(chunks):
        changed = held
        if position == chosen:
            is_pixels = kind == b"IDAT"
            changed = mutated(zlib.decompress(held) if is_pixels else held, chance)
            changed = zlib.compress(changed) if is_pixels else changed
        checksum = zlib.crc32(kind + changed)
        content += len(changed).to_bytes(4, "big") + kind + changed + checksum.to_bytes(4, "big")
    return content


@pytest.fixture
def decoder() -> Iterator[ImageDecoder]:
    decoder = ImageDecoder(SPEC, max_pixels=100_000, threads=1)
    yield decoder
    decoder.close()


@pytest.mark.parametrize("name", originals())
async def test_a_mutated_picture_is_decoded_or_refused_by_name(decoder: ImageDecoder, name: str) -> None:
    original, chance = originals()[name], random.Random(name)
    decoded = refused = 0
    for example in range(EXAMPLES):
        within = original.startswith(b"\x89PNG") and example % 2
        data = mutated_within(original, chance) if within else mutated(original, chance)
        try:
            pixels = await decode(decoder, data)
        except (InvalidImage, ImageTooLarge) as error:
            assert (error.field, bool(error.remedy)) == ("body", True)
            refused += 1
        else:
            assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)
            decoded += 1
    assert decoded, "the mutations reach no decoder"
    assert refused, "the mutations break nothing"


@pytest.mark.parametrize("name", originals())
async def test_a_cut_picture_is_refused_unless_nothing_of_it_is_missing(decoder: ImageDecoder, name: str) -> None:
    original = originals()[name]
    whole = await decode(decoder, original)
    for length in range(0, len(original), max(1, len(original) // 60)):
        try:
            pixels = await decode(decoder, original[:length])
        except InvalidImage:
            continue
        np.testing.assert_array_equal(pixels, whole)
        assert length > 0.9 * len(original)
