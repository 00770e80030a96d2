"""Decoded arrays on disk: one file beside the data, or in the user's cache folder.

The file is a sequence of ``.npy`` arrays (``np.save`` again and again into one file), which
loads several times faster than a zip archive; beside it lies the SHA-256 of the arrays. Its name
holds a fingerprint of the data it was decoded from, so changed data never meets an old cache.
"""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cljax.data.sources import digest
from cljax.storage.files import opened, read_array, write_bytes, writing

__all__ = ["Cached", "cached_arrays", "fingerprint", "times", "user_cache", "writable"]

_NUM_ARRAYS = 4
Arrays = tuple[np.ndarray, ...]


class Cached(NamedTuple):
    """Four arrays, their SHA-256, and the file that holds them (None: nowhere writable)."""

    arrays: Arrays
    checksum: str
    path: Path | None


_READ_WHOLE = 256 * 1024 * 1024  # bytes of records; more are told by their times


def user_cache() -> Path | None:
    """The user's cache folder: ``$XDG_CACHE_HOME/cljax`` or ``~/.cache/cljax``.

    On Windows ``%LOCALAPPDATA%\\cljax`` before the latter. None for a user whose home folder is not
    known.
    """
    chosen = os.environ.get("XDG_CACHE_HOME")
    if not chosen and sys.platform == "win32":
        chosen = os.environ.get("LOCALAPPDATA")
    if chosen:
        return Path(chosen) / "cljax"
    try:
        return Path.home() / ".cache" / "cljax"
    except RuntimeError:
        return None


def fingerprint(folder: Path) -> str:
    """Twelve hexadecimal digits that name what a prepared data folder holds.

    Its descriptions, by which records are read, and the records are told by their content; records
    of more than 256 MB by size and times, where the time of the last change to a file is one that
    nobody sets back.
    """
    total = hashlib.sha256((folder / "dataset_info.json").read_bytes())
    features = folder / "features.json"  # which feature is the image, which the label, and how kept
    total.update(b"|" + (features.read_bytes() if features.is_file() else b""))
    paths = sorted(folder.glob("*record*"))
    whole = sum(path.stat().st_size for path in paths) <= _READ_WHOLE
    for path in paths:
        total.update(f"{path.name}:{path.stat().st_size};".encode())
        if whole:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        else:
            total.update(times(path.stat()).encode())
    return total.hexdigest()[:12]


def times(stat: os.stat_result) -> str:
    """When a file was last written and last changed in any way."""
    return f"{stat.st_mtime_ns}:{stat.st_ctime_ns};"


def cached_arrays(
    folder: Path, name: str, decode: Callable[[], Arrays], mark: str | None = None
) -> Cached:
    """The arrays of a data folder, decoded only where no sound cache holds them.

    Args:
      folder: the data; the cache goes there unless it is read-only.
      name: the data set's, part of the cache's file name.
      decode: makes the four arrays.
      mark: names what the folder holds; None for the ``fingerprint`` of a prepared one.

    Warns:
      UserWarning: if a cache was damaged and has been rebuilt, or none could be written.
    """
    file = f"cljax-{name}-{mark or fingerprint(folder)}.npy"
    places = [place / file for place in (folder, user_cache()) if place is not None]
    for path in places:
        if path.exists():
            try:
                return _read(path)
            except Exception as error:  # damage shows in many ways; none may stop a run
                warnings.warn(
                    f"The cached arrays of {name} in {path} are damaged ({error}); they are made "
                    "again from the data.",
                    stacklevel=3,
                )
    arrays = decode()
    checksum = digest(*arrays)
    for path in places:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if writable(path.parent):
                _write(path, arrays, checksum)
                return Cached(arrays, checksum, path)
        except OSError:
            continue
    warnings.warn(
        f"The decoded arrays of {name} could not be kept in "
        f"{' nor in '.join(str(path.parent) for path in places)}, so every run decodes the images "
        "again.",
        stacklevel=3,
    )
    return Cached(arrays, checksum, None)


def _checksum_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _read(path: Path) -> Cached:
    """Raises some exception if the file is not what was written."""
    recorded = _checksum_file(path).read_text().strip()
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        arrays = tuple(read_array(file, size) for _ in range(_NUM_ARRAYS))
    checksum = digest(*arrays)
    if checksum != recorded:
        raise ValueError(f"SHA-256 {checksum[:12]}..., recorded {recorded[:12]}...")
    return Cached(arrays, checksum, path)


def _write(path: Path, arrays: Arrays, checksum: str) -> None:
    """The checksum first: a file of arrays is never seen without it."""
    write_bytes(_checksum_file(path), f"{checksum}\n".encode())
    with writing(path) as file:
        for array in arrays:
            np.save(file, array, allow_pickle=False)


def writable(folder: Path) -> bool:
    """False also where only root's privileges would override a read-only mode."""
    return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)
