"""The configuration of a run, in canonical JSON, and the hash of what decides its results."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from cljax.errors import UserError
from cljax.types import Evaluation, Penalty, Readout

__all__ = [
    "canonical", "commit_of", "config_hash", "differences", "entry_of", "environment",
    "evaluation_of", "plain",
]  # fmt: skip

# What decides a run's results; the rest of a config is about where and when.
_IDENTITY = (
    "method", "stream", "net", "batch_size", "epochs", "entries", "evaluations", "eval_every",
    "online", "seeds", "precision", "lanes", "loop",
)  # fmt: skip


def canonical(value: Any) -> str:
    """JSON with sorted keys; the same text for the same value on every machine."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def plain(value: Any) -> Any:
    """A value as JSON's own types.

    Raises:
      UserError: for a value that JSON cannot hold, such as a tracer.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Penalty) and value.options:
        return {"name": value.name, "options": plain(value.options)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())  # type: ignore[attr-defined]
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.generic, np.ndarray)) or (
        isinstance(value, jax.Array) and not isinstance(value, Tracer)
    ):
        return plain(np.asarray(value).tolist())
    if isinstance(value, Path):
        return str(value)
    if callable(value):
        return _function(value)
    raise UserError(f"{value!r} cannot be written into a run's config; give a number or a string.")


def entry_of(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON; one without a readout says nothing of it, as before there were any."""
    entry = plain(evaluation)
    if entry["readout"] is None:
        del entry["readout"]
    return entry


def evaluation_of(entry: Mapping[str, Any]) -> Evaluation:
    """The evaluation that ``entry_of`` wrote."""
    fitted = entry.get("readout")
    return Evaluation(**{**entry, "readout": None if fitted is None else Readout(**fitted)})


def _function(value: Any) -> Any:
    """A function's name and what it closes over, such as the rate of an optax optimiser."""
    if isinstance(value, functools.partial):
        bound = {"arguments": value.args, "keywords": value.keywords}
        return {"function": _function(value.func), **plain(bound)}
    name = f"{value.__module__}:{getattr(value, '__qualname__', type(value).__qualname__)}"
    closure = inspect.getclosurevars(value).nonlocals if inspect.isfunction(value) else {}
    return (
        {"function": name, "closure": {k: _tolerant(v) for k, v in closure.items()}}
        if closure
        else name
    )


def _tolerant(value: Any) -> Any:
    try:
        return plain(value)
    except UserError:  # an object of the user's that a function happens to hold
        return f"{type(value).__module__}:{type(value).__qualname__}"


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 over the parts of a config that decide the results; the run's identity."""
    identity = {name: config[name] for name in _IDENTITY}
    return hashlib.sha256(canonical(identity).encode()).hexdigest()


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The fields of the identity in which two configs differ, such as ``method.options.lr``."""
    return [
        path for name in _IDENTITY for path in _paths(name, plain(a.get(name)), plain(b.get(name)))
    ]


def environment() -> dict[str, Any]:
    """Versions, device, commit and command: recorded beside a run, not part of its identity."""
    names = ("cljax", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = {name: _version(name) for name in names} | {"python": platform.python_version()}
    device = jax.devices()[0]
    return {
        "versions": versions,
        "device": {
            "backend": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
        "commit": commit_of(Path(__file__).parents[1]),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def commit_of(root: Path, distribution: str = "cljax") -> str | None:
    """The commit that this package is at, with ``-dirty`` where tracked files differ from it.

    Args:
      root: the folder around the package; where it is no checkout, what pip wrote down counts.
      distribution: the installed one, whose direct_url.json (PEP 610) names a commit if it came
        from a repository.
    """
    if not (root / ".git").exists():
        return _installed_commit(distribution)

    def asked(*command: str) -> str | None:
        done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        head = asked("rev-parse", "HEAD")
        changed = head and asked("status", "--porcelain", "--untracked-files=no")
    except OSError:  # no git here
        return None
    return f"{head}-dirty" if changed else head or None


def _installed_commit(distribution: str) -> str | None:
    try:
        text = metadata.distribution(distribution).read_text("direct_url.json")
        return json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    except (metadata.PackageNotFoundError, ValueError):
        return None


def _paths(name: str, a: Any, b: Any) -> list[str]:
    if a == b:
        return []
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(set(a) | set(b))
        return [path for key in keys for path in _paths(f"{name}.{key}", a.get(key), b.get(key))]
    return [name]
