"""A picture turned as it was held; it knows neither formats nor models."""

from PIL import ExifTags, Image

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each of EXIF's orientations; 1 is upright."""


def upright(image: Image.Image) -> Image.Image:
    """Return a picture turned by the orientation in its EXIF or XMP.

    Pixels do not depend on the rest of what a camera or an editor wrote there: where it is damaged, so that nothing
    can be read of it, the picture stays as it lies, as browsers show it. Pillow's `exif_transpose` fails on it, and
    where it can turn the picture but not write the rest again.

    Raises:
        OSError: the pixels themselves are damaged.
    """
    image.load()
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever a parser of foreign bytes comes up with
        return image
    return image if turn is None else image.transpose(turn)
