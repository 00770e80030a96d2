"""What the JSON files of a folder must hold at least, so that whatever reads them may rely on it.

A shape is a type, a tuple of types, ``{key: shape}`` for an object with these keys at least
(``Maybe(shape)`` for one that need not be there), ``Each(shape)`` for an object of any keys, or
``[shape]`` for a list of any length. ``object`` is any value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

__all__ = ["CONFIG", "FILES", "RESULTS", "SWEEP", "SWEEP_RESULTS", "strange"]


class Maybe(NamedTuple):
    """A value that may be missing or null."""

    shape: Any


class Each(NamedTuple):
    """An object whose values all have one shape."""

    shape: Any


Shape: TypeAlias = Any  # a type, a tuple of types, a dict, an Each, or a list of one shape
_NONE = type(None)
_NUMBER = (int, float, _NONE)
_WORDS = {
    bool: "true or false", dict: "an object", float: "a number", int: "a whole number",
    list: "a list", str: "a text", _NONE: "null",
}  # fmt: skip

FILES: Shape = {"config_hash": str, "files": Each(str)}
CONFIG: Shape = {
    "method": {"name": str, "options": dict},
    "stream": {"name": str, "num_tasks": int, "checksum": str},
    "seeds": [int],
    "batch_size": int,
    "epochs": int,
    "entries": str,
    "eval_every": int,
    "online": bool,
    "evaluations": [
        {"name": str, "predictor": str, "scenario": str, "hit": str, "continuum": (int, _NONE),
         "readout": Maybe({"steps": int})}
    ],
    "net": object,
    "lanes": str,
    "loop": str,
    "precision": str,
    "recipe": {"name": str, "status": str, "notes": (str, _NONE)},
    "origins": Each(str),
    "stream_facts": {
        "num_tasks": int, "num_classes": int, "multi_head": bool, "scenario": str, "source": str,
        "published": bool,
    },
    "needs": dict,
    "unmeasured": Each(str),
    "identity": dict,
    "packages": [str],
    "tuning": Maybe(
        {"metric": str, "on": str, "stream": str, "grid": Each(list), "chosen": dict,
         "settings": int, "seeds": [int], "runs": int}
    ),
    "start": Maybe(str),
    "started_from": Maybe({"folder": (str, _NONE), "stream": str, "num_tasks": int}),
    "notices": [str],
    "versions": dict,
    "settings": {"xla_flags": dict},
    "device": {"backend": str, "kind": str},
    "config_hash": str,
}  # fmt: skip
_SPREAD: Shape = {
    "mean": (*_NUMBER, list), "std": (*_NUMBER, list), "ci95": (list, _NONE), "values": list,
}  # fmt: skip
RESULTS: Shape = {
    "method": str,
    "stream": str,
    "seeds": [int],
    "config_hash": str,
    "metrics": Each(_SPREAD),
    "absent": Each(str),
    "evaluations": Each({"accuracy_matrix": [[[_NUMBER]]], "metrics": Each(_SPREAD)}),
    "accuracy_matrix": [[[_NUMBER]]],
    "diverged": [(int, _NONE)],
    "time": Each(_NUMBER),
    "cost": dict,
}
SWEEP: Shape = {
    "method": str,
    "stream": str,
    "on": str,
    "metric": str,
    "over": [str],
    "lanes": [{"setting": dict, "seed": int}],
    "hashes": [str],
    "sweep_hash": str,
}
SWEEP_RESULTS: Shape = {
    "settings": [
        {"setting": dict, "mean": _NUMBER, "std": _NUMBER, "ci95": (list, _NONE),
         "values": [_NUMBER], "diverged": [(int, _NONE)]}
    ],
    "lanes": int,
    "seeds": [int],
}  # fmt: skip


def strange(value: Any, shape: Shape, name: str = "it") -> str | None:
    """What is not as it should be in a value, such as ``seeds[0] is a text, not a whole number``.

    None where all is.
    """
    if isinstance(shape, (type, tuple)) and not isinstance(shape, Each):
        kinds = shape if isinstance(shape, tuple) else (shape,)
        fits = object in kinds or type(value) in kinds or (float in kinds and type(value) is int)
        wanted = [kind for kind in kinds if not (kind is int and float in kinds)]
        return None if fits else _wrong(name, value, *wanted)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _wrong(name, value, list)
        parts = ((entry, shape[0], f"{name}[{i}]") for i, entry in enumerate(value))
        return next(filter(None, (strange(*part) for part in parts)), None)
    if not isinstance(value, Mapping):
        return _wrong(name, value, dict)
    known = dict.fromkeys(value, shape.shape) if isinstance(shape, Each) else shape
    inside = "" if name == "it" else f"{name}."
    for key, own in known.items():
        if isinstance(own, Maybe):
            if value.get(key) is None:
                continue
            own = own.shape
        if key not in value:
            return f"{inside}{key} is missing"
        result = strange(value[key], own, f"{inside}{key}")
        if result:
            return result
    return None


def _wrong(name: str, value: Any, *wanted: type) -> str:
    words = " or ".join(_WORDS[kind] for kind in wanted)
    return f"{name} is {_WORDS.get(type(value), 'something else')}, but it must be {words}"
