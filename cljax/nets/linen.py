"""Flax Linen modules as ``Model``s."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import UserError, in_words
from cljax.nets.adapted import output_of
from cljax.nets.heads import outputs_last, rows_of
from cljax.types import Array, Model, Output, PyTree, Variables

__all__ = ["from_linen"]


def from_linen(module: Any, *, head: str | None = None, floats: bool = False) -> Model:
    """A Linen module whose ``__call__(x, train)`` returns ``(logits, features)``.

    Collections other than ``params`` (BatchNorm statistics) become ``model_state`` and are
    updated when ``train`` is True. A module whose ``__call__(x, train, member)`` hands ``member``
    on to every ``cljax.nets.batchnorm.BatchNorm`` has ``grouped``; rows of no group reach it as
    zeros, so that NaN in padding stays there. The ``tape`` is that of ``cljax.nets.tape``.

    Args:
      head: name of the output layer, whose parameters all have the outputs as their last axis, but
        for scalars, which all outputs share; its leaf ``kernel`` [D, C] makes the model's ``rows``.
        None for networks that do not say, whose tape then holds it too.
      floats: refuse examples that are no floats, such as images as they are stored.

    Raises:
      UserError: for what is no Linen module or, when it is called, does not return the pair.
    """

    import flax.linen as nn

    from cljax.nets.tape import taped

    if not isinstance(module, nn.Module):
        raise UserError(
            f"from_linen is given {in_words(module)}, but it takes a Linen module, such as "
            "MyNet(num_outputs)."
        )

    def init(key: Array, x: PyTree) -> Variables:
        _check_floats(x, floats)
        collections = dict(module.init(key, x, False))
        return Variables(collections.pop("params"), collections)

    def call(variables: Variables, x: PyTree, train: bool, **options: Any) -> tuple[Output, PyTree]:
        _check_floats(x, floats)
        collections = {"params": variables.params, **variables.model_state}
        if train and variables.model_state:
            mutable = list(variables.model_state)
            returned, state = module.apply(collections, x, train, mutable=mutable, **options)
            return output_of(returned, "Linen"), state
        returned = module.apply(collections, x, train, **options)
        return output_of(returned, "Linen"), variables.model_state

    def apply(variables: Variables, x: PyTree, train: bool) -> tuple[Output, PyTree]:
        return call(variables, x, train)

    def grouped(variables: Variables, x: PyTree, member: Array) -> tuple[Output, PyTree]:
        return call(variables, tree.blank(x, member.any(axis=1)), True, member=member)

    takes_groups = "member" in inspect.signature(type(module).__call__).parameters
    return Model(
        init,
        apply,
        grouped=grouped if takes_groups else None,
        head=None if head is None else outputs_last(head),
        rows=None if head is None else rows_of(head, "kernel"),
        tape=taped(module, head),
    )


def _check_floats(x: PyTree, floats: bool) -> None:
    for leaf in jax.tree.leaves(x):
        if floats and not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UserError(
                f"The network is given {leaf.dtype} examples, but it takes floats, as the stream "
                "shows them: of images, x.astype('float32') / 255, or stream.spec(1).show(x, task)."
            )
