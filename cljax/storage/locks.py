"""Locks on folders: one process at a time, and none for ever, since they die with it.

A lock is an empty file, held through ``filelock`` and removed when it is let go. A link or
anything else in its place is refused: it is neither followed nor emptied.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from cljax.errors import UserError

__all__ = ["busy", "claim", "tidy"]

_PATIENCE = 0.2  # seconds: whoever only looks whether a lock is held holds it for a moment


@contextlib.contextmanager
def claim(folder: Path, lock_name: str = ".lock", *, wait: float = _PATIENCE) -> Iterator[None]:
    """Makes the folder and holds it for this process; other locks' holders may share it.

    As ``tidy``, it leaves no empty folders that it made.

    Args:
      wait: seconds to wait for another process.

    Raises:
      UserError: if it cannot be written, its lock is a link, or another process holds it.
    """
    path = folder / lock_name
    lock = FileLock(path)
    with tidy(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _check(path)
            lock.acquire(timeout=wait, poll_interval=0.02)
        except Timeout:
            raise UserError(
                f"The output folder {folder} is in use by another process; wait for it, or name "
                "another folder."
            ) from None
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"The output folder {folder} cannot be written: {reason}.") from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
            lock.release()


@contextlib.contextmanager
def tidy(folder: Path) -> Iterator[None]:
    """Within, the folder and those around it may be made; what is empty at the end is removed."""
    new = [place for place in (folder, *folder.parents) if not os.path.exists(place)]
    try:
        yield
    finally:
        for place in new:
            with contextlib.suppress(OSError):
                place.rmdir()


def _check(path: Path) -> None:
    """Raises UserError if something else than a file, such as a link, stands in a lock's place."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        what = "a link" if stat.S_ISLNK(mode) else "no file"
        raise UserError(f"The lock {path} is {what}, so the folder is not touched; remove it.")


def busy(path: Path) -> bool:
    """Whether a process holds this lock; nothing is written, and no link is followed."""
    try:
        import fcntl
    except ImportError:  # Windows, where a lock that nobody holds is no longer there
        return path.is_file() and not path.is_symlink()
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False
