"""States to go on from: those of learned tasks, put into the states of a longer stream.

What a method keeps for each task or each output has room for more of them; what was there stays in
its place, and what is new is as the method begins with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import keys
from cljax.engine.compilation import put
from cljax.engine.lanes import Lane
from cljax.errors import UserError
from cljax.types import Learner, PyTree

__all__ = ["Room", "Start", "grown", "started"]


class Start(NamedTuple):
    """Where runs begin that go on from others."""

    task: int  # the first one to learn; those before it are learned
    states: tuple[PyTree, ...]  # of each run, for the whole stream
    # evaluation -> [runs, task + 1, task], what is known of the rows until then
    matrices: Mapping[str, np.ndarray] = {}


class Room(NamedTuple):
    """Tasks and outputs of the stream that was learned, and of the one to go on with."""

    tasks: tuple[int, int]
    outputs: tuple[int, int]


def grown(old: PyTree, learner: Learner, seed: int, room: Room) -> PyTree:
    """A state of learned tasks as one of a stream with more of them.

    Axes that are as long as there are tasks, tasks after the first, or outputs, grow. So do slots
    of exemplars, whose classes keep their places.

    Args:
      learner: of the longer stream, whose new state fills the rest.

    Raises:
      UserError: for a state of another method or network, or one whose layout depends on the
        number of tasks or outputs in another way.
    """
    key = keys.purpose(seed, "init")
    like = jax.eval_shape(learner.init, key)
    shapes = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    if jax.tree.structure(old) != jax.tree.structure(like):
        raise UserError(
            "The state to go on from is of another method or network, or of other options of it; "
            "go on with those that it was made with."
        )
    if shapes(old) == shapes(like):
        return old
    fresh = jax.jit(learner.init)(key)
    return jax.tree_util.tree_map_with_path(
        lambda path, a, b: _within(jax.tree_util.keystr(path, simple=True, separator="/"), a, b,
                                   room), old, fresh,
    )  # fmt: skip


def _within(name: str, old: Any, fresh: Any, room: Room) -> Any:
    """A leaf inside a larger one."""
    if old.shape == fresh.shape and old.dtype == fresh.dtype:
        return old
    slots = "exemplars" in name.split("/")
    changes = [(a, b) for a, b in zip(old.shape, fresh.shape, strict=False) if a != b]
    first = slots and old.ndim > 0 and old.shape[0] < fresh.shape[0]
    later = room.tasks[0] - 1, room.tasks[1] - 1
    known = all(change in (*room, later) or (first and change == (old.shape[0], fresh.shape[0]))
                for change in changes)  # fmt: skip
    if old.ndim != fresh.ndim or old.dtype != fresh.dtype or not known:
        raise UserError(
            f"The state to go on from does not fit: {name} is {old.dtype}{list(old.shape)}, but "
            f"here it is {fresh.dtype}{list(fresh.shape)}; go on with the same method and network, "
            "on a stream with as many classes, unless its head grows with them."
        )
    return jnp.asarray(fresh).at[tuple(slice(0, size) for size in old.shape)].set(old)


def started(lanes: Sequence[Lane], start: Start | None) -> list[Lane]:
    """Lanes with the states that their runs begin with."""
    if start is None:
        return list(lanes)
    return [lane._replace(start=_of_lane(lane, start)) for lane in lanes]


def _of_lane(lane: Lane, start: Start) -> PyTree:
    own = [start.states[member] for member in lane.members]
    if lane.batching is None:
        return own[0]
    return jax.tree.map(lambda *leaves: put(jnp.stack(leaves), lane.batching), *own)
