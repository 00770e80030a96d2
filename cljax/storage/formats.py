"""How a checkpoint's arrays are written: a row a format, so that another one is three functions.

    write(folder, arrays)   makes ``folder / "arrays..."`` of arrays [n] by name
    size(folder, name)      n of one of them, without reading it
    read(folder, names)     those arrays

Names are those of types, of which NumPy knows each by itself. Hashes, headers and what stands where
are ``cljax.storage.checkpoint``'s, whatever the format.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np

from cljax.storage import files

__all__ = ["FORMATS", "WRITTEN", "Format"]


class Format(NamedTuple):
    """The three functions; see the module. What they raise makes a checkpoint one to skip."""

    write: Callable[[Path, Mapping[str, np.ndarray]], None]
    size: Callable[[Path, str], int]
    read: Callable[[Path, Iterable[str]], Mapping[str, np.ndarray]]


def _write_orbax(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    import orbax.checkpoint as ocp

    with _orbax() as checkpointer:
        checkpointer.save(folder / "arrays", args=ocp.args.PyTreeSave(dict(arrays)))


def _size_orbax(folder: Path, name: str) -> int:
    (size,) = files.read_json(folder / "arrays" / name / ".zarray")["shape"]
    return size


def _read_orbax(folder: Path, names: Iterable[str]) -> Mapping[str, np.ndarray]:
    import orbax.checkpoint as ocp

    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    with _orbax() as checkpointer:
        args = ocp.args.PyTreeRestore(restore_args=as_numpy)
        return checkpointer.restore(folder / "arrays", args=args)


@contextlib.contextmanager
def _orbax():
    import orbax.checkpoint as ocp

    # Each process for itself: none waits for another at orbax's barriers.
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"cljax-{me}"
    )
    # One file an array: twice as fast here as orbax's single key-value store, of which it warns.
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, multiprocessing_options=alone)
    checkpointer = ocp.Checkpointer(handler, multiprocessing_options=alone)
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield checkpointer
    finally:
        checkpointer.close()
        logger.setLevel(level)


FORMATS: Mapping[str, Format] = MappingProxyType(
    {"orbax": Format(_write_orbax, _size_orbax, _read_orbax)}
)
WRITTEN = "orbax"  # by default; any of them is read
