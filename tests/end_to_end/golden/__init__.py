"""Golden pictures: one file of every kind that may come, and the pixels that Pillow alone makes of it.

`python -m tests.end_to_end.golden` makes them anew: for new kinds only, as pixels that change are a fault.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from service.bundle import InputSpec

FOLDER = Path(__file__).parent
PLAIN: dict[str, Any] = {"mean": (0, 0, 0), "std": (1, 1, 1)}
SHORTEST: dict[str, Any] = PLAIN | {"height": 16, "width": 16, "resize": "shortest_side", "resize_size": 20}
SPECS = {
    "whole": InputSpec(height=45, width=33, resize="exact", **PLAIN),
    "exact": InputSpec(height=9, width=7, resize="exact", interpolation="bicubic", **PLAIN),
    "after_resize": InputSpec(**SHORTEST),
    "with_resize": InputSpec(**SHORTEST, crop="with_resize"),
    "longest_side": InputSpec(height=20, width=24, resize="longest_side", **PLAIN),
}


def files() -> list[Path]:
    """Return the pictures."""
    return sorted(file for file in FOLDER.iterdir() if file.suffix in {".jpg", ".png", ".webp"})


def expected() -> dict[str, NDArray[np.uint8]]:
    """Return the pixels by file and spec, as 'file/spec'."""
    with np.load(FOLDER / "pixels.npz") as stored:
        return {name.replace("|", "/"): stored[name] for name in stored.files}


def by_pillow(data: bytes, spec: InputSpec) -> NDArray[np.uint8]:
    """Decode by Pillow alone, step by step."""
    with Image.open(BytesIO(data)) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert("RGB")
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[spec.interpolation]
    size, box = spec.geometry(*image.size)
    if spec.crop == "with_resize" and image.size != size:
        return np.asarray(image.resize((spec.width, spec.height), resample, spec.source_window(*image.size)))
    return np.asarray(image.resize(size, resample).crop(box))


def pictures() -> dict[str, bytes]:
    """Make one picture of each kind."""
    rows, columns = np.mgrid[0:45, 0:33]
    noise = np.random.default_rng(0).integers(0, 60, (45, 33, 4))
    drawn = np.stack([rows * 4, columns * 6, (rows > columns) * 190, rows * 3 + columns], axis=-1) + noise
    rgba = Image.fromarray(drawn.clip(0, 255).astype(np.uint8), "RGBA")
    rgb = rgba.convert("RGB")
    made = {
        f"subsampled_{name}.jpg": simplejpeg.encode_jpeg(np.asarray(rgb), 80, "RGB", name)
        for name in ("444", "422", "420", "440", "411")
    }
    made |= {
        "grey.jpg": _saved(rgb.convert("L"), "JPEG"),
        "progressive.jpg": _saved(rgb, "JPEG", progressive=True),
        "progressive_grey.jpg": _saved(rgb.convert("L"), "JPEG", progressive=True),
        "restarts.jpg": _saved(rgb, "JPEG", restart_marker_blocks=2),
        "coarse.jpg": _saved(rgb, "JPEG", quality=5),
        "stored_as_rgb.jpg": _saved(rgb, "JPEG", keep_rgb=True),
        "profile.jpg": _saved(rgb, "JPEG", icc_profile=b"a profile"),
        "cmyk.jpg": _saved(rgb.convert("CMYK"), "JPEG"),
        "ycck.jpg": _saved(rgb.convert("CMYK"), "JPEG").replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2"),
        "turned_by_xmp.jpg": _saved(rgb, "JPEG", xmp=b'<x:xmpmeta><rdf tiff:Orientation="6"/></x:xmpmeta>'),
        "several.jpg": _saved(rgb, "MPO", save_all=True, append_images=[rgb.convert("L").convert("RGB")]),
        "turned.png": _saved(rgb, "PNG", exif=_orientation(6)),
        "palette.png": _saved(rgb.convert("P"), "PNG"),
        "transparent_palette.png": _saved(rgb.convert("P"), "PNG", transparency=bytes(range(256))),
        "sixteen_bits.png": _saved(Image.fromarray(drawn[..., 0].clip(0, 255).astype(np.uint16) * 257), "PNG"),
        "lossy.webp": _saved(rgb, "WEBP"),
        "lossless.webp": _saved(rgb, "WEBP", lossless=True),
        "transparent.webp": _saved(rgba, "WEBP"),
        "turned.webp": _saved(rgb, "WEBP", exif=_orientation(8)),
    }
    made |= {f"turned_{turn}.jpg": _saved(rgb, "JPEG", exif=_orientation(turn)) for turn in range(2, 9)}
    return made | {f"{mode.lower()}.png": _saved(rgba.convert(mode), "PNG") for mode in ("1", "L", "LA", "RGB", "RGBA")}


def _orientation(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()
