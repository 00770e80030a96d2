"""Episodes of practice on what a stream holds out: classes drawn anew, as new tasks would be.

    classes [P, n]:  distinct rows of ``Spec.held``, n for each of the P new tasks
    label:           the i-th class of part p stands for the i-th output of new task p

so the network meets them with the outputs, and the head, that a new task of the stream will have.

Symbols: P new tasks, n their classes, H held classes, N held examples of each.

Source: Xiong, Ren, Zeng, Urtasun, "Learning to Remember from a Multi-Task Teacher", 2019
(arXiv:1910.04650), section 4: five of the held classes are drawn for each episode.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import UserError
from cljax.types import Array, Spec

__all__ = ["check_held", "check_stream", "drawn_classes", "held_rows", "labelled", "new_classes"]


def check_held(name: str, spec: Spec, *, instead: str = "") -> None:
    """Raises UserError unless the stream holds examples out.

    Args:
      instead: what else the user could do, for the message.
    """
    if spec.held is None:
        raise UserError(
            f"{name} learns on examples that the stream holds out, but this one holds out none; "
            f"choose one such as fashion-5-5{instead}."
        )


def check_stream(name: str, spec: Spec, *, instead: str = "") -> None:
    """Raises UserError unless episodes can be drawn; ``instead`` as in ``check_held``."""
    check_held(name, spec, instead=instead)
    sizes = spec.class_mask.sum(axis=1)[1:]
    if not spec.multi_head or not len(sizes) or len(set(sizes.tolist())) > 1:
        raise UserError(
            f"{name} needs a source task and then new ones of equal size, each with outputs of its "
            f"own (multi_head), but the tasks have {spec.class_mask.sum(axis=1).tolist()} classes."
        )
    held = len(held_rows(spec))
    if held < sizes.sum():
        raise UserError(
            f"{name} draws {sizes.sum()} classes for each episode, but the stream holds out only "
            f"{held}."
        )


def held_rows(spec: Spec) -> np.ndarray:
    """[H, N] int32, rows of the training examples that are held out, a row a class."""
    assert spec.held is not None
    return np.asarray(spec.held)


def new_classes(spec: Spec) -> int:
    """n, the classes of a new task."""
    return int(spec.class_mask[1].sum())


def drawn_classes(spec: Spec, key: Array) -> Array:
    """[P, n] int32, distinct rows of ``held_rows``."""
    parts, each = spec.num_tasks - 1, new_classes(spec)
    drawn = jax.random.permutation(key, len(held_rows(spec)))
    return drawn[: parts * each].reshape(parts, each).astype(jnp.int32)


def labelled(spec: Spec, y: Array, classes: Array) -> tuple[Array, Array]:
    """Labels as an episode numbers its classes; those of other classes stay.

    Args:
      y: [..., m] int32, labels of the stream.
      classes: [..., P, n] int32, the episode's; leading axes broadcast with those of ``y``.

    Returns:
      y [..., m], and the outputs [..., m, C] bool that each example competes over.
    """
    assert spec.train_y is not None
    of_held = jnp.asarray(spec.train_y[held_rows(spec)[:, 0]], y.dtype)
    labels = jax.lax.collapse(of_held[classes], classes.ndim - 2)[..., None, :]  # [..., 1, P n]
    labels = labels.reshape((1,) * (y.ndim + 1 - labels.ndim) + labels.shape)
    task, column = (jnp.asarray(a, y.dtype) for a in np.nonzero(spec.class_mask[1:]))
    same = y[..., None] == labels
    place, new = jnp.argmax(same, axis=-1), jnp.any(same, axis=-1)
    outputs = jnp.asarray(spec.class_mask)[jnp.where(new, task[place] + 1, 0)]
    return jnp.where(new, column[place], y), outputs
