"""Which images of a folder are whose: its split into training images and tests, and its classes.

    ROOT/train/CLASS/*.jpg    ROOT/test/CLASS/*.jpg (or ROOT/val/CLASS/*.jpg)
    ROOT/train/CLASS/*.jpg    ROOT/val/images/*.jpg, their classes in ROOT/val/val_annotations.txt
    ROOT/CLASS/*.jpg          a share of each class becomes its tests

The folders of a split may have any usual name, in any capitals: train, training or train_set; test,
testing or tst; val, valid, validation; or a name of several words of which one is such, as
seg_train. Where there are tests and validation images, both sorted by class,
the tests test. A folder named like training images is a class only where it holds images itself and
others beside it are named otherwise; one named like tests is refused there, for its images would be
learned from, unless a caller asks for it by its name.

What is hidden is skipped: names that begin with a dot, and what desktops leave behind. Links to
folders are followed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cljax.data.pictures import ENDINGS
from cljax.errors import UserError

__all__ = [
    "ANNOTATIONS", "Layout", "Part", "class_names", "folders_in", "inside", "layout", "split_of",
    "strangers",
]  # fmt: skip

ANNOTATIONS = "val_annotations.txt"  # in ROOT/val: file and class, tabs between

_NAMES = {
    "train": ("train", "training", "trn"),
    "test": ("test", "testing", "tests", "tst"),
    "val": ("val", "valid", "validation"),
}
_LEFT_BEHIND = ("__macosx", "thumbs.db", "desktop.ini", "@eadir", "lost+found")


class Part(NamedTuple):
    """Files of the training images or of the tests, and the class of each."""

    files: list[Path]
    labels: list[int]


class Layout(NamedTuple):
    """What is where in a folder."""

    names: list[str]  # of the classes
    train: Part
    test: Part


def class_names(path: str | os.PathLike[str], *, tests: bool = False) -> list[str]:
    """The classes of a folder, in the order of their numbers.

    Args:
      tests: whether a folder that is named like tests may be a class, as for who chooses by name.

    Raises:
      UserError: if there is no such folder, it has no folders of classes, two of their names differ
        in capitals alone, or one beside others is named like tests.
    """
    root = Path(path).expanduser()
    if not _is_folder(root):
        raise UserError(f"There is no folder {root}; name one that holds a folder for each class.")
    inside = split_of(root).get("train", root)
    names = folders_in(inside)
    if not names:
        raise UserError(
            f"The folder {inside} holds no folders; it needs one with images for each class."
        )
    if inside == root:
        _check_one_level(root, names)
        if not tests:
            _check_no_tests(root, names)
    lower: dict[str, str] = {}
    for name in names:
        if not name.isprintable():
            raise UserError(
                f"The folder {ascii(name)} of {inside} has a name that is no text; name the class "
                "otherwise."
            )
        other = lower.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(
                f"The folders {other} and {name} of {inside} differ in capitals alone; put their "
                "images in one folder, or name them apart."
            )
    return names


def split_of(root: Path) -> dict[str, Path]:
    """The folders "train", "test" and "val" of a folder, those that there are, under any name.

    Raises:
      UserError: if two folders have the same part, or none holds the training images.
    """
    names = folders_in(root)
    alike = [name for name in names if _part_of(name)]
    # Images beside other folders: a class that happens to be called so.
    alone = [
        n for n in alike if not folders_in(root / n) and not (root / n / ANNOTATIONS).is_file()
    ]
    if len(alike) < len(names):
        alike = [name for name in alike if name not in alone]
    result: dict[str, Path] = {}
    for name in alike:
        part = _part_of(name)
        assert part is not None
        if part in result:
            raise UserError(
                f"{root} has the folders {result[part].name} and {name}, which are both named like "
                f"its {part} images; keep one of them, or name it otherwise."
            )
        result[part] = root / name
    if result and "train" not in result:
        raise UserError(
            f"{root} has the folder {alike[0]}, but none of training images; name the folder of "
            "those train, or name one that holds a folder for each class."
        )
    return result


def layout(root: Path, names: list[str], test_share: float = 0.2) -> Layout:
    """Where the images of the classes ``names`` are; see ``cljax.data.class_folders``."""
    split = split_of(root)
    if "val" in split and (split["val"] / ANNOTATIONS).is_file():
        return Layout(names, _part(split["train"], names), _annotated(root, split, names))
    if split:
        tests = _tests(root, split, names)
        strange = sorted(set(folders_in(tests)) - set(class_names(root)))
        if strange:
            raise UserError(f"The class {strange[0]} is in {tests}, but not in {split['train']}.")
        return Layout(names, _part(split["train"], names), _part(tests, names))
    if not 0 < test_share < 1:
        raise UserError(f"test_share is {test_share}, but it must be a share between 0 and 1.")
    train, test = Part([], []), Part([], [])
    for label, name in enumerate(names):
        files = _images(root / name)
        if len(files) < 2:
            raise UserError(
                f"The folder {root / name} holds {len(files)} images, but a class needs at least "
                "one to learn from and one to test."
            )
        order = sorted(files, key=lambda file: hashlib.sha256(inside(root, file)).digest())
        num = min(max(round(len(files) * test_share), 1), len(files) - 1)
        for part, own in ((test, sorted(order[:num])), (train, sorted(order[num:]))):
            part.files.extend(own)
            part.labels.extend([label] * len(own))
    return Layout(names, train, test)


def strangers(root: Path, layout: Layout) -> list[str]:
    """What of a folder is not read, in sentences: other files, and images of no class."""
    split, said = split_of(root), []
    used = {file.parent for part in (layout.train, layout.test) for file in part.files}
    within = [split["train"]] if split else [root]
    tests = next((p for p in split.values() if p != split["train"] and _holds(p, used)), None)
    within += [tests] if tests else []
    others = [file for top in within for name in layout.names for file in _others(top / name)]
    if others:
        endings = sorted({file.suffix.lower() or "no ending" for file in others})
        said.append(
            f"{len(others)} files below {root} are no images by their endings "
            f"({', '.join(endings[:5])}) and were left out, the first of them {others[0]}."
        )
    loose = [p for top in within for p in sorted(top.iterdir()) if p.is_file() and _is_image(p)]
    if loose:
        said.append(
            f"{len(loose)} images lie beside the folders of classes and were left out, the first "
            f"of them {loose[0]}."
        )
    named = [name for name in layout.names if not split and _part_of(name)]
    if named:
        said.append(
            f"The folder {root / named[0]} is taken for a class, though it is named like a part of "
            "a split, for it holds images and no folders; move it elsewhere if it is one."
        )
    for part, folder in split.items():
        if folder not in within and _holds_images(folder):
            where = "" if tests is None else f" The tests are those of {tests}."
            said.append(f"The folder {folder} ({part} images) was not read.{where}")
    return said


def inside(root: Path, file: Path) -> bytes:
    """A file's place in a folder, the same on every system."""
    return os.fsencode(file.relative_to(root).as_posix())


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder that are not hidden, in order.

    Raises:
      UserError: if the folder cannot be read.
    """
    try:
        return sorted(p.name for p in folder.iterdir() if not _hidden(p.name) and p.is_dir())
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read: {error.strerror}.") from error


def _part_of(name: str) -> str | None:
    """Which part of a split a folder's name speaks of: "train", "test", "val"; None: of none."""
    plain = re.sub(r"[^a-z]", "", name.lower())
    plain = re.sub(r"(set|images|data|dataset)$", "", plain)
    words = {plain, *re.split(r"[^a-z]+", name.lower())}
    result = [part for part, names in _NAMES.items() if words.intersection(names)]
    return result[0] if len(result) == 1 else None


