"""TinyImageNet as its archive unpacks: 200 classes of 64x64 images.

    ROOT/train/CLASS/images/*.JPEG              500 of each class
    ROOT/val/images/*.JPEG                      50 of each class, named in
    ROOT/val/val_annotations.txt                file and class, a line each
    ROOT/wnids.txt                              names of the classes, checked where it is there

The official validation images test, for the official tests have no labels. Grey images become RGB.

Source: the Tiny ImageNet challenge of Stanford's course CS231n; images of ImageNet.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from cljax.data import folders, layouts
from cljax.data.prepared import data_folder
from cljax.data.sources import ImageData
from cljax.errors import UserError

__all__ = ["SIZE", "tinyimagenet"]

SIZE = 64  # height and width
_FOLDER = "tiny-imagenet-200"
_LICENCE = "not stated; images of ImageNet, whose terms allow non-commercial research"


def tinyimagenet(data_dir: str | os.PathLike[str] | None = None) -> ImageData:
    """All images, classes in the order of their names; decoded once.

    Args:
      data_dir: ROOT or the folder that holds it as ``tiny-imagenet-200``; else CLJAX_DATA_DIR,
        else ~/tensorflow_datasets.

    Returns:
      Images [N, 64, 64, 3] uint8.

    Raises:
      UserError: for a missing folder or file, classes of unequal numbers of images, or an image
        of another size or that cannot be read.
    """
    root = _root(data_folder(data_dir))
    written = root / "val" / layouts.ANNOTATIONS
    if not written.is_file():
        raise UserError(
            f"There is no file {written}, which says the classes of TinyImageNet's validation "
            "images; unpack the archive again."
        )
    names = layouts.class_names(root)
    wnids = root / "wnids.txt"
    listed = wnids.read_text("utf-8").split() if wnids.is_file() else names
    absent = sorted(set(listed) - set(names))
    if absent:
        raise UserError(
            f"{wnids} lists the class {absent[0]}, but there is no folder "
            f"{root / 'train' / absent[0]}; unpack the archive again."
        )
    result = layouts.layout(root, names)
    for part, where in ((result.train, root / "train"), (result.test, written)):
        counts = np.bincount(part.labels, minlength=len(names))
        if counts.min() < counts.max():
            raise UserError(
                f"The class {names[int(counts.argmin())]} has {counts.min()} images in {where}, "
                f"but others have {counts.max()}; unpack the archive again."
            )
    return folders.read(root, result, (SIZE, SIZE, SIZE), _LICENCE, exact=True)


def _root(folder: Path) -> Path:
    for root in (folder / _FOLDER, folder):
        if (root / "train").is_dir():
            return root
    raise UserError(
        f"There is no TinyImageNet in {folder} (looked for {folder / _FOLDER / 'train'} and "
        f"{folder / 'train'}); unpack {_FOLDER}.zip there."
    )
