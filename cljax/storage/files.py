"""Files: written whole or not at all, and read no further than they may be.

A file is written beside its place, as ``.NAME.HEX.tmp``, and renamed; its mode is what the umask
leaves. What a killed writer left is removed by ``clean``. Numbers read from files are checked
against the size of the file before room is made for them, and nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from cljax.errors import UserError, in_words

__all__ = [
    "as_json", "clean", "digest", "folder_name", "opened", "place", "read_array", "read_arrays",
    "read_json", "sync", "write_arrays", "write_bytes", "write_json", "writing",
]  # fmt: skip

MOST = 1 << 28  # bytes of a JSON file, and of all arrays of an ``.npz``
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")  # of a file that is being written
_WINDOWS = os.name == "nt"
_UNFINISHED = ".writing-"  # folders of checkpoints
_SHOWN = 80  # characters of a path in a sentence


def place(path: str | os.PathLike[str]) -> Path:
    """A path that the user gave, with the home folder for ``~``.

    Raises:
      UserError: if no file can have it, or one may not look there.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"The folder is {in_words(path)}, but it must be the name of one.")
    text = str(path)
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    try:
        result = Path(path).expanduser()
        os.lstat(result / "config.json")  # whatever it is: may one look into the folder?
    except (FileNotFoundError, NotADirectoryError):
        return result
    except RuntimeError:
        raise UserError(f"The path {shown} names a home folder that is not known.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"The path {shown!r} cannot be used: {reason}.") from None
    return result


def folder_name(*parts: str) -> str:
    """A folder's name of words such as those of a method and a stream; "++" is spelled "pp".

    Example:
        >>> from cljax.storage.files import folder_name
        >>> folder_name("der++", "split-mnist[sample]", "1234abcd")
        'derpp-split-mnist-sample-1234abcd'
    """
    words = "-".join(parts).replace("++", "pp")
    return re.sub(r"[^A-Za-z0-9.-]+", "-", words).replace("--", "-")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes its name once all is in it; a link of that name is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a whole file or nothing."""
    with writing(path) as file:
        file.write(content)


def as_json(value: Any) -> bytes:
    """JSON with sorted keys; NaN is refused."""
    return f"{json.dumps(value, sort_keys=True, indent=1, allow_nan=False)}\n".encode()


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with sorted keys; NaN is refused."""
    write_bytes(path, as_json(value))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as ``.npz``; ``read_arrays`` reads them.

    Raises:
      TypeError: for an array of objects, which would have to be pickled.
    """
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"{name} is an array of objects.")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    write_bytes(path, buffer.getvalue())


def sync(path: Path) -> None:
    """Has a file, or the names in a folder, written to the disk; Windows needs none for folders."""
    if _WINDOWS and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def clean(folder: Path) -> None:
    """Removes what killed writers left, from a folder in which no other process writes."""
    for root, folders, names in os.walk(folder):
        for name in filter(TEMPORARY.fullmatch, names):
            with contextlib.suppress(OSError):
                Path(root, name).unlink()
        for name in [name for name in folders if name.startswith(_UNFINISHED)]:
            folders.remove(name)
            shutil.rmtree(Path(root, name), ignore_errors=True)


def opened(path: Path) -> io.BufferedReader:
    """A regular file, open for reading; a pipe or a device is none, and does not block.

    Raises:
      OSError: if it cannot be opened.
      ValueError: if it is something else.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("it is no file of bytes")
    return os.fdopen(handle, "rb")


def digest(path: Path) -> str:
    """The SHA-256 of a regular file; raises as ``opened`` does."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, most: int = MOST) -> Any:
    """What a JSON file holds.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is not JSON, has numbers that JSON does not, nests too deeply, or is
        longer than ``most`` bytes.
    """
    with opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is longer than {most} bytes")
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def read_arrays(path: Path, most: int = MOST) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz``, at most ``most`` bytes of them; nothing is unpickled.

    Raises:
      ValueError: if it is damaged, or claims more than it may hold.
      OSError: if it cannot be read.
    """
    with opened(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                claimed = sum(member.file_size for member in members)
                if claimed > most:
                    raise ValueError(f"it claims to hold {claimed} bytes")
                names = [member.filename.removesuffix(".npy") for member in members]
                return {
                    name: _array(archive.read(member))
                    for name, member in zip(names, members, strict=True)
                }
        except (OSError, ValueError):
            raise
        except Exception as error:  # damage shows in many ways
            raise ValueError(str(error) or type(error).__name__) from error


def _array(content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    array = read_array(file, len(content))
    if file.tell() != len(content):
        raise ValueError("bytes follow an array")
    return array


def read_array(file: io.BufferedIOBase, size: int) -> np.ndarray:
    """The next array of a ``.npy`` file of ``size`` bytes.

    Raises:
      ValueError: if its header claims objects, or more numbers than follow.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it is of the .npy format {version}, which is not known")
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(file)
    left = size - file.tell()
    count = math.prod(shape)
    if dtype.hasobject or not dtype.itemsize or min(shape, default=0) < 0:
        raise ValueError("it holds objects, not numbers")
    needed = count * dtype.itemsize
    if needed > left:
        raise ValueError(f"a header claims {needed} bytes where {left} follow")
    flat = np.empty(count, dtype)
    if count and file.readinto(flat.view(np.uint8).data) != needed:
        raise ValueError("it was cut")
    return flat.reshape(shape, order="F" if fortran else "C")
