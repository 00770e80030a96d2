"""What a program must compute: the operations of its matrix products and convolutions.

    flops = sum over products and convolutions of 2 * multiply-adds
    moved = sum over the same of the bytes of operands and results

Counted in the traced program, before the compiler sees it: loops count as often as they run, of
branches the first. ``moved`` is what goes through memory where nothing stays in a cache from one
product to the next. All other operations are left out of both.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cljax import keys
from cljax.nets.convolve import PRIMITIVES, multiply_adds
from cljax.types import Batch, Clock, Learner, Spec

__all__ = ["Work", "counted", "of_update"]


class Work(NamedTuple):
    """``flops`` operations, a multiply-add being two, and ``moved`` bytes."""

    flops: float
    moved: float


def counted(fn: Callable[..., Any], *args: Any) -> Work:
    """The work of one call; ``args`` may be ``jax.ShapeDtypeStruct``s.

    Loops whose length is only known when they run count as one pass.
    """
    return _of(jax.make_jaxpr(fn)(*args).jaxpr)


def of_update(learner: Learner, spec: Spec) -> Work:
    """The work of one update of a method bound to a network and a stream, without its draws."""
    size = spec.batch_size
    array: Any = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
    x = jax.tree.map(lambda a: array(a.dtype, size, *a.shape), spec.example)
    number, flag = array(jnp.int32), array(bool)
    clock = Clock(number, number, number, flag, flag)
    rows = array(jnp.int32, size)
    batch = Batch(x, rows, rows, array(bool, size), rows, clock)
    key = jax.eval_shape(lambda: keys.purpose(0, "update"))
    state = jax.eval_shape(learner.init, key)
    draws = jax.eval_shape(learner.draw, state, batch, key)
    return counted(learner.update, state, batch, draws)


def _of(jaxpr: Any) -> Work:
    flops, moved = 0.0, 0.0
    for eqn in jaxpr.eqns:
        shapes = [v.aval for v in eqn.invars]
        own, name = 0.0, eqn.primitive.name
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            own = 2 * eqn.outvars[0].aval.size * prod(shapes[0].shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            own = _convolution(eqn.params, shapes[1], eqn.outvars[0].aval)
        elif eqn.primitive in PRIMITIVES:
            own = 2 * multiply_adds(eqn)
        if own:
            flops += own
            moved += sum(a.size * a.dtype.itemsize for a in (*shapes, eqn.outvars[0].aval))
        times = eqn.params["length"] if name == "scan" else 1
        for inner in _inside(eqn.params):
            more = _of(inner)
            flops, moved = flops + times * more.flops, moved + times * more.moved
    return Work(flops, moved)


def _convolution(params: Any, kernel: Any, out: Any) -> float:
    """Zeros between the pixels of a dilated image take no work; those of a margin count."""
    features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
    places = out.size * kernel.size / features / params["batch_group_count"]
    return 2 * places / prod(params["lhs_dilation"])


def _inside(params: Any) -> list[Any]:
    """The programs in an equation's parameters."""
    result = []
    for name, value in params.items():
        value = value[0] if name == "branches" else value
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            result.append(inner)
    return result
