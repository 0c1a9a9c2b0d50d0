import asyncio
import io
import struct
import sys
import threading
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from service import images
from service.bundle import InputSpec
from service.errors import ImageTooLarge, InvalidImage, ServiceError
from service.images import ImageDecoder
from service.jpeg import read_head
from tests.decoding import decode

MAX_PIXELS = 1_000_000


def spec(**changes: Any) -> InputSpec:
    fields: dict[str, Any] = {"height": 8, "width": 8, "resize": "exact", "mean": (0, 0, 0), "std": (1, 1, 1)}
    return InputSpec(**(fields | changes))


@pytest.fixture
def decoder() -> Iterator[ImageDecoder]:
    decoder = ImageDecoder(spec(), max_pixels=MAX_PIXELS, threads=1)
    yield decoder
    decoder.close()


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Image.Image:
    rows = np.linspace(0, 255, size[0] * size[1] * 3).astype(np.uint8).reshape(size[1], size[0], 3)
    return Image.fromarray(rows).convert(mode)


async def test_a_picture_of_the_models_size_arrives_unchanged(decoder: ImageDecoder) -> None:
    pixels = await decode(decoder, encoded(gradient()))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (8, 8, 3)
    np.testing.assert_array_equal(pixels, np.asarray(gradient()))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
async def test_lossless_formats_give_the_same_pixels(decoder: ImageDecoder, kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels = await decode(decoder, encoded(gradient(), kind, **options))
    np.testing.assert_array_equal(pixels, np.asarray(gradient()))


@pytest.mark.parametrize("turn", [1, 6])
async def test_a_detectors_picture_comes_with_both_sizes_upright(turn: int) -> None:
    rule = spec(height=24, width=32, resize="longest_side")
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(gradient(size=(40, 10)), "PNG", exif=exif)
    decoder = ImageDecoder(rule, max_pixels=MAX_PIXELS, threads=1)
    sized = decoder.begin_sized(data, field="body").result()
    decoder.close()
    assert (sized.own, sized.part) == (((40, 10), (32, 8)) if turn == 1 else ((10, 40), (6, 24)))
    width, height = sized.part
    upright = gradient(size=(40, 10)).transpose(Image.Transpose.ROTATE_270) if turn == 6 else gradient(size=(40, 10))
    expected = np.zeros((24, 32, 3), np.uint8)
    expected[:height, :width] = np.asarray(upright.resize(sized.part, Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(sized.pixels, expected)


async def test_resize_and_crop_are_pillows_with_the_manifests_geometry() -> None:
    rule = spec(resize="shortest_side", resize_size=10, interpolation="bicubic")
    decoder = ImageDecoder(rule, max_pixels=MAX_PIXELS, threads=1)
    image = gradient(size=(40, 30))
    size, box = rule.geometry(40, 30)
    expected = np.asarray(image.resize(size, Image.Resampling.BICUBIC).crop(box))
    np.testing.assert_array_equal(await decode(decoder, encoded(image)), expected)
    decoder.close()


async def test_large_pictures_are_decoded_in_a_thread_to_the_same_pixels(decoder: ImageDecoder) -> None:
    image = gradient(size=(300, 200))
    pixels = await decode(decoder, encoded(image))
    assert any(thread.name.startswith("decode") for thread in threading.enumerate())
    np.testing.assert_array_equal(pixels, np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR)))


def test_a_picture_whose_decoding_is_dropped_before_its_turn_is_let_go_at_once(decoder: ImageDecoder) -> None:
    gate, data = threading.Event(), encoded(gradient(size=(300, 200)))
    decoder._threads.submit(gate.wait, 20)
    for begin in (decoder.begin, decoder.begin_sized):
        before, begun = sys.getrefcount(data), begin(data, field="body")
        assert isinstance(begun, Future)
        assert sys.getrefcount(data) > before
        assert begun.cancel()
        assert sys.getrefcount(data) == before
    gate.set()


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA"])
async def test_other_modes_become_rgb_as_pillow_does_it(decoder: ImageDecoder, mode: str) -> None:
    image = gradient(mode)
    pixels = await decode(decoder, encoded(image))
    np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


async def test_transparency_is_dropped_and_the_colour_beneath_stays(decoder: ImageDecoder) -> None:
    image = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    assert (await decode(decoder, encoded(image)))[0, 0].tolist() == [10, 20, 30]


async def test_a_palette_with_transparency_is_no_trouble(decoder: ImageDecoder) -> None:
    data = encoded(gradient("P"), transparency=bytes(range(100)))
    assert (await decode(decoder, data)).shape == (8, 8, 3)


async def test_of_sixteen_bits_the_upper_eight_count(decoder: ImageDecoder) -> None:
    image = Image.fromarray(np.full((8, 8), 0xAB12, np.uint16))
    assert image.mode == "I;16"
    assert (await decode(decoder, encoded(image)))[0, 0].tolist() == [0xAB] * 3


async def test_cmyk_becomes_rgb(decoder: ImageDecoder) -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    red, green, blue = (await decode(decoder, data))[0, 0].tolist()
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
async def test_the_exif_orientation_is_applied(decoder: ImageDecoder, kind: str) -> None:
    image = Image.new("RGB", (8, 8))
    image.paste((255, 255, 255), (0, 0, 8, 4))  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    pixels = await decode(decoder, encoded(image, kind, exif=exif))
    assert pixels[6, 4].tolist() > [200] * 3
    assert pixels[1, 4].tolist() < [60] * 3


async def test_a_multi_picture_jpeg_counts_as_its_first(decoder: ImageDecoder) -> None:
    first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert (await decode(decoder, data))[0, 0, 0] > 200


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
async def test_an_animation_is_refused(decoder: ImageDecoder, kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 120, 240)]
    with pytest.raises(InvalidImage, match="animation"):
        await decode(decoder, encoded(frames[0], kind, save_all=True, append_images=frames[1:]))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
