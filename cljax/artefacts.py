"""The folder of a run: who may write in it, and how, so that nothing finished is ever lost.

``results.json`` is written last and makes the run finished. Every file is written beside itself
and renamed; a lock on the folder belongs to one process, and dies with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from cljax.config import another_run, config_hash
from cljax.errors import UserError

__all__ = [
    "busy", "claim", "finished", "read", "remove", "write_arrays", "write_bytes", "write_json",
]  # fmt: skip

_LOCK = ".lock"
_OURS = re.compile(r"\.lock|\.(config\.json|results\.json|metrics\.jsonl)\.")  # not yet, or cut


def read(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a run.

    Raises:
      UserError: if it is not there, or not JSON.
    """
    path = folder / name
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is not a finished run: it has no {name}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); run again in another folder.") from error


def finished(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the folder holds this very run, complete.

    Raises:
      UserError: if it holds another run, or something else.
    """
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise UserError(f"The output folder {folder} is a file; name a folder.")
    entries = [entry.name for entry in folder.iterdir() if not _OURS.match(entry.name)]
    if not entries:
        return False
    if not (folder / "config.json").exists():
        raise UserError(
            f"The output folder {folder} holds {entries[0]} but no run; name an empty or new one."
        )
    stored = read(folder, "config.json")
    if stored.get("config_hash") != config_hash(config):
        raise UserError(another_run(folder, stored, config))
    return (folder / "results.json").exists()


@contextlib.contextmanager
def claim(folder: Path, lock_name: str = _LOCK) -> Iterator[None]:
    """Makes the folder and holds it for this process; other locks' holders may share it.

    Raises:
      UserError: if it cannot be written, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder / lock_name)
    except OSError as error:
        reason = error.strerror
        raise UserError(f"The output folder {folder} cannot be written: {reason}.") from error
    if lock is None:
        raise UserError(
            f"The output folder {folder} is in use by another process; wait for it, or name "
            "another folder."
        )
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / lock_name).unlink()
        lock.close()


def _locked(path: Path) -> IO[str] | None:
    """A lock file, held; None if another process holds it."""
    while True:
        lock = open(path, "w")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed it between our opening and our locking it.
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
                return lock
        except BlockingIOError:
            lock.close()
            return None
        lock.close()


def busy(lock: Path) -> bool:
    """Whether a process holds this lock."""
    try:
        with open(lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except OSError:
        return True


def remove(folder: Path) -> None:
    """Removes a folder, and the one around it once that is empty."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with sorted keys; NaN is refused."""
    text = json.dumps(value, sort_keys=True, indent=1, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as ``.npz``; read them with ``allow_pickle=False``."""
    import io

    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())
