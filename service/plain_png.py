"""The short way through a PNG in which nothing is unusual, for which Pillow's own way takes three times as long.

Most of what reading a small PNG costs is the reader, not the pixels. A PNG of 8-bit RGB, not interlaced, with nothing
but its pixels and some chunks that cannot change them, is taken apart here, and Pillow's decoder gets the pixels.
Whatever is unusual or broken in any way is left to Pillow's reader, which decides and words the refusal.

Where Pillow is lenient without saying so, PNGs are held against their header here: `lacks_pixels`.

Source: W3C, *Portable Network Graphics (PNG) Specification (Third Edition)*, sections 5, 8 and 11.
"""

import struct
import zlib
from collections.abc import Iterator

from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">II5B")
_PLAIN = (8, 2, 0, 0, 0)
"""Depth 8, RGB, and the only methods of compression and filtering there are, not interlaced."""
_IHDR = b"IHDR", 8, 29
"""The header's name, where it begins and where its checksum stands."""
_WITHOUT_EFFECT = {b"gAMA": 4, b"sRGB": 1, b"cHRM": 32, b"pHYs": 9, b"tIME": 7, b"sBIT": 3, b"bKGD": 6}
"""Chunks that say how colours are meant, not which pixels there are, and their bytes: profiles are ignored anyway."""
_MOST_PLAIN_CHUNKS = 100
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of a pixel, for each type of colour."""
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Each pass of an interlaced picture: its first column and row, and the steps to the next."""
_AT_A_TIME = 1 << 16
_MARK = (1, 2, 3)


class PlainPngDecoder:
    """Decodes into one picture again and again: what it returns holds until it is asked the next time."""

    def __init__(self) -> None:
        self._canvas = Image.new("RGB", (1, 1))

    def decode(self, data: bytes, most_pixels: int) -> Image.Image | None:
        """Return the picture, or None where it is no such PNG, has more pixels, or anything is wrong with it.

        >>> PlainPngDecoder().decode(b"GIF89a", 100) is None
        True
        """
        if not data.startswith(_SIGNATURE):
            return None
        try:
            width, height, *kind = _HEADER.unpack_from(data, 16)
            if tuple(kind) != _PLAIN or not 0 < width * height <= most_pixels:
                return None
            pixels = _compressed_pixels(data)
            if pixels is None:
                return None
            if self._canvas.size != (width, height):
                self._canvas = Image.new("RGB", (width, height))
            return self._filled(pixels)
        except (struct.error, zlib.error, ValueError, OSError):
            return None

    def _filled(self, pixels: bytes) -> Image.Image | None:
        """Return the canvas with these pixels; None where they do not fill it.

        Pillow writes row by row and stops in silence where the data end, so a mark in the last row tells; if it is
        still there it may be the picture's own, and counting settles it.
        """
        canvas, last_row = self._canvas, (0, self._canvas.height - 1)
        canvas.putpixel(last_row, _MARK)
        canvas.frombytes(pixels, "zip", "RGB", 0)
        if canvas.getpixel(last_row) == _MARK and not _is_whole(pixels, canvas.height * (1 + 3 * canvas.width)):
            return None
        return canvas


def _is_whole(pixels: bytes, size: int) -> bool:
    """Return whether they unpack to so many bytes."""
    return len(zlib.decompressobj().decompress(pixels, size)) == size


def _compressed_pixels(data: bytes) -> bytes | None:
    """Return the content of the IDAT chunks, or None where the chunks are not as they should be."""
    parts: list[bytes] = []
    position, count = len(_SIGNATURE), 0
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        name = data[position + 4 : position + 8]
        if zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return None
        count += 1
        if count > _MOST_PLAIN_CHUNKS:
            return None
        if name == b"IDAT":
            parts.append(data[position + 8 : end])
        elif name == b"IEND":
            return b"".join(parts) if end == position + 8 else None
        elif parts or (_WITHOUT_EFFECT.get(name) != end - position - 8 and (name, position, end) != _IHDR):
            return None
        position = end + 4
    return None


def count_png_chunks(data: bytes, most: int) -> int:
    """Return how many chunks a PNG has, not counting beyond one more than `most`; 0: it is none."""
    position, count = len(_SIGNATURE), 0
    while data.startswith(_SIGNATURE) and position + 8 <= len(data) and count <= most:
        count += 1
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return count


def lacks_pixels(data: bytes) -> bool:
    """Return whether a PNG's data unpack to fewer bytes than its header asks for: Pillow leaves those black.

    >>> lacks_pixels(b"GIF89a")
    False
    """
    if not data.startswith(_SIGNATURE):
        return False
    width, height, depth, colour, _, _, interlaced = _HEADER.unpack_from(data, 16)
    bits = depth * _SAMPLES[colour]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = ((_steps(width, left, right), _steps(height, top, down)) for left, top, right, down in passes)
    missing: int = sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns)
    unpacking = zlib.decompressobj()
    try:
        for part in _first_pixels(data):
            while part and missing > 0 and not unpacking.eof:
                missing -= len(unpacking.decompress(part, _AT_A_TIME))
                part = unpacking.unconsumed_tail  # noqa: PLW2901 - what is left of it
        return missing > len(unpacking.flush())
    except zlib.error:  # in a checksum, of which Pillow thinks nothing; it refuses all others
        return False


def _steps(size: int, first: int, step: int) -> int:
    return max(0, -(-(size - first) // step))


def _first_pixels(data: bytes) -> Iterator[bytes]:
    """Yield the contents of the first IDAT chunks that lie one behind the other."""
    position, found = len(_SIGNATURE), False
    while position + 8 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] == b"IDAT":
            found = True
            yield data[position + 8 : end]
        elif found:
            return
        position = end + 4
