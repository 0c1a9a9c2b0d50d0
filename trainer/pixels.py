"""One picture to the model's pixels, by the rule of ``InputSpec`` that the service follows too. Knows no tensors.

JPEG is decoded by simplejpeg, to the pixels that Pillow has too. What it refuses as damaged goes to Pillow, which
patches up what can be: large collections hold such pictures, and the service alone has someone to tell.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from service.bundle import InputSpec
from service.upright import upright
from trainer.errors import TrainerError

RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def open_rgb(file: BytesIO | str, name: str) -> Image.Image:
    """Decode a picture, turned upright by its EXIF orientation, in RGB.

    Raises:
        TrainerError: not a picture, or a damaged one; ``name`` says which.
    """
    try:
        data = file.getvalue() if isinstance(file, BytesIO) else Path(file).read_bytes()
        with Image.open(BytesIO(data)) as image:
            return _to_rgb(upright(_by_simplejpeg(data, image) or image))
    except UnidentifiedImageError as error:
        raise TrainerError(f"{name}: is not a picture of a known format; mend or remove it") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise TrainerError(f"{name}: cannot be read as a picture ({error}); mend or remove it") from error


def _by_simplejpeg(data: bytes, image: Image.Image) -> Image.Image | None:
    """Decode as the service does, with what the picture says of itself; None where it is no whole JPEG in colour."""
    if image.format not in {"JPEG", "MPO"} or image.mode not in {"RGB", "L"}:
        return None
    try:
        decoded = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB"))
    except ValueError:
        return None
    decoded.info = image.info
    return decoded


def _to_rgb(image: Image.Image) -> Image.Image:
    # The service's rule for every mode (service.images), held together by a test: of 16 bits the upper 8 count.
    if image.mode.startswith("I"):
        upper = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(upper)
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def to_pixels(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """Resize and crop an RGB picture to the model's input, uint8 [H, W, 3]."""
    size, box = spec.geometry(*image.size)
    if image.size != size and spec.crop == "with_resize":
        window = spec.source_window(*image.size)
        return np.asarray(image.resize((spec.width, spec.height), RESAMPLE[spec.interpolation], window))
    if image.size != size:
        image = image.resize(size, RESAMPLE[spec.interpolation])
    return np.asarray(image if box == (0, 0, *size) else image.crop(box))
