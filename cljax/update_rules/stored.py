"""Learned update rules on disk: written whole by orbax and checked, as checkpoints are.

DIR/rule/seed7/00000001/      the rule of seed 7 (a checkpoint's three files)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from cljax.errors import UserError
from cljax.storage import checkpoint
from cljax.storage.checkpoint import Snapshot, host_copy
from cljax.types import PyTree
from cljax.update_rules.gate import Gate, check_fits
from cljax.update_rules.shipped import SHIPPED, load

__all__ = ["load_rule", "save_rule"]

_IDENTITY = {"config_hash": "rule"}


def save_rule(folder: str | Path, theta: PyTree, *, seed: int = 0) -> Path:
    """Writes a rule into ``folder``/rule, beside those of other seeds.

    Raises:
      UserError: if it cannot be written.
    """
    leaves = jax.tree_util.tree_leaves_with_path(theta)
    arrays = {_name(path): host_copy(leaf) for path, leaf in leaves}
    place = Path(folder).expanduser() / "rule" / f"seed{seed}"
    # One is there already where a run was killed before its results were written.
    number = checkpoint.next_number(place)
    return checkpoint.save(place, Snapshot(arrays, {}), _IDENTITY, number=number, keep=1)


def load_rule(rule: str | Path | PyTree | None, seed: int, gate: Gate) -> PyTree | None:
    """Theta of a folder, of a rule that cljax ships, or ``rule`` itself, for layers of ``gate``.

    Raises:
      UserError: if there is none, if it is damaged, or if it is of another network.
    """
    if rule is None:
        return None
    if isinstance(rule, str) and rule in SHIPPED and not Path(rule).exists():
        return load_rule(load(rule), seed, gate)
    if not isinstance(rule, str | Path):
        check_fits(rule, gate.groups)
        return jax.tree.map(jnp.asarray, tuple(rule))
    place = Path(rule).expanduser() / "rule" / f"seed{seed}"
    result, skipped = checkpoint.newest(place, _IDENTITY)
    if result is None:
        why = skipped[0] if skipped else f"there is no {place}"
        raise UserError(
            f"No learned update rule for seed {seed} in {rule}: {why.rstrip('.')}; give the folder "
            "of a finished run of teacher."
        )
    like = jax.eval_shape(gate.init, jax.random.key(0))
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    leaves = [result.arrays.get(_name(path)) for path, _ in paths]
    shapes = [leaf is not None and leaf.shape == own.shape for leaf, (_, own) in
              zip(leaves, paths, strict=True)]  # fmt: skip
    if not all(shapes) or len(result.arrays) != len(paths):
        raise UserError(
            f"The learned update rule in {rule} was made for another network or other sizes of "
            "its LSTMs; give those that it was made with."
        )
    made = [jnp.asarray(leaf, own.dtype) for leaf, (_, own) in zip(leaves, paths, strict=True)]
    return jax.tree.unflatten(structure, made)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
