"""Networks whose units are multiplied by gates, for layers that follow one another.

    y_l  = a_l * layer_l(y_{l-1})       for each layer below the head, at its own output
    with GroupNorm:   y_l = a_l * affine_l(normalise(layer_l(y_{l-1})))

A gate a >= 0 before a ReLU is the same as after it, and mean-pooling keeps channels, so a gate of 0
takes a unit out of the network. Under GroupNorm a unit that is taken out, or learns, still moves
the mean and variance of its group of channels.

Symbols: a_l ``gates``, [B, C_l] or [1, C_l].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from cljax.errors import UserError
from cljax.nets.heads import of_head
from cljax.types import Array, Model, Output, Params, PyTree, Variables

__all__ = ["Units", "chained", "gated"]


class Units(NamedTuple):
    """The units of a layer; layers are named as in the network's tape, "ConvGN_0/Conv_0"."""

    gate: str  # the layer at whose output they are gated
    layers: tuple[str, ...]  # the layers whose parameters lead to them, the kernel's first
    width: int  # C


def gated(
    model: Model, gates: Mapping[str, Array], variables: Variables, x: PyTree, train: bool
) -> Output:
    """``model.apply`` with the output of each layer of ``gates`` multiplied by its gate.

    Args:
      gates: by the ``gate`` of ``Units``, [B, C] or [1, C].
    """

    def multiplied(name: str, out: Array) -> Array:
        if name not in gates:
            return out
        own = gates[name]
        return out * own.reshape(own.shape[0], *(1,) * (out.ndim - 2), own.shape[-1])

    return _intercepted(multiplied, lambda: model.apply(variables, x, train)[0])


def chained(name: str, model: Model, example: PyTree, num_outputs: int) -> tuple[Units, ...]:
    """The units of a network, layer after layer from the input to the head.

    Args:
      name: of the method, for the message.
      example: ``jax.ShapeDtypeStruct`` of one example as the network sees it.

    Raises:
      UserError: unless each layer below the head feeds the next one and nothing else, no
        parameter is left out, and examples do not see each other.
    """

    def refuse(why: str) -> NoReturn:
        raise UserError(
            f"{name} masks the units of layers that follow one another, but {why}; choose a "
            "network such as mlp:32,8 or conv:8,16,8:group."
        )

    if model.tape is None or model.head is None:
        refuse("this network does not say which it has (see tape and head in cljax.types.Model)")
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), example)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    if jax.tree.leaves(variables.model_state):
        refuse("this network keeps statistics of its batches, as BatchNorm does")
    tape = jax.eval_shape(model.tape, variables, x)[1]
    order: list[str] = []

    def noted(name: str, out: Array) -> Array:
        order.extend([name] * (name in tape))
        return out

    output = lambda variables, x: model.apply(variables, x, False)[0]
    _intercepted(noted, lambda: jax.eval_shape(output, variables, x))
    if not order or sorted(order) != sorted(tape):
        refuse("this network has none that are Flax modules, each used once")
    units = _units(variables.params, order, refuse)
    covered = {layer for own in units for layer in own.layers}
    ours = jax.tree.leaves(of_head(model, variables.params, num_outputs))
    for (path, _), head in zip(
        jax.tree_util.tree_leaves_with_path(variables.params), ours, strict=True
    ):
        leaf = jax.tree_util.keystr(path, simple=True, separator="/")
        if not head and leaf.rpartition("/")[0] not in covered:
            refuse(f"this network's {leaf} belongs to none of them")
    for own in units:
        if _passed_by(output, variables, x, own.gate):
            refuse(f"in this network examples also go past {own.gate}, as in residual ones")
    return units


def _units(
    params: Params, order: list[str], refuse: Callable[[str], NoReturn]
) -> tuple[Units, ...]:
    """Each kernel with the scales and shifts that follow it."""
    units: list[Units] = []
    for layer in order:
        leaves = params
        for part in layer.split("/"):
            leaves = leaves[part]
        last = units[-1] if units else None
        if "kernel" in leaves:
            inputs, width = leaves["kernel"].shape[-2:]
            if last is not None and inputs != last.width:
                refuse(f"{layer} takes {inputs} inputs and {last.gate} has {last.width} units")
            units.append(Units(layer, (layer,), width))
        elif last is not None and all(leaf.shape == (last.width,) for leaf in leaves.values()):
            units[-1] = Units(layer, (*last.layers, layer), last.width)
        else:
            refuse(f"{layer} does not follow a layer of as many units")
    return tuple(units)


def _passed_by(output: Callable[..., Output], variables: Variables, x: PyTree, gate: str) -> bool:
    """Whether anything of the examples reaches the output where a layer gives only zeros."""
    cut = lambda name, out: jnp.zeros_like(out) if name == gate else out
    made = _intercepted(cut, lambda: jax.make_jaxpr(lambda *a: output(*a))(variables, x)).jaxpr
    reached = {id(var) for var in made.invars[len(jax.tree.leaves(variables)) :]}
    for step in made.eqns:
        if any(id(var) in reached for var in step.invars):
            reached |= {id(var) for var in step.outvars}
    return any(id(var) in reached for var in made.outvars)


def _intercepted(change: Callable[[str, Array], Array], run: Callable[[], Any]) -> Any:
    """``run()`` with ``change(layer, output)`` in place of the output of each Flax module."""
    import flax.linen as nn  # here, so that methods import without it

    def intercept(layer: Any, args: tuple, kwargs: dict, context: Any) -> Any:
        out = layer(*args, **kwargs)
        if context.method_name != "__call__":
            return out
        return change("/".join(context.module.path), out)

    with nn.intercept_methods(intercept):
        return run()
