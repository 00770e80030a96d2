"""The gradient of exemplars through the training of a temporary network on them.

    theta' = theta;  for i = 1..T:  theta' = theta' - alpha grad L(theta'; E_i)
    grad_E L(theta'(E); V),  through all T steps, the last few, or by the implicit function theorem

L is cross-entropy over chosen outputs. L(.; V) uses BatchNorm's running statistics, which stay as
they are; L(.; E_i) the same ones, or those of the batch E_i itself. See ``mnemonics``.

Symbols: theta ``params``, E ``pixels``, T ``inner_steps``, alpha ``inner_lr``, V ``judged``.

Source: Liu et al., "Mnemonics Training", CVPR 2020 (arXiv:2002.10211), equations 7 to 9.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import UserError
from cljax.implicit import ConjugateGradients, implicit_gradient
from cljax.inner_loop import LoopOptions, sgd_step, unroll
from cljax.losses import cross_entropy, masked_mean
from cljax.memory.learned import Learned, shown
from cljax.method import Problem
from cljax.nets.masked import masked
from cljax.nets.transfer import slow_in_loops
from cljax.types import Array, Model, Params, PyTree, Variables

__all__ = ["Bilevel", "Gradient", "Inner", "Judged", "Norm", "outer_gradient"]

Gradient: TypeAlias = Literal["unrolled", "implicit"]
Inner: TypeAlias = Literal["all", "head"]
Norm: TypeAlias = Literal["frozen", "batch"]


class Bilevel(NamedTuple):
    """How exemplars are judged: the inner loop, and the gradient through it."""

    inner_steps: int
    inner_lr: Array | float
    inner_params: Inner = "all"
    gradient: Gradient = "unrolled"
    last: int | None = None  # steps that the gradient goes through; None: all
    damping: Array | float = 1.0  # of the implicit gradient
    solver_steps: int = 10  # of the implicit gradient
    remat: bool | None = None  # recompute inner steps; None: on accelerators
    inner_norm: Norm = "frozen"  # BatchNorm's statistics in inner steps: running, or the batch's


class Judged(NamedTuple):
    """A validation batch: what the network sees, labels, real rows, outputs that compete."""

    x: Any  # [B, ...]
    y: Array  # [B] int32
    mask: Array  # [B] bool
    outputs: Array  # [C] bool


def outer_gradient(
    problem: Problem,
    variables: Variables,
    exemplars: Learned,
    slots: Array,
    mask: Array,
    judged: Judged,
    task: Array,
    how: Bilevel,
) -> tuple[Array, Array]:
    """Validation loss [] after the inner loop, and its gradient in the exemplars' pixels [M, ...].

    Args:
      slots: [T, W] int32, the exemplars of each inner step. mask: [T, W] bool.
      task: [] int32, the task just learned, for networks whose trainable part depends on it.

    Raises:
      UserError: for a network that lacks what ``how`` asks for.
    """
    model, spec = problem
    state = variables.model_state
    learns = _movable(model, variables.params, task, how.inner_params)
    labels = exemplars.y[slots]

    def losses(params: Params, x: Array, y: Array, mask: Array, train: bool = False) -> Array:
        variables = Variables(params, state)
        # Nothing keeps the running statistics after a step: the network is thrown away.
        seen = masked(model, variables, x, mask) if train else model.apply(variables, x, False)
        return masked_mean(cross_entropy(seen[0].logits, y, judged.outputs[None]), mask)

    def rate() -> Any:
        if learns is None:
            return how.inner_lr
        dtype = jnp.result_type(float)
        return jax.tree.map(lambda leaf: how.inner_lr * leaf.astype(dtype), learns)

    slow = slow_in_loops(model, spec.example)
    remat = jax.default_backend() != "cpu" if how.remat is None else how.remat

    def fitted(pixels: Array) -> Params:
        x = shown(spec, pixels[slots], exemplars.task[slots])
        train = how.inner_norm == "batch"
        step = sgd_step(lambda params, batch: losses(params, *batch, train=train), rate())
        return unroll(
            step, variables.params, (x, labels, mask), order=2, last=how.last,
            loop=LoopOptions(remat=remat, unroll_steps=True if slow else 1),
        ).params  # fmt: skip

    def outer(params: Params) -> Array:
        return losses(params, tree.blank(judged.x, judged.mask), judged.y, judged.mask)

    if how.gradient == "unrolled":
        return jax.value_and_grad(lambda pixels: outer(fitted(pixels)))(exemplars.pixels)

    def freeze(params: Params) -> Params:
        if learns is None:
            return params
        fix = lambda free, leaf: jnp.where(free, leaf, jax.lax.stop_gradient(leaf))
        return jax.tree.map(fix, learns, params)

    def inner(params: Params, pixels: Array) -> Array:
        flat = slots.reshape(-1)
        x = shown(spec, pixels[flat], exemplars.task[flat])
        return losses(freeze(params), x, exemplars.y[flat], mask.reshape(-1))

    end = jax.lax.stop_gradient(fitted(exemplars.pixels))
    return implicit_gradient(
        inner, lambda params: outer(freeze(params)), end, exemplars.pixels, damping=how.damping,
        solver=ConjugateGradients(how.solver_steps),
    )  # fmt: skip


def _movable(model: Model, params: Params, task: Array, which: Inner) -> PyTree | None:
    """Which parameters the inner loop moves, None for all."""
    learns = None if model.learns is None else model.learns(params, task)
    if which == "all":
        return learns
    if model.head is None or model.rows is None:
        raise UserError(
            "inner_params is head, but this network does not say which of its parameters that is; "
            "give its Model a head and rows (see cljax.types.Model)."
        )
    nothing = model.head(params, jnp.zeros(model.rows.get(params).shape[1], bool))
    return jax.tree.map(lambda body, leaf: jnp.broadcast_to(~body, leaf.shape), nothing, params)
