"""What a prepared data set says of itself, for data sets that cljax has no entry of.

tensorflow-datasets leaves ``features.json`` and ``dataset_info.json`` beside the examples: which
feature is an image, which a class and of how many, the splits, the citation and, where its
builder states one, the licence. So any classification data set of images is read by its name.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cljax.data import prepared
from cljax.data.sources import SOURCES, Source
from cljax.errors import UserError

__all__ = ["source_of"]

_TESTS = ("test", "validation")  # the first of these that there is


def source_of(name: str, data_dir: str | os.PathLike[str] | None = None) -> Source:
    """The table's entry of a data set, or what its prepared folder says.

    Raises:
      UserError: if it is neither in the table nor prepared, or holds no images of classes.
    """
    if name in SOURCES:
        return SOURCES[name]
    near = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.7)
    if not prepared.versions(name, data_dir) and near:
        raise UserError(f"data set '{name}' is not known; did you mean {near[0]}?")
    folder = prepared.find(name, data_dir)
    try:
        return _described(name, folder)
    except (AttributeError, KeyError, TypeError) as error:  # JSON, but of another shape
        raise UserError(
            f"The description of the data set {name} in {folder} is not as tensorflow-datasets "
            f"writes it ({type(error).__name__}); copy the data set again."
        ) from error


def _described(name: str, folder: Path) -> Source:
    features, info = _read(folder / "features.json"), _read(folder / "dataset_info.json")
    parts = features.get("featuresDict", {}).get("features", {})
    images = [key for key, part in parts.items() if "image" in part]
    labels = [key for key, part in parts.items() if "classLabel" in part]
    if not images or not labels:
        raise UserError(
            f"The data set {name} in {folder} has the features {', '.join(sorted(parts)) or 'none'}"
            ", but an image and a class are needed."
        )
    image, label = (_chosen(keys, kind) for keys, kind in ((images, "image"), (labels, "label")))
    splits = [split["name"] for split in info.get("splits", [])]
    tests = next((split for split in _TESTS if split in splits), None)
    if "train" not in splits or tests is None:
        raise UserError(
            f"The data set {name} in {folder} has the splits {', '.join(splits) or 'none'}, but "
            "train is needed, and test or validation."
        )
    stated = info.get("redistributionInfo", {}).get("license") or "not stated by its builder"
    return Source(
        name, int(parts[label]["classLabel"]["numClasses"]), stated,
        " ".join(info.get("citation", "").split()), image, label, test=tests,
    )  # fmt: skip


def _chosen(keys: list[str], usual: str) -> str:
    return usual if usual in keys else keys[0]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} could not be read ({type(error).__name__}); copy the data set again."
        ) from error
