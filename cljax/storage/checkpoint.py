"""Checkpoints: written whole, checked by SHA-256, and never trusted otherwise.

    folder/00000007/arrays/        all arrays, those of a type end to end, see ``formats``
    folder/00000007/position.json  names and types of the arrays, where each run stands, identity
    folder/00000007/sha256.json    the hash of each other file, written last

A checkpoint is written in a folder beside its place and renamed, so one that has its name is
complete. Formats may restore a flipped bit without a word, so the hashes are compared first; what
fails is skipped with a sentence and the newest whole one is used.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import UserError, check_known
from cljax.storage import files, formats
from cljax.storage.files import sync

__all__ = [
    "FORMAT",
    "Snapshot",
    "host_copy",
    "newest",
    "newest_place",
    "next_number",
    "revived",
    "save",
]

FORMAT = 1
_HASHES = "sha256.json"
_NUMBER = re.compile(r"[0-9]{8,18}")


class Snapshot(NamedTuple):
    """What a checkpoint holds: arrays by name, and a position that JSON can hold."""

    arrays: dict[str, np.ndarray]
    position: dict[str, Any]


def host_copy(array: Any) -> np.ndarray:
    """A copy on the host that no later donation can change; random keys as their data."""
    if isinstance(array, jax.Array):
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        if not array.is_fully_addressable:
            from jax.experimental import multihost_utils

            array = multihost_utils.process_allgather(array, tiled=True)
    return np.array(array, copy=True)


def revived(array: np.ndarray, like: jax.ShapeDtypeStruct) -> Any:
    """An array of a checkpoint as the program takes it: ``like`` gives shape and type.

    Raises:
      ValueError: if it has another shape or type.
    """
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        kind = jax.eval_shape(jax.random.key_data, like)
        key = revived(array, jax.ShapeDtypeStruct(kind.shape, kind.dtype))
        return jax.random.wrap_key_data(key, impl=like.dtype._impl.name)  # type: ignore[attr-defined]
    if array.shape != like.shape or array.dtype != like.dtype:
        raise ValueError(
            f"an array of {array.dtype}{list(array.shape)} where the run has "
            f"{like.dtype}{list(like.shape)}"
        )
    return jnp.asarray(array)


def save(
    folder: Path,
    snapshot: Snapshot,
    identity: Mapping[str, Any],
    *,
    number: int,
    keep: int = 3,
    form: str = formats.WRITTEN,
) -> Path:
    """Writes checkpoint ``number`` and removes all but the last ``keep``.

    Args:
      form: how arrays are written, a name of ``cljax.storage.formats.FORMATS``.

    Raises:
      UserError: if it cannot be written, or in no such form; earlier checkpoints stay as they are.
    """
    check_known("format", form, formats.FORMATS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.clean(folder)
        temporary = folder / f".writing-{uuid.uuid4().hex}"  # removed by ``files.clean``
        temporary.mkdir()
    except OSError as error:
        raise _unwritable(folder, error) from error
    place = folder / f"{number:08d}"
    try:
        _write(temporary, snapshot, identity, form)
        os.replace(temporary, place)
        sync(folder)
    except Exception as error:
        _remove(temporary)
        raise _unwritable(folder, error) from error
    for old in _numbered(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def newest(folder: Path, identity: Mapping[str, Any]) -> tuple[Snapshot | None, list[str]]:
    """The newest whole checkpoint of this run, or None, and a sentence for each one skipped.

    Nothing is written.

    Raises:
      UserError: if the newest whole one was made with other data or versions.
    """
    skipped = []
    for place in reversed(_numbered(folder)):
        try:
            _verify(place)
            header = files.read_json(place / "position.json")
            if header["identity"].get("config_hash") != identity["config_hash"]:
                raise ValueError("it is of another run")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            skipped.append(f"The checkpoint {place} is skipped: {_reason(error)}.")
            continue
        _check_identity(place, header["identity"], identity)
        try:
            return Snapshot(_read(place, header), header["position"]), skipped
        except Exception as error:
            skipped.append(f"The checkpoint {place} is skipped: {_reason(error)}.")
    return None, skipped


def _check_identity(place: Path, stored: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    fields = [name for name in sorted({*stored, *own}) if stored.get(name) != own.get(name)]
    if fields:
        shown = ", ".join(
            f"{name} was {stored.get(name)} and is {own.get(name)}" for name in fields
        )
        raise UserError(
            f"The checkpoint {place} cannot be continued here: {shown}; go back to what it was "
            "made with, or run in another folder."
        )


def _numbered(folder: Path) -> list[Path]:
    """Checkpoints by number, the oldest first."""
    if not folder.is_dir():
        return []
    result = (entry for entry in folder.iterdir() if _NUMBER.fullmatch(entry.name))
    return sorted(result, key=lambda entry: int(entry.name))


def newest_place(folder: Path) -> Path | None:
    """The newest checkpoint's folder, whole or not."""
    numbered = _numbered(folder)
    return numbered[-1] if numbered else None


