"""JPEG by simplejpeg, which is libjpeg-turbo: the pixels of Pillow's decoder bit by bit, sooner, and strict.

What libjpeg would patch up (missing or damaged data) is refused: a picture half grey gets no prediction. Rules that
the trainer follows too (`trainer.pixels`), held together by golden pictures:

- accurate DCT and smooth upsampling, never scaled; CMYK and YCCK as Pillow turns them into RGB
- what says how it was held (EXIF, XMP) is turned upright; Pillow reads that
- what simplejpeg has no name for, such as rare subsampling, is left to Pillow: `read_head` returns None

It knows neither limits on pixels nor the model.
"""

import re
from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

import simplejpeg
from PIL import Image

from service.upright import upright

MAX_SCANS = 100
"""A progressive picture has about ten; each passes over all pixels, and a scan of nothing takes few bytes."""
MAX_SEGMENTS = 10_000
"""Before the first scan. They hold up to 64 KiB each, and a usual picture has about ten."""

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1)
_ARITHMETIC = frozenset(range(0xC9, 0xD0)) - {0xCC}
"""Seven kilobytes of it take 20 s of a core within `MAX_SCANS`; hardly a program writes it, and browsers show none."""
_MARKER = re.compile(rb"\xff++")
"""What comes before a marker: one byte, or more that fill up."""
_TEMPORARY, _FIRST_RESTART, _START, _END = 0x01, 0xD0, 0xD8, 0xD9
_APP1 = 0xE1
_SOS = 0xDA


class JpegHead(NamedTuple):
    """What the head of a JPEG says.

    Attributes:
        width, height: in pixels, as stored.
        colorspace: simplejpeg's name of it.
        turned: whether it may say that it was not held upright.
    """

    width: int
    height: int
    colorspace: str
    turned: bool


def is_jpeg(data: bytes) -> bool:
    """Tell by the first bytes."""
    return data[:3] == b"\xff\xd8\xff"


def read_head(data: bytes) -> JpegHead | None:
    """Read the head; None where simplejpeg makes nothing of it.

    Raises:
        ValueError: more than `MAX_SCANS` scans or `MAX_SEGMENTS` segments before them, or arithmetic coding.
    """
    turned, scans_bounded = _look_through(data)
    if not scans_bounded and data.count(b"\xff\xda") > MAX_SCANS:
        raise ValueError(f"it has more than {MAX_SCANS} scans")
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)  # `decode_rgb` is strict
    except ValueError:
        return None
    return JpegHead(int(width), int(height), colorspace, turned)


def decode_rgb(data: bytes, head: JpegHead) -> Image.Image:
    """Decode to an RGB picture, upright.

    Raises:
        ValueError: data is missing or damaged.
    """
    size = head.width, head.height
    if head.colorspace in {"CMYK", "YCCK"}:
        inverted = simplejpeg.decode_jpeg(data, "CMYK")
        image = Image.frombuffer("CMYK", size, inverted, "raw", "CMYK;I", 0, 1).convert("RGB")
    else:
        image = Image.frombuffer("RGB", size, simplejpeg.decode_jpeg(data, "RGB"), "raw", "RGB", 0, 1)
    if not head.turned:
        return image
    with Image.open(BytesIO(data), formats=("JPEG",)) as described:
        image.info = described.info
    return upright(image)


def _look_through(data: bytes) -> tuple[bool, bool]:
    """Return whether the picture may be turned, and whether it is sure to have one scan."""
    frame, components, turned = 0, 0, False
    for marker, start, end in _segments(data):
        if marker in _ARITHMETIC:
            raise ValueError("it has arithmetic coding, where only Huffman coding is read")
        if marker in _SOF:
            frame, components = marker, data[start + 5] if start + 5 < len(data) else 0
        elif marker == _APP1:
            turned = turned or data[start : start + 4] in {b"Exif", b"http"}
        elif marker == _SOS and end <= len(data):
            return turned, frame in _SEQUENTIAL and data[start] == components
    return True, False


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment up to the first scan; end where none follows.

    What lies between segments is passed over as libjpeg does it, so that both find the same ones.

    Raises:
        ValueError: more than `MAX_SEGMENTS`.
    """
    at = 2
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None:
            return
        at = found.end()
        if at + 3 > len(data) or data[at] in (_START, _END):
            return
        marker, at = data[at], at + 1
        if marker in (0, _TEMPORARY) or _FIRST_RESTART <= marker < _START:  # these are no segments
            continue
        length = max(2, int.from_bytes(data[at : at + 2], "big"))
        yield marker, at + 2, at + length
        at += length
    raise ValueError(f"it has more than {MAX_SEGMENTS} segments before its pixels")
