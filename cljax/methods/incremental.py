"""What class-incremental methods share: who owns which outputs, what learns, losses over them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cljax import tree
from cljax.errors import UserError
from cljax.losses import binary_cross_entropy, cross_entropy
from cljax.nets.masked import masked
from cljax.types import Array, Batch, Model, Output, Params, PyTree, Spec, Variables

__all__ = [
    "ClassLoss", "Forward", "Outputs", "blanked", "check_single_head", "classification",
    "outputs_at", "past_outputs", "seen_outputs", "trainable", "training",
]  # fmt: skip

ClassLoss: TypeAlias = Literal["softmax", "sigmoid"]
Forward: TypeAlias = Callable[[Variables, PyTree, Array], tuple[Output, PyTree]]


class Outputs(NamedTuple):
    """Whose outputs are whose while a task is learned; all [C] bool."""

    past: Array  # of tasks before it
    own: Array  # of the task
    seen: Array  # of both


def training(model: Model) -> Forward:
    """The training forward pass in which masked rows reach no statistics."""
    return lambda variables, x, mask: masked(model, variables, x, mask)


def trainable(model: Model, params: Params, outputs: Array, task: Array) -> PyTree | None:
    """Which parameters may learn, as ``SessionOptions.descend`` takes it, or None for all.

    Args:
      outputs: [C] bool, whose rows of the head may, where the network says which those are.
    """
    masks = [] if model.head is None else [model.head(params, outputs)]
    masks += [] if model.learns is None else [model.learns(params, task)]
    if not masks:
        return None
    both = lambda a, b: jnp.asarray(a) & jnp.asarray(b)
    return functools.reduce(lambda a, b: jax.tree.map(both, a, b), masks)


def blanked(batch: Batch) -> Batch:
    """The batch with zeros in its masked rows, so that whatever they hold reaches no gradient."""
    return batch._replace(x=tree.blank(batch.x, batch.mask))


def seen_outputs(class_mask: np.ndarray, task: Array) -> Array:
    """[C] bool, the outputs of tasks up to ``task``."""
    return jnp.any(class_mask & (jnp.arange(len(class_mask)) <= task)[:, None], axis=0)


def past_outputs(class_mask: np.ndarray, task: Array) -> Array:
    """[C] bool, the outputs of tasks before ``task``."""
    return seen_outputs(class_mask, task - 1)


def outputs_at(class_mask: np.ndarray, task: Array) -> Outputs:
    """Whose outputs are whose while ``task`` [] is learned."""
    past, seen = past_outputs(class_mask, task), seen_outputs(class_mask, task)
    return Outputs(past, seen & ~past, seen)


def classification(loss: ClassLoss, logits: Array, y: Array, outputs: Array) -> Array:
    """Cross-entropy [B] over some outputs [C]; the sigmoid one is a mean over them."""
    if loss == "softmax":
        return cross_entropy(logits, y, outputs[None])
    targets = jax.nn.one_hot(y, logits.shape[1], dtype=logits.dtype)
    return binary_cross_entropy(logits, targets, outputs[None])


def check_single_head(name: str, spec: Spec) -> None:
    """Raises UserError unless tasks bring classes of their own to one head."""
    if spec.multi_head:
        raise UserError(
            f"{name} learns one head for all classes, but this stream has a head for each task; "
            "choose multi_head=False."
        )
    if np.any(spec.class_mask.sum(axis=0) > 1):
        raise UserError(
            f"{name} needs a stream in which each task brings classes of its own, such as "
            "split-mnist."
        )
