"""An image file as what networks take: upright, in RGB, with 8 bits a color."""

from __future__ import annotations

import warnings
from functools import cache
from typing import IO

import numpy as np
from PIL import Image

_TURNS = {  # of EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(file: IO[bytes] | Image.Image) -> Image.Image:
    """A PIL image, or the one in an open file (which is closed), read completely, upright and in RGB.

    A photo is turned as its EXIF orientation says. 16 bits a color are scaled to 8. Of an animation it is the first
    image. Transparency is ignored: a transparent pixel has the color that the file gives it.

    Raises:
        ValueError: the range of its pixels is unknown (32-bit integers, floating point).
        Exception: it is damaged; decoders raise nearly anything.
    """
    if isinstance(file, Image.Image):
        return _rgb(file)
    with file, warnings.catch_warnings():
        # An image of twice the size that this warns of is refused.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return _rgb(Image.open(file, formats=_formats()))


@cache
def _formats() -> list[str]:
    """All that Pillow reads by itself: for EPS it starts another program, which runs what the file says."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def _rgb(image: Image.Image) -> Image.Image:
    image.load()  # all of it, so damage shows here
    turn = _TURNS.get(_orientation(image))
    image = image if turn is None else image.transpose(turn)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"nothing says which of its values is white (Pillow's mode {image.mode}): save it with 8 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow's other way to RGB warns
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # EXIF data that cannot be read say nothing
        return 1
