"""From the bytes of a picture to the model's pixels, as the manifest says; what is refused is refused early.

Only JPEG, PNG and WebP are ever parsed, whatever the declared type; size and pixels are read from the header
before anything is decoded. JPEG by simplejpeg where the manifest says so (`service.jpeg`), small plain PNGs by
kornia-rs (`service.plain_png`), all else by Pillow.
The rules, the same as in training and export:

- the EXIF orientation is applied, where it can be read; colour profiles are ignored; transparency is dropped, as
  Pillow's `convert("RGB")` does; greyscale, palette and CMYK become RGB; of 16 bits the upper 8 count
- of a multi-picture JPEG (as telephones write) the first picture counts; an animation is refused here, and training
  takes its first
- then resized and cropped with the manifest's geometry, by Pillow; what a detector's picture leaves free is zero

It knows neither HTTP nor the model: bytes in, uint8 [H, W, 3] out.
"""

import warnings
from concurrent.futures import Future
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from service.bundle import InputSpec
from service.errors import ImageTooLarge, InvalidImage
from service.jpeg import JpegHead, decode_rgb, is_jpeg, read_head
from service.plain_png import count_png_chunks, decode_plain_png, lacks_pixels
from service.threads import Threads
from service.upright import upright

Pixels = NDArray[np.uint8]


class Sized(NamedTuple):
    """A picture as a detector sees it.

    Attributes:
        pixels: uint8 [H, W, 3].
        part: width and height of the picture in it.
        own: its own width and height, upright.
    """

    pixels: Pixels
    part: tuple[int, int]
    own: tuple[int, int]


FORMATS = ("JPEG", "PNG", "WEBP")
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_INLINE_PIXELS = 128 * 128
"""Up to here decoding costs less than the way to another thread and back."""
_INLINE_BYTES = 65_536
"""A longer file can hold up the event loop whatever its pixels: by chunks that are read one by one."""
_INLINE_JPEG_BYTES = 16_384
"""A longer JPEG has more pixels, or is none of the usual ones: its head need not be read to know."""
_INLINE_CHUNKS = 100
_PACKED_CHUNKS = (b"zTXt", b"iTXt", b"iCCP")
"""Of a PNG, which its reader unpacks, up to a MiB each: that takes a thousand times what their bytes suggest."""
_MOST_CHUNKS = 10_000
"""Of a PNG; the usual ones hold 8 KiB or more."""
_ORIENTATIONS = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
"""Where a picture may say how it was held; most say nothing, and asking Pillow takes a while."""
_ANIMATED_FORMATS = ("PNG", "WEBP")
_LONGEST_SIDE = 65_535
"""Of a picture, as of a JPEG: to resize costs time and memory by the column and the row, while no other thread runs,
and a PNG of a few bytes may state one row of millions."""
_LONGEST_SIDE_DETECTED = 16_384
"""Of a picture for a detector: so does each mask."""


