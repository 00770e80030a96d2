"""The configuration of a run, in canonical JSON, and the hash of what decides its results."""

from __future__ import annotations

import functools
import hashlib
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
from cljax.memory.policy import ExemplarPolicy
from cljax.memory.protocol import Memory
from cljax.method import Method
from cljax.penalty import Penalty
from cljax.runner.settings import changes, settings
from cljax.types import Evaluation, Readout

__all__ = [
    "another_run", "canonical", "commit_of", "config_hash", "differences", "entry_of",
    "environment", "evaluation_of", "plain", "since",
]  # fmt: skip

# What decides a run's results; the rest of a config is about where and when.
_IDENTITY = (
    "method", "stream", "net", "batch_size", "epochs", "entries", "evaluations", "eval_every",
    "online", "seeds", "precision", "lanes", "loop",
)  # fmt: skip
# Likewise, where a config has them: what no name tells, and the word of the user's for it.
_MORE = ("identity", "id", "start", "objective", "stopping")
# Words of ``cljax.identity.content`` between the names that a user gave.
_OF_JSON = frozenset({
    "again", "array", "attributes", "bases", "class", "closure", "ends", "entries", "fields",
    "function", "globals", "mapping", "pairs", "registry", "sequence", "values", "wrapped",
    "__wrapped__",
})  # fmt: skip
_KINDS = {"class", "function", "object", "partial", "tuple", "unknown", "wrapped"}


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
    if isinstance(value, (Method, Penalty, ExemplarPolicy, Memory)):
        return {"name": value.name, "options": plain(value.recorded)}
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
    if callable(value):  # ``cljax.identity`` tells what it is; here it is called by its name
        named = getattr(value, "__qualname__", type(value).__qualname__)
        return f"{value.__module__}:{named}"
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


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 over the parts of a config that decide the results; the run's identity."""
    identity = {name: config[name] for name in _IDENTITY}
    identity |= {name: config[name] for name in _MORE if config.get(name)}
    return hashlib.sha256(canonical(identity).encode()).hexdigest()


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The fields of the identity in which two configs differ, such as ``method.options.lr``."""
    paths = [
        path
        for name in (*_IDENTITY, *_MORE)
        for path in _paths(name, plain(a.get(name) or {}), plain(b.get(name) or {}))
    ]
    named = dict.fromkeys(_as_written(path) for path in paths)
    return [path for path in named if path not in ("mark", "unknown")]


def _as_written(path: str) -> str:
    """A path into what a run is made of, as its owner would write it: less what JSON adds."""
    parts = path.split(".")
    if parts[0] != "identity":
        return path
    return ".".join(part for part in parts[1:] if part not in _OF_JSON)


def another_run(folder: Path, stored: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Why the run in a folder, by its config, is not the one of ``config``: one sentence."""
    fields, own = differences(stored, config)[:4], config.get("identity", {})
    if "mark" in own and not fields:
        return (
            f"The run in {folder} is neither read back nor continued, because "
            f"{own['unknown'][0]} cannot be told by its content; pass id='...' from the first run "
            "on to say that it is the same, or name another folder."
        )
    return (
        f"The output folder {folder} holds another run: {', '.join(fields)} differ; name another "
        "folder."
    )


def environment() -> dict[str, Any]:
    """Versions, device, commit and command: recorded beside a run, not part of its identity."""
    names = ("cljax", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = {name: _version(name) for name in names} | {"python": platform.python_version()}
    device = jax.devices()[0]
    return {
        "versions": versions,
        "settings": settings(),
        "device": {
            "backend": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
        "commit": commit_of(Path(__file__).parents[1]),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def since(config: Mapping[str, Any]) -> list[str]:
    """What can change bits and is other now than when a run was made; see ``settings``."""
    packages = {name: _version(name) for name in config.get("packages", ())}
    now = environment()
    versions = dict(now["versions"]) | packages
    return changes(config, now | {"packages": list(packages), "versions": versions})


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
    if isinstance(a, dict) and isinstance(b, dict) and not _KINDS & (set(a) ^ set(b)):
        keys = sorted(set(a) | set(b))
        return [path for key in keys for path in _paths(f"{name}.{key}", a.get(key), b.get(key))]
    return [name]
