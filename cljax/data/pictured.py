"""Pictures without labels, from files, in the form in which a stream stores its images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cljax.data.pictures import ENDINGS, Unusable, cut, open_rgb
from cljax.errors import UserError
from cljax.storage import files

__all__ = ["Pictures", "read_pictures"]


class Pictures(NamedTuple):
    """Examples and what each is called: a file's name, or its number in an array."""

    names: tuple[str, ...]
    x: np.ndarray  # [N, ...]
    left_out: tuple[str, ...] = ()  # files of a folder that are no pictures by their names


def read_pictures(path: Path, shape: tuple[int, ...], resize: int | None = None) -> Pictures:
    """Reads a picture, a folder of them, or a ``.npy`` array, which is taken as it is.

    Args:
      shape: of an image as it is to be stored: [H, W], [H, W, 1 or 3], or [D], a grey square.
      resize: the shorter side of a picture becomes so long, then the centre is cut out; None:
        pictures must have the height and width of ``shape``.

    Raises:
      UserError: for what cannot be read, or pictures of another size.
    """
    if not path.exists():
        raise UserError(f"There are no images {path}; name a picture, a folder or a .npy file.")
    if path.suffix == ".npy":
        return _array(path)
    result, others = [path], []
    if path.is_dir():
        inside = sorted(
            file for file in path.rglob("*")
            if not file.is_dir() and not any(p[0] == "." for p in file.relative_to(path).parts)
        )  # fmt: skip
        result = [file for file in inside if file.suffix.lower() in ENDINGS]
        others = [file for file in inside if file.suffix.lower() not in ENDINGS]
    if not result:
        raise UserError(f"The folder {path} holds no picture, such as a .png or .jpg.")
    images = [_picture(file, shape, resize) for file in result]
    named = lambda file: file.name if file == path else file.relative_to(path).as_posix()
    return Pictures(tuple(map(named, result)), np.stack(images), tuple(map(named, others)))


def _array(path: Path) -> Pictures:
    try:
        with files.opened(path) as file:
            x = files.read_array(file, path.stat().st_size)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read as an array: {reason}.") from error
    if not x.ndim:
        raise UserError(f"{path} holds a single number; give an array [N, ...] of images.")
    return Pictures(tuple(map(str, range(len(x)))), x)


def _picture(file: Path, shape: tuple[int, ...], resize: int | None) -> np.ndarray:
    height, width, channels = _sides(shape)
    try:
        image: Any = open_rgb(file)
    except Unusable as why:
        raise UserError(f"The picture {file} cannot be used: {why}.") from why
    if resize is not None and height == width:
        pixels = cut(image, resize, height)
    elif (image.height, image.width) == (height, width):
        pixels = np.asarray(image)
    else:
        raise UserError(
            f"The picture {file} has {image.width} x {image.height} pixels, but the run learned "
            f"from {width} x {height}; resize it."
        )
    if channels == 1:
        from PIL import Image

        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    return pixels.reshape(shape)


def _sides(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width and channels of images of a shape.

    Raises:
      UserError: for a shape that is none of an image.
    """
    if len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3)):
        return shape[0], shape[1], shape[2] if len(shape) == 3 else 1
    side = math.isqrt(shape[0]) if len(shape) == 1 else 0
    if not side or side * side != shape[0]:
        raise UserError(
            f"The run learned from examples of shape {list(shape)}, which are no pictures; give a "
            ".npy file with such examples."
        )
    return side, side, 1