def _check_one_level(root: Path, names: Sequence[str]) -> None:
    """A folder whose split lies one level deeper is not one of classes."""
    for name in names:
        deeper = [n for n in folders_in(root / name) if _part_of(n) and folders_in(root / name / n)]
        if deeper:
            raise UserError(
                f"The folder {root / name} holds {deeper[0]} with folders of its own, so it is no "
                f"class; name {root / name} instead."
            )


def _check_no_tests(root: Path, names: Sequence[str]) -> None:
    """Tests without folders of their own, beside those of classes, are no class."""
    for name in names:
        part = _part_of(name)
        if part in ("test", "val"):
            num = len(_images(root / name))
            raise UserError(
                f"The folder {root / name} with {num} images is named like the {part} images of a "
                "split, but lies beside folders of classes; move it elsewhere, or name it "
                "otherwise if it is a class."
            )


def _annotated(root: Path, split: dict[str, Path], names: list[str]) -> Part:
    """The tests that ROOT/val/val_annotations.txt names, those of other classes left out."""
    written = split["val"] / ANNOTATIONS
    known, number = set(class_names(root)), {name: label for label, name in enumerate(names)}
    files, labels = [], []
    for line in written.read_text("utf-8", "replace").splitlines():
        if not line.strip():
            continue
        file, name = (*line.split("\t"), "")[:2]
        if name not in known:
            raise UserError(
                f"{written} names the class '{name}' of the image '{file}', but there is no folder "
                f"{split['train'] / name}."
            )
        if name in number:
            files.append(split["val"] / "images" / file)
            labels.append(number[name])
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the images that {written} names are missing, such as {missing[0]}; "
            "unpack them again."
        )
    absent = sorted(set(range(len(names))) - set(labels))
    if absent:
        raise UserError(f"{written} names no image of the class {names[absent[0]]}.")
    return Part(files, labels)


def _tests(root: Path, split: dict[str, Path], names: list[str]) -> Path:
    """The tests, or the validation images where those are missing or not sorted by class."""
    for part in ("test", "val"):
        if part in split and any((split[part] / own).is_dir() for own in names):
            return split[part]
    raise UserError(
        f"{root} has a folder {split['train'].name}, but neither {root / 'test'} nor "
        f"{root / 'val'} holds a folder for each of its classes."
    )


def _part(folder: Path, names: list[str]) -> Part:
    files, labels = [], []
    for label, name in enumerate(names):
        own = _images(folder / name)
        if not own:
            raise UserError(
                f"There are no images of the class {name} in {folder / name}, but each class needs "
                "training images and tests."
            )
        files.extend(own)
        labels.extend([label] * len(own))
    return Part(files, labels)


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in _files(folder) if _is_image(file))


def _others(folder: Path) -> list[Path]:
    return sorted(file for file in _files(folder) if not _is_image(file))


def _files(folder: Path) -> Iterator[Path]:
    """All files of a folder that are not hidden, links to folders followed once."""
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        if isinstance(error, FileNotFoundError):  # no folder, no files
            return
        raise UserError(f"The folder {error.filename} cannot be read: {error.strerror}.")

    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not _hidden(name)]
        yield from (Path(place, name) for name in files if not _hidden(name))


def _is_image(file: Path) -> bool:
    return file.name.lower().endswith(ENDINGS) and not _hidden(file.name)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _holds(folder: Path, places: set[Path]) -> bool:
    return any(folder in (place, *place.parents) for place in places)


def _holds_images(folder: Path) -> bool:
    return any(_is_image(file) for file in _files(folder))
