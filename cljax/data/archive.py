"""Parts of data sets as one ``.npz`` file, read where no whole data set is prepared.

Such a file holds ``x_train``, ``x_test`` [N, H, W] or [N, H, W, channels] uint8 and ``y_train``,
``y_test`` [N] integers. It lies in the folder of data sets or in the one above.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cljax.data.sources import Source
from cljax.errors import UserError

__all__ = ["find", "read"]

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def find(source: Source, folder: Path) -> Path | None:
    """The archive of a data set in ``folder`` or the folder above; None if there is none."""
    if not source.archive:
        return None
    places = (folder / source.archive, folder.absolute().parent / source.archive)
    return next((path for path in places if path.is_file()), None)


def read(path: Path) -> tuple[np.ndarray, ...]:
    """``(train_x, train_y, test_x, test_y)``: images [N, H, W, channels], labels [N] int32.

    Raises:
      UserError: if the file is damaged or lacks an array.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS if name in file}
    except Exception as error:  # zip, NumPy and the file system each raise their own
        raise UserError(
            f"The archive {path} could not be read ({error}); copy it again."
        ) from error
    absent = [name for name in _ARRAYS if name not in arrays]
    if absent:
        raise UserError(f"The archive {path} has no array {absent[0]}; copy it again.")
    result = []
    for name, array in arrays.items():
        if name.startswith("y"):
            result.append(array.astype(np.int32))
        else:
            result.append(array[..., None] if array.ndim == 3 else array)
    return tuple(result)
