"""The final state of every seed: kept in the folder of a run, and read back into its method.

    DIR/state/seed7/00000001/     the state of seed 7 (a checkpoint's three files)

The files hold arrays and their names, and nothing that is called or imported. What they are put
into is the state of the method that the config names, made anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cljax import keys
from cljax.errors import UserError
from cljax.evaluation.again import Trained
from cljax.runner.config import another_run, evaluation_of
from cljax.runner.prepare import Prepared, learner_of
from cljax.storage import checkpoint
from cljax.storage.checkpoint import Snapshot, host_copy
from cljax.types import PyTree

__all__ = ["keep_states", "stored_states", "trained_of"]

NAME = "state"


def keep_states(
    folder: Path, config: Mapping[str, Any], seeds: Sequence[int], states: Sequence[PyTree]
) -> None:
    """Writes the final state of each seed into a run's folder.

    Raises:
      UserError: if they cannot be written.
    """
    for seed, state in zip(seeds, states, strict=True):
        leaves = jax.tree_util.tree_leaves_with_path(state)
        arrays = {_name(path): host_copy(leaf) for path, leaf in leaves}
        place = _place(folder, seed)
        number = checkpoint.next_number(place)  # a killed run may have left one
        checkpoint.save(place, Snapshot(arrays, {}), _identity(config), number=number, keep=1)


def stored_states(folder: Path, config: Mapping[str, Any], made: Prepared) -> tuple[PyTree, ...]:
    """The final states of a folder's run, one a seed.

    Args:
      config: of the folder.
      made: what the run was made of, as it is made now.

    Raises:
      UserError: if none are stored, if one is damaged, or if they are of another run.
    """
    if made.config["config_hash"] != config["config_hash"]:
        raise UserError(another_run(folder, config, made.config))
    if not (folder / NAME).exists():
        raise UserError(
            f"The final states are not stored in {folder}: it was made with keep_state=False "
            "(--no-state), as a lane of a sweep, or by an earlier version; run it again in another "
            "folder."
        )
    learner = learner_of(made, made.stream)
    like = jax.eval_shape(learner.init, jax.eval_shape(lambda: keys.purpose(0, "init")))
    return tuple(_stored(folder, config, seed, like) for seed in config["seeds"])


def _stored(folder: Path, config: Mapping[str, Any], seed: int, like: PyTree) -> PyTree:
    place = _place(folder, seed)
    result, skipped = checkpoint.newest(place, _identity(config))
    if result is None:
        why = skipped[0] if skipped else f"there is no {place}"
        raise UserError(
            f"The final state of seed {seed} in {folder} cannot be read: {why.rstrip('.')}; "
            "restore the folder from a copy, or run again in another one."
        )
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [_name(path) for path, _ in paths]
    try:
        if set(names) != result.arrays.keys():
            strange = sorted(set(names) ^ result.arrays.keys())
            raise ValueError(f"{strange[0]} is in one of them only")
        leaves = [
            checkpoint.revived(result.arrays[name], leaf)
            for name, (_, leaf) in zip(names, paths, strict=True)
        ]
    except ValueError as error:
        raise UserError(
            f"The final state of seed {seed} in {folder} does not fit the method that its config "
            f"names ({error}); it is damaged or of another version: run again in another folder."
        ) from error
    return jax.tree.unflatten(structure, leaves)


def trained_of(
    config: Mapping[str, Any],
    results: Mapping[str, Any],
    made: Prepared,
    states: Sequence[PyTree],
    folder: Path | None,
) -> Trained:
    """Final states with what made them; without those of seeds that diverged.

    Raises:
      UserError: if all did.
    """
    whole = [i for i, step in enumerate(results["diverged"]) if step is None]
    if not whole:
        raise UserError("All seeds of this run diverged, so there is no final state.")
    seeds, chosen = (tuple(part[i] for i in whole) for part in (config["seeds"], states))
    evaluations = [evaluation_of(entry) for entry in config["evaluations"]]
    matrices = [
        np.array(results["evaluations"][e.name]["accuracy_matrix"], float) for e in evaluations
    ]
    return Trained(
        lambda stream: learner_of(made, stream),
        made.stream,
        seeds,
        chosen,
        made.method,
        tuple((e, own[whole]) for e, own in zip(evaluations, matrices, strict=True)),
        folder if config.get("begun_as") else None,
    )


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"config_hash": config["config_hash"]}


def _place(folder: Path, seed: int) -> Path:
    return folder / NAME / f"seed{seed}"


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
