"""Flax Linen modules as ``Model``s."""

from __future__ import annotations

from typing import Any

from cljax.types import Array, Model, Output, PyTree, Variables

__all__ = ["from_linen"]


def from_linen(module: Any) -> Model:
    """A Linen module whose ``__call__(x, train)`` returns ``(logits, features)``.

    Collections other than ``params`` (BatchNorm statistics) become ``model_state`` and are
    updated when ``train`` is True.
    """

    def init(key: Array, x: PyTree) -> Variables:
        collections = dict(module.init(key, x, False))
        return Variables(collections.pop("params"), collections)

    def apply(variables: Variables, x: PyTree, train: bool) -> tuple[Output, PyTree]:
        collections = {"params": variables.params, **variables.model_state}
        if train and variables.model_state:
            mutable = list(variables.model_state)
            (logits, features), state = module.apply(collections, x, train, mutable=mutable)
            return Output(logits, features), state
        logits, features = module.apply(collections, x, train)
        return Output(logits, features), variables.model_state

    return Model(init, apply)
