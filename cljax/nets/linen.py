"""Flax Linen modules as ``Model``s."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp

from cljax.types import Array, Lens, Model, Output, Params, PyTree, Variables

__all__ = ["from_linen"]


def from_linen(module: Any, *, head: str | None = None) -> Model:
    """A Linen module whose ``__call__(x, train)`` returns ``(logits, features)``.

    Collections other than ``params`` (BatchNorm statistics) become ``model_state`` and are
    updated when ``train`` is True. A module whose ``__call__(x, train, member)`` hands ``member``
    on to every ``cljax.nets.batchnorm.BatchNorm`` has ``grouped``; rows of no group reach it as
    zeros, so that NaN in padding stays there. The ``tape`` is that of ``cljax.nets.tape``.

    Args:
      head: name of the output layer, whose parameters all have the outputs as their last axis, but
        for scalars, which all outputs share; its leaf ``kernel`` [D, C] makes the model's ``rows``.
        None for networks that do not say, whose tape then holds it too.
    """

    from cljax.nets.tape import taped

    def init(key: Array, x: PyTree) -> Variables:
        collections = dict(module.init(key, x, False))
        return Variables(collections.pop("params"), collections)

    def call(variables: Variables, x: PyTree, train: bool, **options: Any) -> tuple[Output, PyTree]:
        collections = {"params": variables.params, **variables.model_state}
        if train and variables.model_state:
            mutable = list(variables.model_state)
            (logits, features), state = module.apply(
                collections, x, train, mutable=mutable, **options
            )
            return Output(logits, features), state
        logits, features = module.apply(collections, x, train, **options)
        return Output(logits, features), variables.model_state

    def apply(variables: Variables, x: PyTree, train: bool) -> tuple[Output, PyTree]:
        return call(variables, x, train)

    def grouped(variables: Variables, x: PyTree, member: Array) -> tuple[Output, PyTree]:
        real = member.any(axis=1)
        clean = lambda leaf: jnp.where(real.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, 0)
        return call(variables, jax.tree.map(clean, x), True, member=member)

    def of_head(params: Params, outputs: Array) -> PyTree:
        assert head is not None
        everything = jax.tree.map(lambda _: jnp.ones((), bool), params)
        last = lambda leaf: outputs.reshape((1,) * (leaf.ndim - 1) + outputs.shape)
        own = lambda leaf: last(leaf) if leaf.ndim else jnp.ones((), bool)
        return {**everything, head: jax.tree.map(own, params[head])}

    rows = Lens(
        get=lambda params: params[head]["kernel"],
        set=lambda params, kernel: {**params, head: {**params[head], "kernel": kernel}},
    )
    takes_groups = "member" in inspect.signature(type(module).__call__).parameters
    return Model(
        init,
        apply,
        grouped=grouped if takes_groups else None,
        head=of_head if head is not None else None,
        rows=rows if head is not None else None,
        tape=taped(module, head),
    )
