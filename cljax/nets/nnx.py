"""Flax NNX modules as ``Model``s.

An NNX module is an object that holds its arrays; here it is taken apart, once into what never
changes (its graph) and once a call into arrays, so that ``init`` and ``apply`` are pure functions
of those. Parameters and other arrays are nested dicts by attribute, as Linen's are by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from cljax.errors import UserError, check_known
from cljax.nets.adapted import check_maker, check_variables, output_of
from cljax.nets.heads import outputs_last, rows_of
from cljax.types import Array, Model, Output, PyTree, Variables

__all__ = ["from_nnx", "to_nnx"]


def from_nnx(make: Callable[[Any], Any], *, head: str | None = None) -> Model:
    """An NNX module, made by ``make(rngs)``, whose ``__call__(x)`` returns ``(logits, features)``.

    ``nnx.Param`` s are the parameters; all other arrays, such as the statistics of
    ``nnx.BatchNorm``, are ``model_state``, which changes in training mode only. The module is
    switched by its own ``train()`` and ``eval()``. There is no ``tape``, and no ``grouped``: with
    ``nnx.BatchNorm`` some methods refuse the network, others repeat valid rows in the place of
    padding (``cljax.nets.masked``), which so weigh more in a batch's statistics.

    Args:
      make: from ``nnx.Rngs`` to the module; it must be free of side effects.
      head: attribute of the output layer, an ``nnx.Linear``, for the model's ``head`` and ``rows``;
        None: methods that ask for either refuse the network.

    Example:
      ``net = lambda num_outputs: from_nnx(lambda rngs: MyNet(num_outputs, rngs), head="out")``

    Raises:
      UserError: if the module draws random numbers when it is called (dropout), for which a
        ``Model`` has no key, or (in ``init``) for a head that it does not have.
    """
    from flax import nnx

    check_maker("from_nnx", make, (nnx.Module,), "lambda rngs: MyNet(num_outputs, rngs)")
    shapes = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph, random, _ = nnx.split(shapes, nnx.RngState, ...)
    if jax.tree.leaves(random):
        raise UserError(
            "The NNX module holds random number streams, as dropout does, but a Model is called "
            "without a key; leave such layers out."
        )
    graph, _ = nnx.split(shapes)

    def parts(module: Any) -> Variables:
        _, params, rest = nnx.split(module, nnx.Param, ...)
        return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(rest))

    def init(key: Array, x: PyTree) -> Variables:
        variables = parts(make(nnx.Rngs(key)))
        if head is not None:
            check_known("head", head, variables.params)
        return variables

    def apply(variables: Variables, x: PyTree, train: bool) -> tuple[Output, PyTree]:
        module = nnx.merge(graph, nnx.State(variables.params), nnx.State(variables.model_state))
        module.train() if train else module.eval()
        output = output_of(module(x), "NNX")
        after = parts(module).model_state if train else variables.model_state
        return output, after

    return Model(
        init,
        apply,
        head=None if head is None else outputs_last(head),
        rows=None if head is None else rows_of(head, "kernel"),
    )


def to_nnx(make: Callable[[Any], Any], variables: Mapping[str, Any]) -> Any:
    """The NNX module that ``make(rngs)`` makes, with the variables of a run.

    Args:
      make: as ``from_nnx`` takes it.
      variables: in Flax's form, of ``run.variables()`` or ``cljax.load_weights``.

    Raises:
      UserError: for variables of another module, or one that draws random numbers.
    """
    from flax import nnx

    check_variables("NNX", from_nnx(make), variables)
    graph, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    others = {name: part for name, part in variables.items() if name != "params"}
    return nnx.merge(graph, nnx.State(variables["params"]), nnx.State(others))
