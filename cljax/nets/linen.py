"""Flax Linen modules as ``Model``s."""

from __future__ import annotations

import inspect
from typing import Any

from cljax import tree
from cljax.nets.heads import outputs_last, rows_of
from cljax.types import Array, Model, Output, PyTree, Variables

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
