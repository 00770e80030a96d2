"""``files.json``: the SHA-256 of every file of a folder, so that nothing else is taken for it.

    {"config_hash": ..., "files": {"config.json": SHA-256, "plots/over_time.png": SHA-256, ...}}

It is written twice, each time before the file that gives it a meaning, whose content is known by
then: with ``config.json`` alone before that, when a run begins, and with every file before
``results.json``, which makes a run finished. So a kill at any moment leaves either a run that is
not finished, and whose config is checked, or a finished one with the hashes of all its files.
``checkpoint/`` is there, if only empty, from before the second time until after ``results.json``:
so where results are listed, and neither they nor it are there, they were removed.
A sweep's folder does the same with ``sweep.json``; each of its lanes is a folder of its own.

What belongs to a folder is everything in it but

    .*  checkpoint/  tensorboard/  lanes/                       of the process that is at work
    report.html, other *.html *.csv *.tex, and *_figures/       a report, written later
    *.md *.txt                                                  notes, but for a sweep's table.txt

which are neither listed nor read as results. Any other file that is not listed is refused, as is
one that is missing or differs.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cljax.errors import UserError
from cljax.storage import files, shapes

__all__ = ["NAME", "check", "check_ended", "check_one", "read", "refuse_links", "seal", "shaped"]

NAME = "files.json"
_WORK = ("checkpoint", "tensorboard", "lanes")
_BESIDE = (".html", ".csv", ".tex", ".md", ".txt")
_OURS = ("table.txt",)  # though it ends as notes do
_ADVICE = "restore the folder from a copy, or run again in another one"


def read(folder: Path, name: str, shape: Any = dict) -> dict[str, Any]:
    """A JSON object of a folder, of a shape.

    Raises:
      UserError: if it is not there, cannot be read, or holds something else.
    """
    path = folder / name
    try:
        return shaped(path, files.read_json(path), shape)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is not a finished run: it has no {name}.") from None
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path} cannot be read ({reason}); run again in another folder."
        ) from error


def shaped(path: Path, value: Any, shape: Any) -> Any:
    """The value itself, read from ``path``; UserError unless it has the shape."""
    result = shapes.strange(value, shape)
    if result:
        raise UserError(f"{path} is damaged: {result}; {_ADVICE}.")
    return value


def seal(folder: Path, config_hash: str, contents: Mapping[str, bytes] | None = None) -> None:
    """Writes ``files.json`` for the files that are there and those about to be written.

    Args:
      contents: name -> what the file is going to hold.
    """
    contents = contents or {}
    hashes = {name: files.digest(folder / name) for name in _own(folder) if name not in contents}
    hashes |= {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    files.write_json(folder / NAME, {"config_hash": config_hash, "files": hashes})


def check(folder: Path) -> str:
    """The ``config_hash`` that a folder was sealed with, once all its files are found as written.

    Raises:
      UserError: naming the first file that is missing, differs, or does not belong.
    """
    listed = _listed(folder)
    present = set(_own(folder))
    for name in sorted({*listed["files"], *present} - {NAME}):
        if name not in listed["files"]:
            raise UserError(
                f"{folder / name} was not written by what made {folder}; move it elsewhere."
            )
        if name not in present and "/" in name:  # nor is a path that leads elsewhere looked at
            raise _missing(folder, name)
        _compare(folder, name, listed["files"][name])
    return listed["config_hash"]


def check_one(folder: Path, name: str) -> str:
    """As ``check``, of one file: of a folder that is not finished, the others still change."""
    listed = _listed(folder)
    if name not in listed["files"]:
        raise UserError(f"{folder / name} is not in {NAME}, so it is damaged; {_ADVICE}.")
    _compare(folder, name, listed["files"][name])
    return listed["config_hash"]


def check_ended(folder: Path) -> None:
    """Raises UserError if the results of a finished run were removed."""
    # In this order: another process may be just finishing it.
    if "results.json" not in _listed(folder)["files"] or (folder / "checkpoint").exists():
        return
    if not os.path.lexists(folder / "results.json"):
        raise _missing(folder, "results.json")


def refuse_links(folder: Path) -> None:
    """Raises UserError for a link or a device in a folder that is to be written into."""
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(root, name)
            try:
                mode = os.lstat(path).st_mode
            except FileNotFoundError:  # another process's, just renamed
                continue
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                what = "a link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                raise UserError(
                    f"{path} is {what}, so nothing is written into {folder}; remove it."
                )


def _listed(folder: Path) -> dict[str, Any]:
    if not os.path.lexists(folder / NAME):
        raise UserError(
            f"{folder} has no {NAME}: an earlier version made it, or the file was removed, so its "
            "numbers cannot be checked; run again in another folder."
        )
    return read(folder, NAME, shapes.FILES)


def _compare(folder: Path, name: str, expected: str) -> None:
    path = folder / name
    try:
        result = files.digest(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        result = None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from error
    if result is None:
        raise _missing(folder, name)
    if result != expected:
        raise UserError(
            f"{path} is not what was written there: its SHA-256 is another one; {_ADVICE}."
        )


def _missing(folder: Path, name: str) -> UserError:
    return UserError(f"{folder / name} is missing, though {NAME} lists it; {_ADVICE}.")


def _own(folder: Path) -> Iterator[str]:
    """Names of the files that belong to a folder, with slashes, in order."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror or error}).") from error
    for entry in entries:
        name = entry.name
        if name.startswith(".") or name in (*_WORK, NAME):
            continue
        if entry.is_dir(follow_symlinks=False):
            if not name.endswith("_figures"):
                yield from _below(folder, name)
        elif name in _OURS or not name.endswith(_BESIDE):
            yield name


def _below(folder: Path, name: str) -> Iterator[str]:
    for root, folders, names in os.walk(folder / name):
        folders.sort()
        for result in sorted(names):
            if result != ".DS_Store" and not files.TEMPORARY.fullmatch(result):
                yield Path(root, result).relative_to(folder).as_posix()
        links = [own for own in folders if Path(root, own).is_symlink()]
        yield from (Path(root, own).relative_to(folder).as_posix() for own in links)
