"""One image file as RGB pixels, whatever kind it is of; and squares cut from images.

    8 bits a channel    as they are; palettes, 1-bit, YCbCr and CMYK converted
    16 bits a channel   scaled by the whole range of the type: round(v / 257)
    transparent         laid on white
    turned by a camera  upright, as EXIF's orientation says

What has no one answer is refused: 32-bit integers and floats, which say nothing of their range, and
files of several frames or pages. CMYK is converted without colour profiles.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["ENDINGS", "Unusable", "cut", "open_rgb", "pixels_digest", "square"]

ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
_SIXTEEN = ("PNG", "PPM")  # formats of at most 16 bits, which Pillow may hold as 32-bit integers
_FRAMES = ("GIF", "TIFF", "PNG", "WEBP")  # of others the first frame is the picture


class Unusable(Exception):
    """Why a file is no image that can be learned from, as a clause."""


def open_rgb(file: Path) -> Any:
    """A file as a Pillow image of mode RGB.

    Raises:
      Unusable: for a file that cannot be read, or whose pixels have no one meaning.
    """
    from PIL import Image

    if file.exists() and not file.is_file():  # a pipe waits for ever
        raise Unusable("it is no regular file")
    try:
        content = file.read_bytes()
    except OSError as error:
        broken = file.is_symlink() and not file.exists()
        raise Unusable(
            "it is a broken link" if broken else f"it cannot be opened ({error.strerror})"
        ) from error
    if not content:
        raise Unusable("it is empty")
    try:
        with Image.open(io.BytesIO(content)) as opened:
            return _rgb(opened)
    except Unusable:
        raise
    except Exception as error:  # damage shows in many ways
        raise Unusable(f"it cannot be read as an image ({type(error).__name__})") from error


def _rgb(opened: Any) -> Any:
    from PIL import Image, ImageOps

    frames = getattr(opened, "n_frames", 1) if opened.format in _FRAMES else 1
    if frames > 1:
        raise Unusable(f"it has {frames} frames or pages, of which one is needed")
    opened.load()
    if not all(opened.size):
        raise Unusable("it has no pixels")
    # By the file's own orientation, before anything drops what the file says of itself.
    image = ImageOps.exif_transpose(opened)
    wide = image.mode.startswith("I;16") or (image.mode == "I" and opened.format in _SIXTEEN)
    if image.mode in ("I", "F") and not wide:
        kind = {"I": "32-bit integers", "F": "floats"}[image.mode]
        raise Unusable(f"its pixels are {kind} of no known range; store 8 or 16 bits")
    if wide:
        # Pillow's own conversion cuts everything above 255 off.
        values = np.asarray(image, np.float64)
        if image.has_transparency_data:  # of one grey level
            values = np.where(values == image.info["transparency"], 65535, values)
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def pixels_digest(image: Any) -> bytes:
    """16 bytes that tell images of other pixels or another size apart."""
    total = hashlib.blake2b(repr(image.size).encode(), digest_size=16)
    total.update(image.tobytes())
    return total.digest()


def square(image: np.ndarray, size: int) -> np.ndarray:
    """An image [H, W, 1 or 3] as [size, size, 1 or 3]: its shorter side resized, the centre cut."""
    from PIL import Image

    grey = image.shape[-1] == 1
    result = cut(Image.fromarray(image[..., 0] if grey else image), size, size)
    return result[..., None] if grey else result


def cut(image: Any, resize: int, size: int) -> np.ndarray:
    """A Pillow image with its shorter side resized, then a square from its centre."""
    from PIL import Image

    width, height = image.size
    short = min(width, height)
    image = image.resize(
        (resize * width // short, resize * height // short), Image.Resampling.BILINEAR
    )
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))