class ImageDecoder:
    """Decodes, resizes and crops; small pictures at once, large ones in threads.

    Pillow's own limit on pixels is taken off, for the whole process: it knows nothing of `max_pixels`. That is safe,
    as every header is held against `max_pixels` before anything is decoded; of a WebP even before Pillow opens it,
    which makes room for all its pixels. Pillow's limits on compressed text and colour profiles stay. Its warnings are
    left out, for the whole process too: one picture may cause ten thousands.

    Args:
        spec: the model's input.
        max_pixels: most pixels of a picture, as its header states them and as it is resized.
        threads: how many large pictures are decoded at a time.
    """

    def __init__(self, spec: InputSpec, *, max_pixels: int, threads: int) -> None:
        self._spec = spec
        self._max_pixels = max_pixels
        self._inline_pixels = min(max_pixels, _INLINE_PIXELS)
        size = spec.width, spec.height
        # A picture of the input's size from which nothing is resized or cropped: to find that out each time takes 4 us.
        self._as_it_is = size if spec.geometry(*size) == (size, (0, 0, *size)) else None
        self._threads = Threads(threads, "decode")
        Image.MAX_IMAGE_PIXELS = None
        warnings.filterwarnings("ignore", module="PIL")

    def begin(self, data: bytes, *, field: str) -> Pixels | Future[Pixels]:
        """Return the model's pixels, uint8 [H, W, 3], or the work in a thread that decodes them.

        Args:
            data: the picture's file.
            field: what to call it in an error.

        Raises:
            InvalidImage: it is broken, animated, or of another format.
            ImageTooLarge: it has too many pixels.
        """
        at_once = self.at_once(data, field=field)
        if at_once is not None:
            return at_once
        if _may_take_long(data):
            return self._threads.submit(self._whole, data, field)
        image = self._open(data, field)
        if image.width * image.height <= _INLINE_PIXELS:
            return self._pixels(image, data, field)
        return self._threads.submit(self._pixels, image, data, field)

    def at_once(self, data: bytes, *, field: str) -> Pixels | None:
        """Return the pixels of a small plain PNG as `begin` does, without its detour; None: it is another picture."""
        plain = decode_plain_png(data, self._inline_pixels) if len(data) <= _INLINE_BYTES else None
        if plain is None:
            return None
        height, width, _ = plain.shape
        if (width, height) == self._as_it_is:
            return plain
        self._refuse_by_resized(width, height, field)
        return self._fitted(Image.fromarray(plain))

    def begin_sized(self, data: bytes, *, field: str) -> Future[Sized]:
        """Return the work that gives a detector's pixels and both sizes: in a thread, as its pictures are large.

        Args, Raises: as `begin`.
        """
        return self._threads.submit(self._sized, data, field)

    def _sized(self, data: bytes, field: str) -> Sized:
        picture = self._rgb(self._open(data, field), data, field)
        return Sized(self._fitted(picture), self._spec.fitted_size(*picture.size), picture.size)

    def _whole(self, data: bytes, field: str) -> Pixels:
        return self._pixels(self._open(data, field), data, field)

    def busy(self) -> float:
        """Return how many seconds it may take until the threads have done all that they were handed."""
        return self._threads.busy()

    def close(self) -> None:
        """Stop the threads."""
        self._threads.close()

    def _open(self, data: bytes, field: str) -> Image.Image | JpegHead:
        """Read the header and refuse by it."""
        if not data:
            raise InvalidImage("The picture is empty.", field=field, remedy="Send the bytes of a picture.")
        if canvas := _webp_canvas(data):
            self._refuse_by_size(*canvas, field)
        if count_png_chunks(data, _MOST_CHUNKS) > _MOST_CHUNKS:
            raise InvalidImage(
                f"The picture has more than {_MOST_CHUNKS} chunks.", field=field, remedy="Write it with larger ones."
            )
        try:
            image = self._head(data)
        except Exception as error:  # whatever a parser of foreign bytes comes up with
            raise _broken(error, field) from error
        self._refuse_by_size(image.width, image.height, field)
        if getattr(image, "format", None) in _ANIMATED_FORMATS and getattr(image, "is_animated", False):
            raise InvalidImage("The picture is an animation.", field=field, remedy="Send one still picture.")
        self._refuse_by_resized(image.width, image.height, field)
        self._refuse_by_length(image.width, image.height, field)
        return image

    def _head(self, data: bytes) -> Image.Image | JpegHead:
        if is_jpeg(data):
            head = read_head(data)
            if head and self._spec.decoder == "simplejpeg":
                return head
        return Image.open(BytesIO(data), formats=FORMATS)

    def _refuse_by_resized(self, width: int, height: int, field: str) -> None:
        (resized_width, resized_height), _ = self._spec.geometry(width, height)
        if resized_width * resized_height > self._max_pixels:
            raise ImageTooLarge(
                f"The picture is so narrow that it has {resized_width}x{resized_height} pixels once its shorter "
                "side fits the model.",
                field=field,
                value=f"{width}x{height}",
                remedy="Crop it to more usual proportions.",
            )

    def _refuse_by_length(self, width: int, height: int, field: str) -> None:
        most = _LONGEST_SIDE_DETECTED if self._spec.resize == "longest_side" else _LONGEST_SIDE
        if max(width, height) > most:
            raise ImageTooLarge(
                f"The picture has a side of more than {most} pixels.",
                field=field,
                value=f"{width}x{height}",
                remedy="Cut it into several pictures, or send it smaller.",
            )

    def _refuse_by_size(self, width: int, height: int, field: str) -> None:
        if width * height > self._max_pixels:
            raise ImageTooLarge(
                f"The picture has more than {self._max_pixels} pixels.",
                field=field,
                value=f"{width}x{height}",
                remedy="Send a smaller picture; the model looks at "
                f"{self._spec.width}x{self._spec.height} pixels in the end.",
            )

    def _pixels(self, image: Image.Image | JpegHead, data: bytes, field: str) -> Pixels:
        return self._fitted(self._rgb(image, data, field))

    def _rgb(self, image: Image.Image | JpegHead, data: bytes, field: str) -> Image.Image:
        """Decode what was opened to an RGB picture, upright."""
        try:
            if isinstance(image, JpegHead):
                return decode_rgb(data, image)
            image.load()
            if lacks_pixels(data):
                raise OSError("its pixels end too early")
            return _to_rgb(_upright(image))
        except Exception as error:  # as above
            raise _broken(error, field) from error

    def _fitted(self, picture: Image.Image) -> Pixels:
        """Resize and crop an RGB picture, upright already."""
        return _array(self._resized(picture))

    def _resized(self, picture: Image.Image) -> Image.Image:
        spec, (size, box) = self._spec, self._spec.geometry(*picture.size)
        if picture.size != size and spec.crop == "with_resize":
            window = spec.source_window(*picture.size)
            return picture.resize((spec.width, spec.height), _RESAMPLING[spec.interpolation], window)
        if picture.size != size:
            picture = picture.resize(size, _RESAMPLING[spec.interpolation])
        return picture if box == (0, 0, *size) else picture.crop(box)


