"""Folders of runs and sweeps that are damaged, or that somebody else made."""

from __future__ import annotations

import json

import pytest
import support

import cljax
from cljax import sweep
from cljax.cli.command import main
from cljax.runner import artefacts

METHOD = cljax.ER(capacity=6, replay_size=3)
SMALL = {"batch_size": 4, "net": "mlp:5"}


def small_run(folder, **options):
    """A finished run of two seeds."""
    return cljax.run(METHOD, support.stream(), seeds=2, out=folder, **SMALL, **options)


def small_plan():
    """Three lanes of one program."""
    return sweep.plan("online", support.stream(), sweep.grid(lr=[0.1, 0.2, 0.3]), seeds=1, **SMALL)


def files_of(folder):
    """All files below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def contents(folder):
    """What every file holds, and when it and each folder was changed."""
    held = {path: path.read_bytes() for path in files_of(folder)}
    return held, {path: path.lstat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def rewrite(folder, name, change):
    """Changes a JSON file of a folder, and seals the folder as if it had been written so."""
    path = folder / name
    value = change(json.loads(path.read_text()))
    path.write_text(json.dumps(value))
    sealed = json.loads((folder / "files.json").read_text())["config_hash"]
    artefacts.seal(folder, sealed)
    return value


def unfinished(source, folder, **fields):
    """A run that has begun, with the config of ``source`` and other fields."""
    config = json.loads((source / "config.json").read_text()) | fields
    artefacts.begin(folder, config)
    return folder


def call(capsys, *arguments):
    """Exit code, output and errors of a command line."""
    with pytest.raises(SystemExit) as done:
        main(list(map(str, arguments)))
    return done.value.code, *capsys.readouterr()


def one_sentence(code, out, err):
    """Whether a command ended as for a user's mistake."""
    return code == 2 and out == "" and err.startswith("cljax: ") and err.count("\n") == 1
