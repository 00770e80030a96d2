"""Images in folders, one for each class, as uint8 arrays of one size.

    ROOT/train/CLASS/*.jpg    ROOT/test/CLASS/*.jpg (or ROOT/val/CLASS/*.jpg)
    ROOT/train/CLASS/*.jpg    ROOT/val/images/*.jpg, their classes in ROOT/val/val_annotations.txt
    ROOT/CLASS/*.jpg          a share of each class becomes its tests

Classes are numbered in the order of their names. Files end in .jpg, .jpeg or .png, and may lie
deeper inside the folder of a class. The second form is TinyImageNet's.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cljax.data import cache
from cljax.data.sources import ImageData, check_images
from cljax.errors import UserError, check_known, check_positive

__all__ = [
    "ANNOTATIONS",
    "Layout",
    "Part",
    "class_folders",
    "class_names",
    "layout",
    "read",
    "square",
]

ANNOTATIONS = "val_annotations.txt"  # in ROOT/val: file and class, tabs between

_ENDINGS = (".jpg", ".jpeg", ".png")
_log = logging.getLogger(__name__)


class Part(NamedTuple):
    """Files of the training images or of the tests, and the class of each."""

    files: list[Path]
    labels: list[int]


class Layout(NamedTuple):
    """What is where in a folder."""

    names: list[str]  # of the classes
    train: Part
    test: Part


def class_folders(
    path: str | os.PathLike[str],
    *,
    size: int,
    test_resize: int | None = None,
    test_size: int | None = None,
    classes: Sequence[str] | None = None,
    test_share: float = 0.2,
    licence: str = "not stated",
) -> ImageData:
    """All images below a folder, as RGB.

    The shorter side of an image is resized (bilinear), then a square is cut from the centre. What
    is cut off a longer side is never seen, whereas torchvision's random crops, which start from
    files, reach it. The first call decodes and keeps the arrays, as ``cljax.data.images`` does;
    they have to fit in memory (ImageNet-1K at 120 pixels: 55 GB).

    Args:
      path: ROOT.
      size: height and width of training images, whose shorter side is resized to it.
      test_resize: what the shorter side of test images is resized to; None for ``size``.
      test_size: height and width of the square cut from them; None for ``size``.
      classes: names of those to read, None for all; labels number them in the order of names.
      test_share: where there is no ROOT/train, the share of each class's images, chosen by a
        hash of their names, that are tests.
      licence: of the images, for reports.

    Raises:
      UserError: for a missing folder, a class without training images or tests, an image that
        cannot be read, or sizes out of range.
    """
    root = Path(path).expanduser()
    test_size = size if test_size is None else test_size
    test_resize = test_size if test_resize is None else test_resize
    check_positive(size=size, test_size=test_size, test_resize=test_resize)
    if test_size > test_resize:
        raise UserError(
            f"test_size is {test_size}, but no such square fits in images of which the shorter "
            f"side is {test_resize}."
        )
    names = class_names(root)
    if classes is not None:
        for name in classes:
            check_known(f"class of {root}", name, names)
        names = sorted(set(classes))
    found = layout(root, names, test_share)
    return read(root, found, (size, test_resize, test_size), licence)


def read(
    root: Path, found: Layout, sizes: tuple[int, int, int], licence: str, *, exact: bool = False
) -> ImageData:
    """Decodes what a layout names, once.

    Args:
      sizes: size, test_resize and test_size of ``class_folders``.
      exact: whether images must have those sizes already.

    Raises:
      UserError: for an image that cannot be read, or has another size where that is asked for.
    """
    size, test_resize, test_size = sizes

    def decode() -> tuple[np.ndarray, ...]:
        _log.info("Decoding %s once.", root)
        return (
            *_decoded(found.train, size, size, exact),
            *_decoded(found.test, test_resize, test_size, exact),
        )

    mark = _fingerprint(root, found, sizes)
    kept = cache.cached_arrays(root, f"folders-{size}", decode, mark)
    train_x, train_y, test_x, test_y = kept.arrays
    source = f"folder:{root.resolve().name}"
    data = ImageData(train_x, train_y, test_x, test_y, source, licence, kept.checksum)
    check_images(data, len(found.names))
    return data.frozen()


def class_names(path: str | os.PathLike[str]) -> list[str]:
    """The classes of a folder, in the order of their numbers.

    Raises:
      UserError: if there is no such folder, or it has no folders of classes.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"There is no folder {root}; name one that holds a folder for each class.")
    inside = root / "train" if (root / "train").is_dir() else root
    names = _folders(inside)
    if not names:
        raise UserError(
            f"The folder {inside} holds no folders; it needs one with images for each class."
        )
    return names


