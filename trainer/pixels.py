"""One picture to the model's pixels, by the rule of ``InputSpec`` that the service follows too. Knows no tensors."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from service.bundle import InputSpec
from trainer.errors import TrainerError

RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def open_rgb(file: BytesIO | str, name: str) -> Image.Image:
    """Decode a picture, turned upright by its EXIF orientation, in RGB.

    Raises:
        TrainerError: not a picture, or a damaged one; ``name`` says which.
    """
    try:
        with Image.open(file) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise TrainerError(f"{name}: is not a picture of a known format; mend or remove it") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise TrainerError(f"{name}: cannot be read as a picture ({error}); mend or remove it") from error


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
    if image.size != size:
        image = image.resize(size, RESAMPLE[spec.interpolation])
    return np.asarray(image if box == (0, 0, *size) else image.crop(box))
