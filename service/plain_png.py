"""The short way through a PNG in which nothing is unusual, for which Pillow's own way takes four times as long.

Most of what reading a small PNG costs is the reader, not the pixels. A PNG of 8-bit RGB, not interlaced, with nothing
but its pixels and some chunks that cannot change them, goes to kornia-rs, which decodes it in one call (by the crate
png, in Rust). Whatever is unusual or broken is left to Pillow's reader, which decides and words the refusal; only what
lies behind the last pixel within their data counts for nothing here, be it wrong, too much or cut off, the checksum
there too: each chunk has its own. In larger pictures Pillow lets the same pass but a wrong checksum; to find that here,
all would have to be unpacked twice, which takes a tenth of a whole request or more. A chunk's own wrong checksum leads
to Pillow as well, which passes over that of pixels.

Where Pillow is lenient without saying so, PNGs are held against their header here: `lacks_pixels`.

Source: W3C, *Portable Network Graphics (PNG) Specification (Third Edition)*, sections 5, 8 and 11.
"""

import struct
import zlib
from collections.abc import Iterator
from itertools import islice

import numpy as np
from kornia_rs.io import decode_image_png_u8
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">II5B")
_PLAIN = (8, 2, 0, 0, 0)
"""Depth 8, RGB, and the only methods of compression and filtering there are, not interlaced."""
_BEHIND_THE_HEADER = 33
_WITHOUT_EFFECT = {b"gAMA": 4, b"sRGB": 1, b"cHRM": 32, b"pHYs": 9, b"tIME": 7, b"sBIT": 3, b"bKGD": 6}
"""Chunks that say how colours are meant, not which pixels there are, and their bytes: profiles are ignored anyway."""
_MOST_PLAIN_CHUNKS = 100
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of a pixel, for each type of colour."""
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Each pass of an interlaced picture: its first column and row, and the steps to the next."""
_AT_A_TIME = 1 << 16


def decode_plain_png(data: bytes, most_pixels: int) -> NDArray[np.uint8] | None:
    """Return the pixels, uint8 [H, W, 3], or None where it is no such PNG, has too many, or anything is wrong with it.

    >>> decode_plain_png(b"GIF89a", 100) is None
    True
    """
    if not data.startswith(_SIGNATURE) or len(data) < _BEHIND_THE_HEADER:
        return None
    width, height, *kind = _HEADER.unpack_from(data, 16)
    if tuple(kind) != _PLAIN or not 0 < width * height <= most_pixels or not _is_plain(data):
        return None
    try:
        pixels: NDArray[np.uint8] = decode_image_png_u8(data, (height, width), "rgb")
    except Exception:  # kornia-rs has no errors of its own
        return None
    return pixels


def _is_plain(data: bytes) -> bool:
    """Tell whether nothing but pixels follows the header, and chunks without effect before them.

    Whether the header is one, whether its checksum and those of pixels are right, and all of these there, the decoder
    tells.
    """
    position, has_pixels = _BEHIND_THE_HEADER, False
    for _ in range(_MOST_PLAIN_CHUNKS):
        name, length = data[position + 4 : position + 8], int.from_bytes(data[position : position + 4], "big")
        if name == b"IDAT":
            has_pixels = True
        elif name == b"IEND":
            return has_pixels and length == 0
        elif has_pixels or _WITHOUT_EFFECT.get(name) != length or not _is_undamaged(data, position, length):
            return False
        position += 12 + length
    return False


def _is_undamaged(data: bytes, position: int, length: int) -> bool:
    end = position + 8 + length
    return zlib.crc32(data[position + 4 : end]) == int.from_bytes(data[end : end + 4], "big")


def count_png_chunks(data: bytes, most: int) -> int:
    """Return how many chunks a PNG has, not counting beyond one more than `most`; 0: it is none."""
    return sum(1 for _ in islice(_chunks(data), most + 1)) if data.startswith(_SIGNATURE) else 0


def lacks_pixels(data: bytes) -> bool:
    """Return whether a PNG's data unpack to fewer bytes than its header asks for: Pillow leaves those black.

    Raises:
        ValueError: something comes before its header, or a second header before its pixels, of which Pillow takes the
            last.

    >>> lacks_pixels(b"GIF89a")
    False
    """
    if not data.startswith(_SIGNATURE):
        return False
    if [name for name, _, _ in _chunks(data, before=b"IDAT") if name == b"IHDR"] != [b"IHDR"] or data[12:16] != b"IHDR":
        raise ValueError("it does not begin with its only header")
    width, height, depth, colour, _, _, interlaced = _HEADER.unpack_from(data, 16)
    bits = depth * _SAMPLES[colour]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = ((_steps(width, left, right), _steps(height, top, down)) for left, top, right, down in passes)
    missing: int = sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns)
    unpacking = zlib.decompressobj()
    try:
        for part in _first_pixels(data):
            left: bytes | memoryview = part
            while left and missing > 0 and not unpacking.eof:
                missing -= len(unpacking.decompress(left, _AT_A_TIME))
                left = unpacking.unconsumed_tail  # a copy each time: parts are short
            if missing <= 0:  # and never `flush`, which would unpack all that is left, a thousand times its size
                return False
        return missing > len(unpacking.flush())
    except zlib.error:  # behind all pixels: Pillow refuses what it cannot unpack before
        return False


def _steps(size: int, first: int, step: int) -> int:
    return max(0, -(-(size - first) // step))


def _chunks(data: bytes, *, before: bytes = b"") -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each chunk and where its content begins and ends, up to the first of a certain name."""
    position = len(_SIGNATURE)
    while position + 8 <= len(data):
        name, begin = data[position + 4 : position + 8], position + 8
        if name == before:
            return
        end = begin + int.from_bytes(data[position : position + 4], "big")
        yield name, begin, end
        position = end + 4


def _first_pixels(data: bytes) -> Iterator[memoryview]:
    """Yield the contents of the first IDAT chunks that lie one behind the other, in parts."""
    view, found = memoryview(data), False
    for name, begin, end in _chunks(data):
        if name == b"IDAT":
            found = True
            for at in range(begin, min(end, len(data)), _AT_A_TIME):
                yield view[at : min(end, at + _AT_A_TIME)]
        elif found:
            return
