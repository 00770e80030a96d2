"""What to cite for a folder: that of a run, of a sweep, or of a study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cljax import sweep
from cljax.errors import UserError
from cljax.references import cite
from cljax.runner import artefacts

__all__ = ["keys_of"]


def keys_of(name: str) -> list[str]:
    """Keys for a name of the command line, or for the folder of a run, a sweep or a study.

    Raises:
      UserError: if it is neither.
    """
    path = artefacts.place(name)
    return _keys_of_folder(path) if path.is_dir() else cite.keys_of(name)


def _keys_of_folder(path: Path) -> list[str]:
    if (path / "sweep.json").exists():
        config = sweep.load(path).config
        stream = config["stream"]
        return [*cite.keys_of_method(config["method"]), *cite.keys_of_stream(stream, stream)]
    runs = [path] if (path / "config.json").exists() else sorted(
        place.parent for place in path.glob("report/*/config.json")
    )  # fmt: skip
    if not runs:
        raise UserError(f"{path} holds no run, sweep or study to cite; name such a folder.")
    return [key for run in runs for key in cite.keys_of_config(_config(run))]


def _config(run: Path) -> Mapping[str, Any]:
    """The config of a run, whose files are checked if it is finished."""
    if (run / "results.json").exists():
        return artefacts.load(run)[0]
    return artefacts.config_of(run)
