import io
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from service.bundle import InputSpec
from tests.trainer.tiny import pixels, png
from trainer.errors import TrainerError
from trainer.pixels import open_rgb, to_pixels

PLAIN = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def test_exact_stretches_as_pillow_does() -> None:
    image = Image.fromarray(pixels(0, 31, 57))
    spec = InputSpec(height=16, width=24, resize="exact", **PLAIN)
    expected = np.asarray(image.resize((24, 16), Image.Resampling.BILINEAR))
    assert (to_pixels(image, spec) == expected).all()


@pytest.mark.parametrize(("interpolation", "resample"), [("bilinear", 2), ("bicubic", 3)])
@pytest.mark.parametrize(
    ("shape", "size", "box"),
    [
        ((375, 500), (341, 256), (58, 16, 282, 240)),
        ((500, 375), (256, 341), (16, 58, 240, 282)),
        ((256, 256), (256, 256), (16, 16, 240, 240)),
        ((100, 80), (256, 320), (16, 48, 240, 272)),
    ],
)
def test_shortest_side_keeps_proportions_and_takes_the_centre(
    shape: tuple[int, int], size: tuple[int, int], box: tuple[int, int, int, int], interpolation: str, resample: int
) -> None:
    image = Image.fromarray(pixels(1, *shape))
    spec = InputSpec(
        height=224, width=224, resize="shortest_side", resize_size=256, interpolation=interpolation, **PLAIN
    )
    expected = np.asarray(image.resize(size, Image.Resampling(resample)).crop(box))
    assert expected.shape == (224, 224, 3)
    assert (to_pixels(image, spec) == expected).all()


def test_a_picture_of_the_right_size_is_left_as_it_is() -> None:
    spec = InputSpec(height=8, width=8, resize="exact", **PLAIN)
    assert (to_pixels(open_rgb(io.BytesIO(png(3)), "x"), spec) == pixels(3)).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (5, 4)).save(buffer, "TIFF" if mode in {"CMYK", "I;16"} else "PNG")
    buffer.seek(0)
    image = open_rgb(buffer, "x")
    assert (image.mode, image.size) == ("RGB", (5, 4))


def test_a_picture_is_turned_upright_by_its_exif_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees
    buffer = io.BytesIO()
    Image.fromarray(pixels(4, 6, 10)).save(buffer, "PNG", exif=exif)
    buffer.seek(0)
    assert (np.asarray(open_rgb(buffer, "x")) == np.rot90(pixels(4, 6, 10), k=-1)).all()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a picture of a known format"),
        (b"hello", "is not a picture of a known format"),
        (png(0)[:-40], "cannot be read as a picture .*truncated"),
    ],
)
def test_a_broken_picture_is_named_with_the_remedy(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "broken.png"
    file.write_bytes(content)
    with pytest.raises(TrainerError, match=f"^{file}: {said}.*; mend or remove it"):
        open_rgb(str(file), str(file))


def test_a_damaged_jpeg_is_patched_up_as_pillow_does() -> None:
    sink = io.BytesIO()
    Image.fromarray(pixels(5, 64, 64)).save(sink, "JPEG")
    whole = sink.getvalue()
    data = whole[:1500] + b"\xff\xd9" + whole[1502:]
    with pytest.raises(ValueError, match="premature end of data"):
        simplejpeg.decode_jpeg(data)
    with Image.open(io.BytesIO(data)) as by_pillow:
        assert (np.asarray(open_rgb(io.BytesIO(data), "x")) == np.asarray(by_pillow)).all()


def test_a_picture_that_is_not_there_is_named() -> None:
    with pytest.raises(TrainerError, match=r"nowhere\.png: cannot be read as a picture .*No such file"):
        open_rgb("nowhere.png", "nowhere.png")
