"""Equinox modules as ``Model``s.

An Equinox module is a pytree of arrays and of everything else (functions, sizes). Its floating
arrays are the parameters, a dict by path, such as "layers/0/weight"; what else it holds of arrays,
and Equinox's own ``State``, is ``model_state``; the rest never changes and stays in a closure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cljax.errors import UserError
from cljax.nets.adapted import check_maker, output_of
from cljax.nets.optional import optional
from cljax.types import Array, Lens, Model, Output, Params, PyTree, Variables

__all__ = ["from_equinox"]

_AXIS = "batch"  # of ``eqx.nn.BatchNorm(axis_name=...)``


def from_equinox(make: Callable[[Array], Any], *, head: str | None = None) -> Model:
    """An Equinox module, made by ``make(key)``, called on one example, as Equinox's are.

    Its ``__call__(x)`` returns ``(logits [C], features [D])``. One with an ``eqx.nn.State``
    (``eqx.nn.BatchNorm(size, axis_name="batch")``) is called as ``(x, state)`` and returns
    ``((logits, features), state)``; the state changes in training mode only. Modes are switched by
    ``eqx.nn.inference_mode``. There is no ``tape``, and no ``grouped``: with BatchNorm some methods
    refuse the network, others repeat valid rows in the place of padding (``cljax.nets.masked``).
    Layers that are called with a key, such as dropout, get none and fail.

    Args:
      make: from a key to the module.
      head: path of the output layer, an ``eqx.nn.Linear``, such as "out" or "layers/2", for the
        model's ``head`` and ``rows``.

    Example:
      ``net = lambda num_outputs: from_equinox(lambda key: MyNet(num_outputs, key), head="out")``

    Raises:
      UserError: without the package equinox, or for a head that the module does not have.
    """
    eqx = optional("equinox", "equinox", "from_equinox")
    check_maker("from_equinox", make, (eqx.Module,), "lambda key: MyNet(num_outputs, key)")
    made = eqx.nn.make_with_state(make)
    shapes, state_shapes = eqx.filter_eval_shape(made, jax.random.key(0))
    paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    is_array = [isinstance(leaf, jax.ShapeDtypeStruct) for _, leaf in paths]
    learned = [
        array and jnp.issubdtype(leaf.dtype, jnp.inexact)
        for array, (_, leaf) in zip(is_array, paths, strict=True)
    ]
    state_structure = jax.tree.structure(state_shapes)
    stateful = state_structure.num_leaves > 0
    if head is not None and f"{head}/weight" not in names:
        raise UserError(
            f"The head '{head}' has no weight in the Equinox module; its arrays are "
            f"{', '.join(n for n, own in zip(names, learned, strict=True) if own)}."
        )

    def model_state(buffers: Params, state: Any) -> PyTree:
        kept = {str(i): jnp.asarray(a, a.dtype) for i, a in enumerate(jax.tree.leaves(state))}
        return {**({"buffers": buffers} if buffers else {}), **({"state": kept} if kept else {})}

    def init(key: Array, x: PyTree) -> Variables:
        module, state = made(key)
        leaves = dict(zip(names, jax.tree.leaves(module), strict=True))
        pick = lambda chosen: {n: leaves[n] for n, own in zip(names, chosen, strict=True) if own}
        buffers = [array and not own for array, own in zip(is_array, learned, strict=True)]
        return Variables(pick(learned), model_state(pick(buffers), state))

    def apply(variables: Variables, x: PyTree, train: bool) -> tuple[Output, PyTree]:
        held = variables.model_state
        buffers = held.get("buffers", {})
        arrays = {**variables.params, **buffers}
        leaves = [arrays.get(n, leaf) for n, (_, leaf) in zip(names, paths, strict=True)]
        module = eqx.nn.inference_mode(jax.tree.unflatten(structure, leaves), not train)
        if not stateful:
            return output_of(jax.vmap(module, axis_name=_AXIS)(x), "Equinox"), held
        kept = held["state"]
        state = jax.tree.unflatten(state_structure, [kept[str(i)] for i in range(len(kept))])
        called = jax.vmap(module, in_axes=(0, None), out_axes=(0, None), axis_name=_AXIS)
        returned, state = called(x, state)
        return output_of(returned, "Equinox"), model_state(buffers, state) if train else held

    return Model(init, apply) if head is None else _with_head(Model(init, apply), head)


def _with_head(model: Model, head: str) -> Model:
    """The model with ``head`` and ``rows`` of the output layer at a path."""

    def flags(params: Params, outputs: Array) -> PyTree:
        # Equinox's outputs are the first axis: weights are [C, D].
        first = lambda leaf: outputs.reshape(outputs.shape + (1,) * (leaf.ndim - 1))
        inside = lambda name: name.startswith(f"{head}/")
        return {n: first(a) if inside(n) else jnp.ones((), bool) for n, a in params.items()}

    rows = Lens(
        get=lambda params: params[f"{head}/weight"].T,
        set=lambda params, kernel: {**params, f"{head}/weight": kernel.T},
    )
    return model._replace(head=flags, rows=rows)