def _may_take_long(data: bytes) -> bool:
    """Tell whether a file may hold up whoever reads it, be the picture as small as it says."""
    if is_jpeg(data):
        return len(data) > _INLINE_JPEG_BYTES
    if len(data) > _INLINE_BYTES or count_png_chunks(data, _INLINE_CHUNKS) > _INLINE_CHUNKS:
        return True
    return any(name in data for name in _PACKED_CHUNKS)


def _array(picture: Image.Image) -> Pixels:
    # Half the time of np.asarray(picture), which asks the picture for the same bytes.
    return np.frombuffer(picture.tobytes(), np.uint8).reshape(picture.height, picture.width, 3)


def _webp_canvas(data: bytes) -> tuple[int, int] | None:
    """Return width and height as the head of a WebP states them; None if it is no WebP."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None

    def number(start: int, length: int) -> int:
        return int.from_bytes(data[start : start + length], "little")

    match data[12:16]:
        case b"VP8X":
            return number(24, 3) + 1, number(27, 3) + 1
        case b"VP8L":
            return (number(21, 4) & 0x3FFF) + 1, (number(21, 4) >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            return number(26, 2) & 0x3FFF, number(28, 2) & 0x3FFF
    return None


def _upright(image: Image.Image) -> Image.Image:
    return upright(image) if _ORIENTATIONS & image.info.keys() else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit greyscale, in whichever integer mode
        grey = np.asarray(image)
        upper = grey >> 8 if grey.dtype.kind == "u" else (grey.astype(np.uint32) >> 8).clip(0, 255)
        return Image.fromarray(upper.astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _broken(error: Exception, field: str) -> InvalidImage:
    unknown = isinstance(error, UnidentifiedImageError)
    said = str(error)
    wordy = said if any(char.isalpha() for char in said) else "it is damaged or incomplete"  # Pillow may say -1
    reason = "its bytes are no JPEG, PNG or WebP" if unknown else wordy
    return InvalidImage(
        f"The picture cannot be read: {reason[:200]}.",
        field=field,
        remedy="Send a whole, undamaged JPEG, PNG or WebP file.",
    )
