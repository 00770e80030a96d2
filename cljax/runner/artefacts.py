"""The folder of a run: who may write in it, and how, so that nothing finished is ever lost.

``results.json`` is written last and makes the run finished; ``files.json`` holds the SHA-256 of
every file (``cljax.storage.integrity``). A lock on the folder belongs to one process, and dies with
it (``cljax.storage.locks``); every file is written beside itself and renamed
(``cljax.storage.files``).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cljax.errors import UserError
from cljax.runner.config import another_run, config_hash
from cljax.storage import files, integrity, shapes
from cljax.storage.files import clean, place, write_arrays, write_bytes, write_json
from cljax.storage.integrity import read, refuse_links, seal
from cljax.storage.locks import busy, claim

__all__ = [
    "begin", "busy", "claim", "clean", "config_of", "finish", "finished", "load", "place", "read",
    "refuse_links", "remove", "seal", "undo", "write_arrays", "write_bytes", "write_json",
]  # fmt: skip


def config_of(folder: Path) -> dict[str, Any]:
    """The config of a run, finished or not, as it was written.

    Raises:
      UserError: if it is not there, or is another one, or the results of the run were removed.
    """
    config = _own_hash(folder, _config(folder), integrity.check_one(folder, "config.json"))
    integrity.check_ended(folder)
    return config


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and results of a finished run, every file of which is as it was written.

    Raises:
      UserError: naming the file that is not, or is of another run.
    """
    if (folder / integrity.NAME).exists():
        integrity.check_ended(folder)
    results = read(folder, "results.json")
    sealed = integrity.check(folder)
    config = _own_hash(folder, _config(folder), sealed)
    path = folder / "results.json"
    integrity.shaped(path, results, shapes.RESULTS)
    _check_counts(path, results)
    if results["config_hash"] != config["config_hash"]:
        raise UserError(
            f"{path} is of another run than {folder / 'config.json'}: its config_hash is "
            f"{results['config_hash'][:8]}, not {config['config_hash'][:8]}; restore the folder "
            "from a copy, or run again in another one."
        )
    return config, results


def _check_counts(path: Path, results: Mapping[str, Any]) -> None:
    """Raises UserError unless there is one value for each seed wherever there is one for some."""
    counted = {name: results[name] for name in ("diverged", "accuracy_matrix")}
    counted |= {f"metrics.{name}": cell["values"] for name, cell in results["metrics"].items()}
    for name, entry in results["evaluations"].items():
        counted[f"evaluations.{name}"] = entry["accuracy_matrix"]
    for name, values in counted.items():
        if len(values) != len(results["seeds"]):
            raise UserError(
                f"{path} is damaged: {name} is of {len(values)} seeds, not of the "
                f"{len(results['seeds'])} that it lists."
            )


def _config(folder: Path) -> dict[str, Any]:
    return read(folder, "config.json", shapes.CONFIG)


def _own_hash(folder: Path, config: dict[str, Any], sealed: str) -> dict[str, Any]:
    """The config itself, if its hash is that of its content, and the one that was sealed."""
    try:
        computed = config_hash(config)
    except (KeyError, TypeError, ValueError):
        computed = "none"
    for name, stored in (("config.json", config["config_hash"]), (integrity.NAME, sealed)):
        if stored != computed:
            raise UserError(
                f"{folder / name} holds the config_hash {stored[:8]}, but config.json has "
                f"{computed[:8]}, so the folder was changed or is of an earlier version; run again "
                "in another one."
            )
    return config


def finished(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the folder holds this very run, complete; ``load`` checks its files.

    Raises:
      UserError: if it holds another run, or something else.
    """
    try:
        if not folder.exists():
            return False
        if not folder.is_dir():
            raise UserError(f"The output folder {folder} is a file; name a folder.")
        # Not yet a run: what is hidden, and what comes before a config.
        before = (integrity.NAME, "tensorboard")
        entries = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"The output folder {folder} cannot be read: {reason}.") from error
    entries = [name for name in entries if not name.startswith(".") and name not in before]
    if not entries:
        return False
    if "config.json" not in entries:
        raise UserError(
            f"The output folder {folder} holds {entries[0]} but no run; name an empty or new one."
        )
    stored = config_of(folder)
    if stored["config_hash"] != config_hash(config):
        raise UserError(another_run(folder, stored, config))
    return "results.json" in entries


def begin(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes the config of a run that begins, unless it is there."""
    if not (folder / "config.json").exists():
        content = files.as_json(config)
        seal(folder, config["config_hash"], {"config.json": content})
        write_bytes(folder / "config.json", content)


def finish(folder: Path, results: Mapping[str, Any]) -> None:
    """Writes the results, and before them the hashes of all files: the run is finished then.

    Its checkpoints go last; that they are there tells a kill in between from removed results.
    """
    content = files.as_json(results)
    (folder / "checkpoint").mkdir(exist_ok=True)
    seal(folder, results["config_hash"], {"results.json": content})
    write_bytes(folder / "results.json", content)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)


def undo(folder: Path, *names: str) -> None:
    """Removes what was written of a run that was refused before it had begun."""
    for name in (*names, integrity.NAME):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name, ignore_errors=True)
        with contextlib.suppress(OSError):
            (folder / name).unlink()


def remove(folder: Path) -> None:
    """Removes a folder, and the one around it once that is empty."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()
