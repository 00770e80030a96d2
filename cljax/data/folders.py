"""Images in folders, one for each class, as uint8 arrays of one size.

Classes are numbered in the order of their names; where images lie is in ``cljax.data.layouts``, and
how a file becomes pixels in ``cljax.data.pictures``. Images may lie deeper inside the folder of a
class.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cljax.data import cache
from cljax.data.layouts import Layout, Part, class_names, inside, layout, strangers
from cljax.data.pictures import Unusable, cut, open_rgb, pixels_digest
from cljax.data.sources import ImageData, check_images
from cljax.errors import UserError, check_known, check_positive

__all__ = ["class_folders", "read"]

_DECODER = 2  # a number for how files become pixels: other arrays must not be taken for these
_log = logging.getLogger(__name__)


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
      classes: names of those to read, None for all; labels number them in the order of names. A
        folder that is named like tests is a class only where it is among them.
      test_share: where there is no folder of training images, the share of each class's images,
        chosen by a hash of their names, that are tests.
      licence: of the images, for reports.

    Warns:
      UserWarning: with the count, for files and folders that are not read, and for tests that are
        training images too.

    Raises:
      UserError: for a missing folder, a class without training images or tests, images that cannot
        be read, or sizes out of range.
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
    names = class_names(root, tests=classes is not None)
    if classes is not None:
        for name in classes:
            check_known(f"class of {root}", name, names)
        names = sorted(set(classes))
    result = layout(root, names, test_share)
    for sentence in strangers(root, result):
        warnings.warn(sentence, stacklevel=2)
    return read(root, result, (size, test_resize, test_size), licence)


def read(
    root: Path, result: Layout, sizes: tuple[int, int, int], licence: str, *, exact: bool = False
) -> ImageData:
    """Decodes what a layout names, once.

    Args:
      sizes: size, test_resize and test_size of ``class_folders``.
      exact: whether images must have those sizes already.

    Warns:
      UserWarning: for tests that have the pixels of a training image.

    Raises:
      UserError: for images that cannot be read, or have another size where that is asked for.
    """
    size, test_resize, test_size = sizes
    said: list[str] = []

    def decode() -> tuple[np.ndarray, ...]:
        _log.info("Decoding %s once.", root)
        train = _decoded(result.train, size, size, exact)
        test = _decoded(result.test, test_resize, test_size, exact)
        _check_whole(root, result, [*train.problems, *test.problems])
        said.extend(_doubles(result, train, test))
        return train.images, _labels(result.train), test.images, _labels(result.test)

    mark = _fingerprint(root, result, sizes)
    cached = cache.cached_arrays(root, f"folders-{size}", decode, mark)
    for sentence in _remembered(cached.path, said):
        warnings.warn(sentence, stacklevel=3)
    train_x, train_y, test_x, test_y = cached.arrays
    source = f"folder:{root.resolve().name}"
    data = ImageData(train_x, train_y, test_x, test_y, source, licence, cached.checksum)
    check_images(data, len(result.names))
    return data.frozen()


def _fingerprint(root: Path, layout: Layout, sizes: tuple[int, ...]) -> str:
    """Twelve hexadecimal digits that name files, their labels, sizes and times, and their cut."""
    place = os.fsencode(root.resolve())
    total = hashlib.sha256(repr((_DECODER, sizes, layout.names, place)).encode())
    for part in (layout.train, layout.test):
        for file, label in zip(part.files, part.labels, strict=True):
            try:
                stat = file.stat()
                stamp = f":{stat.st_size},{cache.times(stat)}"
            except OSError:  # a broken link, say; decoding names it
                stamp = ":?;"
            total.update(inside(root, file) + f":{label}{stamp}".encode())
        total.update(b"|")
    return total.hexdigest()[:12]


class _Decoded(NamedTuple):
    """What the files of a part hold."""

    images: np.ndarray  # [N, size, size, 3] uint8
    digests: list[bytes]  # of the whole images
    problems: list[tuple[Path, str]]  # files that are no images to learn from, and why


def _decoded(part: Part, resize: int, size: int, exact: bool) -> _Decoded:
    images = np.empty((len(part.files), size, size, 3), np.uint8)

    def fill(row: int) -> tuple[bytes, str]:
        try:
            image = open_rgb(part.files[row])
        except Unusable as why:
            return b"", str(why)
        if exact and image.size != (size, size):
            wide, high = image.size
            return b"", f"it has {wide} x {high} pixels, but those of this data set {size} x {size}"
        images[row] = cut(image, resize, size)
        return pixels_digest(image), ""

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside Python's lock
        result = list(pool.map(fill, range(len(images))))
    problems = [(file, why) for file, (_, why) in zip(part.files, result, strict=True) if why]
    return _Decoded(images, [digest for digest, _ in result], problems)


def _labels(part: Part) -> np.ndarray:
    return np.asarray(part.labels, np.int32)


def _check_whole(root: Path, layout: Layout, problems: Sequence[tuple[Path, str]]) -> None:
    if problems:
        count = len(layout.train.files) + len(layout.test.files)
        file, why = problems[0]
        raise UserError(
            f"{len(problems)} of the {count} images below {root} cannot be used, the first of them "
            f"{file}: {why}; replace or remove them."
        )


def _doubles(layout: Layout, train: _Decoded, test: _Decoded) -> list[str]:
    """A sentence where tests have the pixels of training images; none where none has."""
    first = {digest: row for row, digest in reversed(list(enumerate(train.digests)))}
    rows = [row for row, digest in enumerate(test.digests) if digest in first]
    if not rows:
        return []
    one = layout.train.files[first[test.digests[rows[0]]]]
    return [
        f"{len(rows)} of the {len(test.digests)} tests have the very pixels of a training image, "
        f"the first of them {layout.test.files[rows[0]]}, those of {one}; accuracy on them says "
        "nothing of unseen images, so remove them from one side."
    ]


def _remembered(path: Path | None, said: list[str]) -> list[str]:
    """What decoding had to say, kept beside the decoded arrays for later calls."""
    if path is None:
        return said
    note = path.with_suffix(".txt")
    try:
        if said:
            note.write_text("\n".join(said), "utf-8")
        elif note.is_file():
            return note.read_text("utf-8", "replace").splitlines()
    except OSError:
        pass  # where nothing can be kept, it is said when images are decoded
    return said
