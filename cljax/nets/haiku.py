"""Haiku functions as ``Model``s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cljax.errors import check_known
from cljax.nets.adapted import check_maker, output_of
from cljax.nets.heads import outputs_last, rows_of
from cljax.nets.optional import optional
from cljax.types import Array, Model, Output, PyTree, Variables

__all__ = ["from_haiku"]


def from_haiku(
    forward: Callable[[Any, bool], tuple[Any, Any]], *, head: str | None = None
) -> Model:
    """A function of Haiku modules, ``forward(x, train) -> (logits, features)``, not transformed.

    Haiku's state, such as the averages of ``hk.BatchNorm``, is ``model_state``, which changes in
    training mode only. There is no ``tape``, and no ``grouped``: with ``hk.BatchNorm`` some methods
    refuse the network, others repeat valid rows in the place of padding (``cljax.nets.masked``).
    Functions that draw random numbers, as dropout does, get no key and fail.

    Args:
      forward: makes its modules inside, as ``hk.transform`` asks.
      head: name of the output layer's module, an ``hk.Linear``, as Haiku writes it ("mlp/~/out"
        for one inside "mlp"), for the model's ``head`` and ``rows``.

    Example:
      ``net = lambda num_outputs: from_haiku(forward_of(num_outputs), head="head")``

    Raises:
      UserError: without the package dm-haiku, or (in ``init``) for a head that is not there.
    """
    hk = optional("haiku", "dm-haiku", "from_haiku")
    check_maker("from_haiku", forward, (hk.Module,), "lambda x, train: MyNet(num_outputs)(x)")
    transformed = hk.transform_with_state(forward)

    def init(key: Array, x: PyTree) -> Variables:
        params, state = transformed.init(key, x, True)
        if head is not None:
            check_known("head", head, params)
        return Variables(dict(params), dict(state))

    def apply(variables: Variables, x: PyTree, train: bool) -> tuple[Output, PyTree]:
        made = transformed.apply(variables.params, variables.model_state, None, x, train)
        returned, state = made
        return output_of(returned, "Haiku"), dict(state) if train else variables.model_state

    return Model(
        init,
        apply,
        head=None if head is None else outputs_last(head),
        rows=None if head is None else rows_of(head, "w"),
    )