def layout(root: Path, names: list[str], test_share: float = 0.2) -> Layout:
    """Where the images of the classes ``names`` are; see ``class_folders``."""
    if (root / "train").is_dir() and (root / "val" / ANNOTATIONS).is_file():
        return Layout(names, _part(root / "train", names), _annotated(root, names))
    if (root / "train").is_dir():
        tests = _tests(root, names)
        strange = sorted(set(_folders(tests)) - set(class_names(root)))
        if strange:
            raise UserError(f"The class {strange[0]} is in {tests}, but not in {root / 'train'}.")
        return Layout(names, _part(root / "train", names), _part(tests, names))
    if not 0 < test_share < 1:
        raise UserError(f"test_share is {test_share}, but it must be a share between 0 and 1.")
    train, test = Part([], []), Part([], [])
    for label, name in enumerate(names):
        files = _images(root / name)
        if len(files) < 2:
            raise UserError(
                f"The folder {root / name} holds {len(files)} images (.jpg or .png), but a class "
                "needs at least one to learn from and one to test."
            )
        order = sorted(files, key=lambda file: hashlib.sha256(_inside(root, file)).digest())
        num = min(max(round(len(files) * test_share), 1), len(files) - 1)
        for part, own in ((test, sorted(order[:num])), (train, sorted(order[num:]))):
            part.files.extend(own)
            part.labels.extend([label] * len(own))
    return Layout(names, train, test)


def _annotated(root: Path, names: list[str]) -> Part:
    """The tests that ROOT/val/val_annotations.txt names, those of other classes left out."""
    written = root / "val" / ANNOTATIONS
    known, number = set(class_names(root)), {name: label for label, name in enumerate(names)}
    files, labels = [], []
    for line in written.read_text("utf-8", "replace").splitlines():
        if not line.strip():
            continue
        file, name = (*line.split("\t"), "")[:2]
        if name not in known:
            raise UserError(
                f"{written} names the class '{name}' of the image '{file}', but there is no folder "
                f"{root / 'train' / name}."
            )
        if name in number:
            files.append(root / "val" / "images" / file)
            labels.append(number[name])
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the images that {written} names are missing, such as {missing[0]}; "
            "unpack them again."
        )
    absent = sorted(set(range(len(names))) - set(labels))
    if absent:
        raise UserError(f"{written} names no image of the class {names[absent[0]]}.")
    return Part(files, labels)


def _tests(root: Path, names: list[str]) -> Path:
    """ROOT/test, or ROOT/val where the former is missing or not sorted by class."""
    for name in ("test", "val"):
        if any((root / name / own).is_dir() for own in names):
            return root / name
    raise UserError(
        f"{root} has a folder train, but neither {root / 'test'} nor {root / 'val'} holds a folder "
        "for each of its classes."
    )


def _part(folder: Path, names: list[str]) -> Part:
    files, labels = [], []
    for label, name in enumerate(names):
        own = _images(folder / name)
        if not own:
            raise UserError(
                f"There are no images (.jpg or .png) of the class {name} in {folder / name}, but "
                "each class needs training images and tests."
            )
        files.extend(own)
        labels.extend([label] * len(own))
    return Part(files, labels)


def _folders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.name.lower().endswith(_ENDINGS))


def _inside(root: Path, file: Path) -> bytes:
    return file.relative_to(root).as_posix().encode()


def _fingerprint(root: Path, found: Layout, sizes: tuple[int, ...]) -> str:
    """Twelve hexadecimal digits that name files, their sizes and times, and how they are cut."""
    total = hashlib.sha256(repr((sizes, found.names)).encode())
    for part in (found.train, found.test):
        for file in part.files:
            stat = file.stat()
            total.update(_inside(root, file) + f":{stat.st_size},{stat.st_mtime_ns};".encode())
        total.update(b"|")
    return total.hexdigest()[:12]


def _decoded(part: Part, resize: int, size: int, exact: bool) -> tuple[np.ndarray, np.ndarray]:
    """[N, size, size, 3] uint8 and [N] int32."""
    images = np.empty((len(part.files), size, size, 3), np.uint8)

    def fill(row: int) -> None:
        images[row] = _image(part.files[row], resize, size, exact)

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside Python's lock
        for _ in pool.map(fill, range(len(images))):
            pass
    return images, np.asarray(part.labels, np.int32)


def _image(file: Path, resize: int, size: int, exact: bool = False) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except Exception as error:  # damage shows in many ways
        raise UserError(
            f"The image {file} could not be read ({type(error).__name__}); replace or remove it."
        ) from error
    if exact and image.size != (size, size):
        raise UserError(
            f"The image {file} has {image.width} x {image.height} pixels, but those of this data "
            f"set have {size} x {size}."
        )
    return _cut(image, resize, size)


def square(image: np.ndarray, size: int) -> np.ndarray:
    """An image [H, W, 1 or 3] as [size, size, 1 or 3]: its shorter side resized, the centre cut."""
    from PIL import Image

    grey = image.shape[-1] == 1
    cut = _cut(Image.fromarray(image[..., 0] if grey else image), size, size)
    return cut[..., None] if grey else cut


def _cut(image: Any, resize: int, size: int) -> np.ndarray:
    """A Pillow image with its shorter side resized, then a square from its centre."""
    from PIL import Image

    width, height = image.size
    short = min(width, height)
    image = image.resize(
        (resize * width // short, resize * height // short), Image.Resampling.BILINEAR
    )
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))