async def test_other_formats_are_refused_whatever_they_hold(decoder: ImageDecoder, kind: str) -> None:
    with pytest.raises(InvalidImage, match="no JPEG, PNG or WebP"):
        await decode(decoder, encoded(gradient(), kind))


@pytest.mark.parametrize("data", [b"", b"x", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBPVP8 "])
async def test_what_is_no_picture_is_refused_with_its_field(decoder: ImageDecoder, data: bytes) -> None:
    with pytest.raises(InvalidImage) as refusal:
        await decode(decoder, data, field="images[3].data")
    assert refusal.value.field == "images[3].data"
    assert refusal.value.remedy


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
async def test_a_truncated_picture_is_refused(decoder: ImageDecoder, kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(InvalidImage):
        await decode(decoder, data[: len(data) // 2])


def photograph(**options: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise), "JPEG", **options)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda whole: whole[:-1], "Premature end"),
        (lambda whole: whole[:-400], "Premature end"),
        (lambda whole: whole[:1500] + b"\xff\xd9" + whole[1502:], "premature end of data"),
        (lambda whole: whole[:20] + bytes(3) + whole[20:], "extraneous bytes"),
    ],
    ids=["last byte missing", "end missing", "an end amidst", "bytes amidst the head"],
)
async def test_what_libjpeg_would_patch_up_is_refused(decoder: ImageDecoder, damage: Any, said: str) -> None:
    assert (await decode(decoder, photograph())).shape == (8, 8, 3)
    with pytest.raises(InvalidImage, match=said):
        await decode(decoder, damage(photograph()))


async def test_a_bundle_that_records_pillow_keeps_its_leniency() -> None:
    whole = photograph()
    data = whole[:1500] + b"\xff\xd9" + whole[1502:]
    decoder = ImageDecoder(spec(decoder="pillow"), max_pixels=MAX_PIXELS, threads=1)
    assert (await decode(decoder, data)).shape == (8, 8, 3)
    decoder.close()


def with_repeated_scan(data: bytes, times: int) -> bytes:
    """Repeat the last scan of a progressive JPEG."""
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * times + data[-2:]


@pytest.mark.parametrize("kind", ["simplejpeg", "pillow"])
async def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded(kind: str) -> None:
    decoder = ImageDecoder(spec(decoder=kind), max_pixels=MAX_PIXELS, threads=1)
    data = photograph(progressive=True)
    assert (await decode(decoder, data)).shape == (8, 8, 3)
    with pytest.raises(InvalidImage, match="more than 100 scans"):
        await decode(decoder, with_repeated_scan(data, 100))
    decoder.close()


def behind(disguise: bytes, data: bytes) -> bytes:
    """Put a segment into the head that holds another head, of one scan: for whoever miscounts bytes before it."""
    size = 65_500
    other = bytes.fromhex("ffc0000b080008000801011100ffda0008010100003f00")
    segment = disguise + b"\xff\xe0" + struct.pack(">H", 2 + size + len(other)) + bytes(size) + other
    return data[:2] + segment + data[2:]


DISGUISES = [b"\xff\x01", b"\xff\x00", b"\xff\xd0", b"\xff\xd7", b"\xff", b"\xff\xfe\x00\x02x"]
"""What libjpeg passes over between segments."""


@pytest.mark.parametrize("disguise", DISGUISES)
async def test_scans_are_counted_whatever_lies_between_segments(decoder: ImageDecoder, disguise: bytes) -> None:
    data = with_repeated_scan(photograph(progressive=True), 100)
    with pytest.raises(InvalidImage, match="more than 100 scans"):
        await decode(decoder, behind(disguise, data))


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize(("progressive", "marker"), [(False, 0xC9), (True, 0xCA), (False, 0xCB), (False, 0xCF)])
async def test_arithmetic_coding_is_refused_as_it_takes_any_time(
    decoder: ImageDecoder, disguise: bytes, progressive: bool, marker: int
) -> None:
    data = photograph(progressive=progressive)
    frame = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data = data[:frame] + bytes([0xFF, marker]) + data[frame + 2 :]
    for each in (data, behind(disguise, data)):
        with pytest.raises(InvalidImage, match="arithmetic coding, where only Huffman coding is read"):
            await decode(decoder, each)


@pytest.mark.parametrize("segment", [b"\xff\xfe\x00\x02", b"\xff\x00", b"\xff\x01"])
async def test_a_jpeg_of_endless_segments_is_refused(decoder: ImageDecoder, segment: bytes) -> None:
    data = photograph()
    assert (await decode(decoder, data[:2] + 9000 * b"\xff\xfe\x00\x02" + data[2:])).shape == (8, 8, 3)
    with pytest.raises(InvalidImage, match="more than 10000 segments before its pixels"):
        await decode(decoder, data[:2] + 10_001 * segment + data[2:])


async def test_unusual_subsampling_is_left_to_pillow(decoder: ImageDecoder) -> None:
    data = bytearray(photograph(subsampling=0))
    sampling = data.index(b"\xff\xc0") + 11  # of luma: 1x1 becomes 3x1, which no name is for
    assert data[sampling] == 0x11
    data[sampling] = 0x31
    assert read_head(bytes(data)) is None
    assert (await decode(decoder, bytes(data))).shape == (8, 8, 3)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_that_claims(width: int, height: int) -> bytes:
    return png_of((width, height), 2, zlib.compress(b"\0"))


def png_of(size: tuple[int, int], colour: int, packed: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", *size, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1001, 1000), (100_000, 100_000), (10_000, 12_000), (2**31 - 1, 2**31 - 1)])
async def test_too_many_pixels_are_refused_by_the_header(decoder: ImageDecoder, size: tuple[int, int]) -> None:
    with pytest.raises(ImageTooLarge, match="more than 1000000 pixels") as refusal:
        await decode(decoder, png_that_claims(*size))
    assert refusal.value.value == f"{size[0]}x{size[1]}"


@pytest.mark.parametrize("size", [(16_385, 1), (1, 16_385), (40_000_000, 1)])
async def test_a_detectors_picture_of_endless_sides_is_refused_by_the_header(size: tuple[int, int]) -> None:
    decoder = ImageDecoder(spec(resize="longest_side"), max_pixels=40_000_000, threads=1)
    with pytest.raises(ImageTooLarge, match="side of more than 16384 pixels") as refusal:
        decoder.begin_sized(png_that_claims(*size), field="body").result()
    assert refusal.value.value == f"{size[0]}x{size[1]}"
    assert decoder.begin_sized(encoded(gradient(size=(16_384, 1))), field="body").result().own == (16_384, 1)
    decoder.close()


@pytest.mark.parametrize("size", [(65_536, 1), (1, 65_536), (40_000_000, 1)])
async def test_a_picture_of_an_endless_side_is_refused_before_its_resizing_is_worked_out(size: tuple[int, int]) -> None:
    decoder = ImageDecoder(spec(), max_pixels=40_000_000, threads=1)
    rows = zlib.compress(bytes(size[1] * (size[0] + 1)))
    with pytest.raises(ImageTooLarge, match="side of more than 65535 pixels") as refusal:
        await decode(decoder, png_of(size, 0, rows))
    assert refusal.value.value == f"{size[0]}x{size[1]}"
    assert (await decode(decoder, encoded(gradient(size=(65_535, 1)), "PNG"))).shape == (8, 8, 3)
    decoder.close()


@pytest.mark.parametrize("size", [(9_000, 10_000), (20_000, 10_000), (30_000, 12_000)])
async def test_the_limit_may_lie_above_pillows_own(size: tuple[int, int]) -> None:
    decoder = ImageDecoder(spec(), max_pixels=400_000_000, threads=1)
    with pytest.raises(InvalidImage, match="cannot be read"):  # past the header: there are no pixels behind it
        await decode(decoder, png_that_claims(*size))
    with pytest.raises(ImageTooLarge, match="more than 400000000 pixels"):
        await decode(decoder, png_that_claims(20_001, 20_000))
    decoder.close()


@pytest.mark.parametrize(
    ("mode", "options"),
    [("RGB", {}), ("RGB", {"lossless": True}), ("RGB", {"icc_profile": b"profile"}), ("RGBA", {})],
    ids=["VP8", "VP8L", "VP8X", "VP8X of transparency"],
)
async def test_a_webp_is_refused_before_room_is_made_for_it(
    mode: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = ImageDecoder(spec(), max_pixels=39 * 52, threads=1)
    assert (await decode(decoder, encoded(gradient(mode, (39, 52)), "WEBP", **options))).shape == (8, 8, 3)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(ImageTooLarge) as refusal:
        await decode(decoder, encoded(gradient(mode, (40, 52)), "WEBP", **options))
    assert refusal.value.value == "40x52"
    decoder.close()


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
async def test_what_unpacks_to_far_more_beside_the_pixels_is_no_harm(decoder: ImageDecoder, kind: bytes) -> None:
    bomb = chunk(kind, b"name\0\0" + zlib.compress(bytes(200 * 2**20)))
    picture = encoded(gradient())
    tracemalloc.start()
    try:
        with pytest.raises(InvalidImage):
            await decode(decoder, picture[:33] + bomb + picture[33:])
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


async def test_a_sliver_that_resizing_would_blow_up_is_refused() -> None:
    rule = spec(resize="shortest_side", resize_size=256, height=224, width=224)
    decoder = ImageDecoder(rule, max_pixels=MAX_PIXELS, threads=1)
    with pytest.raises(ImageTooLarge, match="so narrow"):
        await decode(decoder, png_that_claims(100_000, 1))
    decoder.close()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.data())
def test_a_mutated_picture_is_read_or_refused_and_nothing_else(decoder: ImageDecoder, kind: str, data: Any) -> None:
    content = bytearray(encoded(gradient(size=(16, 16)), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = asyncio.run(decode(decoder, bytes(content)))
    except ServiceError:
        return
    assert pixels.shape == (8, 8, 3)


def png_of_chunks(count: int, name: bytes = b"IDAT") -> bytes:
    whole = encoded(gradient())
    empty = bytes(4) + name + struct.pack(">I", zlib.crc32(name))
    at = whole.index(b"IDAT") - 4
    return whole[:at] + empty * count + whole[at:]


@pytest.mark.parametrize("name", [b"IDAT", b"teST"])
async def test_a_png_of_endless_chunks_is_refused_before_pillow_reads_them(
    decoder: ImageDecoder, name: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(InvalidImage, match="more than 10000 chunks"):
        await decode(decoder, png_of_chunks(100_000, name))


def png_with(name: bytes, content: bytes) -> bytes:
    whole = encoded(gradient())
    return whole[:33] + chunk(name, content) + whole[33:]


@pytest.mark.parametrize(
    "data",
    [
        png_of_chunks(200),
        encoded(gradient()) + bytes(70_000),
        png_with(b"zTXt", b"name\0\0" + zlib.compress(bytes(1000))),
        png_with(b"iTXt", b"name\0\1\0\0\0" + zlib.compress(bytes(1000))),
    ],
)
async def test_what_takes_long_to_open_is_opened_in_a_thread(
    decoder: ImageDecoder, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, opened = [], Image.open

    def noting(*args: Any, **options: Any) -> Image.Image:
        threads.append(threading.current_thread().name)
        return opened(*args, **options)

    monkeypatch.setattr(Image, "open", noting)
    np.testing.assert_array_equal(await decode(decoder, data), np.asarray(gradient()))
    assert [name.startswith("decode") for name in threads] == [True]


@pytest.mark.parametrize(("size", "aside"), [((8, 8), False), ((128, 128), False), ((200, 150), True)])
async def test_the_head_of_a_long_jpeg_is_read_where_it_is_decoded(
    decoder: ImageDecoder, size: tuple[int, int], aside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG", quality=85)
    assert aside == (len(data) > 16_384)
    threads = []

    def noting(data: bytes) -> object:
        threads.append(threading.current_thread().name.startswith("decode"))
        return read_head(data)

    monkeypatch.setattr(images, "read_head", noting)
    pixels = await decode(decoder, data)
    assert threads == [aside]
    fitted = Image.open(io.BytesIO(data)).resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels, np.asarray(fitted))


@pytest.mark.parametrize("size", [(8, 8), (300, 200)])
async def test_a_png_whose_pixels_end_early_is_refused(decoder: ImageDecoder, size: tuple[int, int]) -> None:
    width, height = size
    whole = encoded(gradient(size=size))
    content = zlib.compress(bytes((height - 1) * (1 + 3 * width)))
    chunk = b"IDAT" + content
    cut = struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    with pytest.raises(InvalidImage, match="pixels end too early"):
        await decode(decoder, whole[: whole.index(b"IDAT") - 4] + cut + whole[-12:])


async def test_a_png_that_does_not_begin_with_its_only_header_is_refused(decoder: ImageDecoder) -> None:
    whole = encoded(gradient())
    small = chunk(b"IHDR", struct.pack(">II5B", 1, 1, 8, 2, 0, 0, 0))
    for before in (small, chunk(b"tEXt", b"name\0text")):
        with pytest.raises(InvalidImage, match="does not begin with its only header"):
            await decode(decoder, whole[:8] + before + whole[8:])


async def test_a_picture_of_many_wrong_tags_causes_no_warnings() -> None:
    tags = [struct.pack("<HHLL", 300 + number, 7, 0xFFFF_FFF0, 8) for number in range(50)]
    exif = b"II*\0" + struct.pack("<LH", 8, len(tags)) + b"".join(tags) + bytes(4)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        decoder = ImageDecoder(spec(), max_pixels=MAX_PIXELS, threads=1)
        assert (await decode(decoder, png_with(b"eXIf", exif))).shape == (8, 8, 3)
    decoder.close()
    assert not seen