def next_number(folder: Path) -> int:
    """One more than the newest checkpoint's, whole or not."""
    place = newest_place(folder)
    return 1 if place is None else int(place.name) + 1


def _write(folder: Path, snapshot: Snapshot, identity: Mapping[str, Any], form: str) -> None:
    # Orbax's cost is by the array, so those of a type are laid end to end; the header knows them.
    described, parts = [], {}
    for name, array in sorted(snapshot.arrays.items()):
        flat = _plain(array).reshape(-1)
        own = parts.setdefault(flat.dtype.name, [])
        start = sum(part.size for part in own)
        own.append(flat)
        described.append(
            {"name": name, "dtype": str(array.dtype), "shape": list(array.shape),
             "kept_as": flat.dtype.name, "start": start}
        )  # fmt: skip
    plain = {kind: np.concatenate(own) for kind, own in parts.items()}
    plain = {kind: array for kind, array in plain.items() if array.size}
    _reserve(folder, plain.values())
    if plain:
        formats.FORMATS[form].write(folder, plain)
    header = {
        "identity": dict(identity), "position": snapshot.position, "arrays": described,
        "form": form,
    }  # fmt: skip
    (folder / "position.json").write_text(json.dumps(header, sort_keys=True), "utf-8")
    hashes = {name: files.digest(folder / name) for name in _files(folder)}
    (folder / _HASHES).write_text(json.dumps(hashes, sort_keys=True), "utf-8")
    for name in _files(folder):
        sync(folder / name)


def _read(place: Path, header: Mapping[str, Any]) -> dict[str, np.ndarray]:
    described = header["arrays"]
    named = header.get("form", "orbax")  # earlier versions had that alone
    check_known("format", named, formats.FORMATS)
    form = formats.FORMATS[named]
    _check_size(place, described, form)
    held = {entry["kept_as"] for entry in described if 0 not in entry["shape"]}
    result = form.read(place, held) if held else {}
    arrays = {}
    for entry in described:
        dtype, shape = jnp.dtype(entry["dtype"]), tuple(entry["shape"])
        size = math.prod(shape)
        whole = np.asarray(result[entry["kept_as"]]) if size else np.zeros(0, entry["kept_as"])
        part = whole[entry["start"] : entry["start"] + size] if size else whole
        arrays[entry["name"]] = part.view(dtype).reshape(shape)
    return arrays


def _check_size(place: Path, described: list[dict[str, Any]], form: formats.Format) -> None:
    """Raises ValueError unless the arrays on disk have the sizes of the header, and fit here."""
    sizes: dict[str, int] = {}
    for entry in described:
        kind = str(np.dtype(entry["kept_as"]))
        sizes[kind] = sizes.get(kind, 0) + math.prod(entry["shape"])
    for kind, size in sizes.items():
        if size and form.size(place, kind) != size:
            raise ValueError(f"its arrays of {kind} have another size than its header says")
    claimed = sum(np.dtype(kind).itemsize * size for kind, size in sizes.items())
    if claimed > _memory():
        raise ValueError(f"it claims to hold {claimed} bytes, more than this machine's memory")


def _memory() -> float:
    """Bytes of this machine's memory; infinite where nobody says."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def _plain(array: np.ndarray) -> np.ndarray:
    """Types that numpy does not know by itself, such as bfloat16, as integers of their size."""
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")


def _verify(place: Path) -> None:
    """Raises ValueError or OSError unless every file is as it was written."""
    hashes = files.read_json(place / _HASHES)
    present = set(_files(place)) - {_HASHES}
    for name in sorted({*hashes, *present}):
        if name not in hashes:
            raise ValueError(f"{name} does not belong to it")
        if name not in present:
            raise ValueError(f"{name} is missing")
        if files.digest(place / name) != hashes[name]:
            raise ValueError(f"{name} is damaged")


def _files(folder: Path) -> list[str]:
    """Names of all files below a folder, with slashes."""
    result = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in result)


def _unwritable(folder: Path, error: Exception) -> UserError:
    codes = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
    full = isinstance(error, OSError) and error.errno in codes
    if full or os.strerror(errno.ENOSPC) in str(error):
        return UserError(
            f"A checkpoint cannot be written in {folder}: the disk is full; free some space, "
            "then resume from the last one."
        )
    return UserError(
        f"A checkpoint cannot be written in {folder}: {_reason(error)}; put it right, then "
        "resume from the last one."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]


def _reserve(folder: Path, arrays: Iterable[np.ndarray]) -> None:
    """Raises OSError without room for the arrays: orbax's threads would print their own errors."""
    if not hasattr(os, "posix_fallocate") or not hasattr(os, "statvfs"):
        return
    block = os.statvfs(folder).f_frsize
    size = sum(-(-array.nbytes // block) + 3 for array in arrays) + 16
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size * block)


def _remove(folder: Path) -> None:
    """Removes a folder that threads of a failed write may still be filling."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
