"""Data sets as tensorflow-datasets prepares them: found, decoded, prepared.

Only ``decode`` and ``prepare`` import tensorflow-datasets, and only ``prepare`` needs TensorFlow.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cljax.data.pictures import square
from cljax.data.sources import SOURCES, Source
from cljax.errors import UserError
from cljax.storage.files import place, read_json

__all__ = ["data_folder", "decode", "find", "from_jpeg", "prepare", "versions"]

_CLASS = ("pythonClassName", "python_class_name", "type")  # in features.json, as versions have it
_READER = "tensorflow_datasets."  # whose own modules a folder may name
_BATCH = 5000  # examples decoded at once: as fast as any, little memory
_log = logging.getLogger(__name__)


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where data sets lie: ``data_dir``, else ``CLJAX_DATA_DIR``, ``~/tensorflow_datasets``.

    Raises:
      UserError: for a path that cannot be, or if nobody says and no home folder is known.
    """
    return place(data_dir or os.environ.get("CLJAX_DATA_DIR") or "~/tensorflow_datasets")


def versions(name: str, data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """The folders of all prepared versions of a data set."""
    folder = data_folder(data_dir)
    return [path.parent for path in folder.glob(f"{name}/*/dataset_info.json")]


def find(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the newest prepared version of a data set, such as ``DIR/mnist/3.0.1``.

    Raises:
      UserError: if the data set is not there.
    """
    folder, result = data_folder(data_dir), versions(name, data_dir)
    archive = SOURCES[name].archive if name in SOURCES else ""
    if not result:
        sample = ", or use the sample that cljax ships (--sample)" if name == "mnist" else ""
        part = f", or put the file {archive} there or in the folder above" if archive else ""
        raise UserError(
            f"No data set {name} in {folder} (looked for {folder / name}/VERSION/dataset_info.json)"
            f": copy a folder that tensorflow-datasets prepared there, or prepare it with "
            f"`cljax data {name} --prepare`, which needs a network and TensorFlow "
            f"(pip install 'cljax[prepare]'){sample}{part}."
        )
    return max(
        result, key=lambda path: [int(n) if n.isdigit() else -1 for n in path.name.split(".")]
    )


def from_jpeg(name: str, data_dir: str | os.PathLike[str] | None = None) -> bool:
    """Whether a prepared data set describes itself as made of JPEG files, which are lossy.

    Raises:
      UserError: if the data set is not there.
    """
    try:
        told = read_json(find(name, data_dir) / "dataset_info.json")
    except (OSError, ValueError):
        return False  # its reader says what is wrong
    return isinstance(told, dict) and "JPEG" in str(told.get("description"))


def decode(folder: Path, source: Source) -> tuple[np.ndarray, ...]:
    """Reads every image of a prepared folder, in its own order.

    Returns:
      ``(train_x, train_y, test_x, test_y)``: images [N, H, W, channels] uint8, labels [N] int32.

    Raises:
      UserError: if the folder is in another format than ArrayRecord, or damaged, or if images
        differ in size and the source names none to resize them to.
    """
    _refuse_code(folder)
    import tensorflow_datasets as tfds

    _log.info("Decoding %s once.", folder)
    try:
        with _quiet():
            builder: Any = tfds.builder_from_directory(folder)
            splits = [builder.as_data_source(split) for split in ("train", source.test)]
            return tuple(array for split in splits for array in _arrays(split, source))
    except UserError:
        raise
    except NotImplementedError as error:
        raise UserError(
            f"{folder} is not in the ArrayRecord format, so its examples have no numbers; prepare "
            f"{source.name} again with `cljax data {source.name} --prepare`."
        ) from error
    except Exception as error:
        raise UserError(
            f"The data set in {folder} could not be read ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}); copy it again."
        ) from error


def _refuse_code(folder: Path) -> None:
    """Raises UserError if a data folder names modules to import, other than the reader's own."""
    try:
        waiting = [read_json(folder / "features.json")]
    except (OSError, ValueError):
        return  # its reader says what is wrong
    while waiting:
        result = waiting.pop()
        inside = result.values() if isinstance(result, dict) else result
        waiting += [part for part in inside if isinstance(part, (dict, list))]
        names = [result.get(key) for key in _CLASS] if isinstance(result, dict) else []
        for name in names:  # one without a module is looked up among the reader's own
            if isinstance(name, str) and "." in name and not name.startswith(_READER):
                raise UserError(
                    f"The data set in {folder} names the code {name}, which reading it would "
                    "import; prepare it anew, with features of tensorflow-datasets alone."
                )


def prepare(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Downloads a data set and writes it in the ArrayRecord format; needs a network.

    Raises:
      UserError: for a name that tensorflow-datasets does not know, or without TensorFlow.
    """
    try:
        import tensorflow  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"Preparing {name} needs TensorFlow to encode its images: pip install "
            "'cljax[prepare]', or copy a folder that was prepared elsewhere (reading needs none)."
        ) from error
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_folder(data_dir), file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"tensorflow-datasets has no data set {name}; its catalogue lists those that it has."
        ) from error
    builder.download_and_prepare(file_format="array_record")
    return find(name, data_dir)


def _arrays(split: Any, source: Source) -> tuple[np.ndarray, np.ndarray]:
    def seen(image: np.ndarray) -> np.ndarray:
        return image if source.size is None else square(image, source.size)

    first = seen(split[0][source.image])
    images = np.empty((len(split), *first.shape), first.dtype)
    labels = np.empty(len(split), np.int32)
    for start in range(0, len(split), _BATCH):
        rows = range(start, min(start + _BATCH, len(split)))
        examples = split.__getitems__(list(rows))
        own = [seen(example[source.image]) for example in examples]
        strange = next((image.shape for image in own if image.shape != first.shape), None)
        if strange is not None:
            raise UserError(
                f"Images of {source.name} have the shapes {list(first.shape)} and {list(strange)}; "
                "name one size to resize them to (--image-size)."
            )
        images[rows.start : rows.stop] = own
        labels[rows.start : rows.stop] = [example[source.label] for example in examples]
    return images, labels


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the reader's advice to install OpenCV from the user."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
