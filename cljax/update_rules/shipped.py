"""Learned update rules that cljax ships as data, each with what made it.

    rule = cljax.update_rules.load("fashion-5-5")        # theta
    cljax.Teacher(rule=rule, **cljax.update_rules.provenance("fashion-5-5")["options"])

A rule is for networks with as many inputs, of the layers it was made with: ``provenance`` says
which, and how the rule did on networks that it had not seen. It is stored in half precision, in
which it was judged too.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jax.numpy as jnp
import numpy as np

from cljax.errors import UserError, check_known
from cljax.types import PyTree

__all__ = ["SHIPPED", "load", "provenance", "read"]

SHIPPED = ("fashion-5-5",)
_FOLDER = "shipped_rules"


def provenance(name: str) -> dict[str, Any]:
    """What a shipped rule is made of: command, data, seeds, options, versions and how it did.

    Raises:
      UserError: for an unknown name, with those that there are, or a damaged file.
    """
    check_known("learned update rule", name, SHIPPED)
    try:
        made = json.loads(_read(f"{name}.json"))
        _ = made["sha256"], made["options"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The file {name}.json of a learned update rule is damaged; install cljax anew."
        ) from error
    return made


def load(name: str) -> PyTree:
    """Theta of a shipped rule, in the default precision: what ``cljax.Teacher(rule=...)`` takes.

    Raises:
      UserError: for an unknown name, with those that there are, or a damaged file.
    """
    expected, content = provenance(name)["sha256"], _read(f"{name}.npz")
    if hashlib.sha256(content).hexdigest() != expected:
        raise UserError(
            f"The file of the learned update rule {name} is damaged: its SHA-256 is not {expected};"
            " install cljax anew."
        )
    return read(content)


def read(content: bytes) -> PyTree:
    """Theta of the bytes of a file of arrays by path."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return _nested({key: arrays[key] for key in arrays.files})


def _read(name: str) -> bytes:
    try:
        return (resources.files("cljax.update_rules") / _FOLDER / name).read_bytes()
    except OSError as error:
        raise UserError(
            f"The file {name} of a learned update rule is missing; install cljax anew."
        ) from error


def _nested(arrays: Mapping[str, np.ndarray]) -> PyTree:
    """Arrays by path, ``group/part/leaf``, as a tuple over groups of nested dicts."""
    groups: dict[int, dict[str, Any]] = {}
    for path, array in arrays.items():
        first, *parts, leaf = path.split("/")
        holder = groups.setdefault(int(first), {})
        for part in parts:
            holder = holder.setdefault(part, {})
        holder[leaf] = jnp.asarray(array, jnp.result_type(float))
    return tuple(groups[number] for number in sorted(groups))
