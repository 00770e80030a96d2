"""Data sets by name, the shipped sample, and what ``cljax data`` reports."""

from __future__ import annotations

import io
import lzma
import os
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cljax.data import archive, cache, prepared
from cljax.data.described import source_of
from cljax.data.sources import SOURCES, ImageData, Source, check_images, digest
from cljax.errors import UserError, check_known, check_positive

__all__ = ["Report", "describe", "images", "images_or_sample", "sample", "sample_rows"]

_SAMPLES = ("mnist",)
_PARTS = ("train_x", "train_y", "test_x", "test_y")


class Report(NamedTuple):
    """A data set as it lies on this machine."""

    name: str
    source: str
    path: Path  # the prepared folder, or the file of a part or of the sample
    cache: Path | None  # the decoded arrays; None: decoded anew each time
    num_train: int
    num_test: int
    num_classes: int
    shape: tuple[int, ...]  # of one image
    num_bytes: int  # of the arrays in memory
    checksum: str  # SHA-256 of the arrays
    licence: str
    citation: str


class _Found(NamedTuple):
    data: ImageData
    path: Path  # the prepared folder, or the archive
    cache: Path | None


def images(
    name: str, data_dir: str | os.PathLike[str] | None = None, *, size: int | None = None
) -> ImageData:
    """A whole data set that tensorflow-datasets has prepared, as uint8 arrays.

    The first call decodes it and keeps the arrays beside the data, or in the user's cache folder
    where that is read-only; later calls read those and check them. Where no whole Fashion-MNIST is
    prepared, the part of it in ``fashion_mnist_15k.npz`` is read (``cljax.data.archive``).

    Args:
      name: of a data set in ``SOURCES``, such as ``mnist``, or of any other one of images and
        classes that is prepared there.
      size: height and width to which images are resized (their shorter side, then the centre is
        cut); None leaves them as they are.
      data_dir: folder that holds ``name/VERSION``; else ``CLJAX_DATA_DIR``, else
        ``~/tensorflow_datasets``.

    Raises:
      UserError: for a folder without the data set, damaged data, or images that differ in size
        without a ``size``.
    """
    if size is not None:
        check_positive(size=size)
    return _load(name, data_dir, size).data


def sample(name: str = "mnist") -> ImageData:
    """The sample that cljax ships: exact images, as many of each class; needs no file or network.

    Raises:
      UserError: for a data set without a sample.
    """
    shipped = _sample_archive(name)
    train_x, train_y, test_x, test_y = (shipped[part] for part in _PARTS)
    arrays = (train_x, train_y.astype(np.int32), test_x, test_y.astype(np.int32))
    licence = f"{SOURCES[name].licence}; see MNIST_SAMPLE_LICENSE.txt"
    return _image_data(
        arrays, f"cljax sample of {name}", SOURCES[name], licence, digest(*arrays), small=True
    )


def sample_rows(name: str = "mnist") -> tuple[np.ndarray, np.ndarray]:
    """Rows of the whole data set that the sample holds: ``(train [N], test [M])`` int32."""
    shipped = _sample_archive(name)
    return shipped["train_rows"], shipped["test_rows"]


def images_or_sample(
    name: str, data_dir: str | os.PathLike[str] | None = None, use_sample: bool = False
) -> ImageData:
    """The whole data set where there is one; the sample if asked for, or where no folder is named.

    Raises:
      UserError: as ``images`` does; also if both a folder and the sample are asked for.
    """
    if use_sample:
        if data_dir is not None:
            raise UserError(
                f"Both the sample and the data folder {data_dir} are asked for; leave out one."
            )
        return sample(name)
    named = data_dir is not None or os.environ.get("CLJAX_DATA_DIR")
    return images(name, data_dir) if named or name not in _SAMPLES else sample(name)


def describe(
    name: str, data_dir: str | os.PathLike[str] | None = None, use_sample: bool = False
) -> Report:
    """What ``cljax data NAME`` prints; decodes the data set if that has not been done.

    Raises:
      UserError: as ``images_or_sample`` does.
    """
    source = source_of(name, data_dir)
    data = images_or_sample(name, data_dir, use_sample)
    if data.sample:
        path, cached = Path(str(_sample_file(name))), None
    else:
        data, path, cached = _load(name, data_dir)
    return Report(
        name,
        data.source,
        path,
        cached,
        len(data.train_y),
        len(data.test_y),
        source.num_classes,
        data.train_x.shape[1:],
        sum(array.nbytes for array in data[:4]),
        data.checksum,
        data.licence,
        source.citation,
    )


def _load(name: str, data_dir: str | os.PathLike[str] | None, size: int | None = None) -> _Found:
    source = source_of(name, data_dir)._replace(size=size)
    part = archive.find(source, prepared.data_folder(data_dir))
    if part is not None and not prepared.versions(name, data_dir):
        arrays = archive.read(part)
        label, checksum = f"archive:{part.name}", digest(*arrays)
        data = _image_data(arrays, label, source, source.licence, checksum, mark=source.mark)
        return _Found(data, part, None)
    folder = prepared.find(name, data_dir)
    file = name if size is None else f"{name}-{size}"
    cached = cache.cached_arrays(folder, file, lambda: prepared.decode(folder, source))
    label = f"tfds:{name}/{folder.name}"
    data = _image_data(cached.arrays, label, source, source.licence, cached.checksum)
    return _Found(data, folder, cached.path)


def _image_data(
    arrays: tuple[np.ndarray, ...],
    label: str,
    source: Source,
    licence: str,
    checksum: str,
    *,
    small: bool = False,
    mark: str = "",
) -> ImageData:
    train_x, train_y, test_x, test_y = arrays
    data = ImageData(train_x, train_y, test_x, test_y, label, licence, checksum, small, mark)
    check_images(data, source.num_classes)
    return data.frozen()  # one copy serves every stream


def _sample_file(name: str):
    check_known("data set", name, SOURCES)
    if name not in _SAMPLES:
        raise UserError(
            f"cljax ships no sample of {name}, only of {' and '.join(_SAMPLES)}; name a folder."
        )
    return resources.files("cljax.data") / f"{name}_sample.npz.xz"


def _sample_archive(name: str) -> dict[str, np.ndarray]:
    try:
        packed = _sample_file(name).read_bytes()
        with np.load(io.BytesIO(lzma.decompress(packed)), allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, lzma.LZMAError) as error:
        raise UserError(
            f"The sample of {name} in this installation is damaged ({error}); install cljax again."
        ) from error
