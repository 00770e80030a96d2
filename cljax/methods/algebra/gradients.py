"""Gradients of several groups of examples at the same parameters, through their inner products.

A method that projects one gradient against others needs two things of them: their Gram matrix,
and a combination of them once its coefficients are known. The general path keeps the gradients,
[N, P]. With the first layer's product apart (``low-rank``), its gradients x_i d_i^T stay factors:

    <g_p, g_q> of the first kernel  =  sum_{i in p, j in q} (x_i . x_j) (d_i . d_j)
    sum_p c_p g_p                   =  X^T (c d)

which is one product of the inputs, and moves a tenth of the memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import UserError
from cljax.losses import LossFn, masked_mean, row_losses
from cljax.types import Array, Examples, Model, Params, PyTree, Spec

__all__ = ["Gradients", "Group", "followed", "general", "low_rank"]


class Group(NamedTuple):
    """n groups of r examples: leaves ``[n, r, ...]`` and ``mask [n, r]``."""

    examples: Examples
    mask: Array


class Gradients(NamedTuple):
    """N gradients of mean losses: ``loss [N]``, ``gram [N, N]``, ``combine(c [N]) -> params``."""

    loss: Array
    gram: Array
    combine: Callable[[Array], Params]


GradientsFn = Callable[[Params, PyTree, tuple[Group, ...]], Gradients]


def general(loss_fn: LossFn) -> GradientsFn:
    """Gradients of any network: one forward pass for all groups of a stack, [N, P] in memory."""

    def gradients(params: Params, model_state: PyTree, groups: tuple[Group, ...]) -> Gradients:
        def mean_loss(params: Params, group: Group) -> Array:
            losses = loss_fn(params, model_state, group.examples, group.mask)[0]
            return masked_mean(losses, group.mask)

        per_group = jax.vmap(jax.value_and_grad(mean_loss), in_axes=(None, 0))
        losses, grads = _joined([per_group(params, group) for group in groups])
        return Gradients(losses, _gram(grads), lambda c: _combined(grads, c))

    return gradients


def followed(
    loss_fn: LossFn, params: Params, model_state: PyTree, groups: tuple[Group, ...]
) -> PyTree:
    """The network's state after a training pass over each group in turn, at ``params``."""
    if not jax.tree.leaves(model_state):
        return model_state

    def one(model_state: PyTree, group: Group) -> tuple[PyTree, None]:
        return loss_fn(params, model_state, group.examples, group.mask)[1], None

    for group in groups:
        model_state = jax.lax.scan(one, model_state, group)[0]
    return model_state


def low_rank(model: Model, spec: Spec) -> GradientsFn:
    """Gradients of a network that declares its first product.

    Raises:
      UserError: if the network does not.
    """
    if model.first_product is None:
        raise UserError(
            "algebra is low-rank, but this network does not declare its first product; use "
            "algebra=general, or a cljax.nets.mlp."
        )
    first = model.first_product

    def gradients(params: Params, model_state: PyTree, groups: tuple[Group, ...]) -> Gradients:
        kernel, rest = first.split(params)

        def mean_loss(rest: Params, z: Array, group: Group) -> Array:
            losses = row_losses(spec, first.apply(rest, z), group.examples, group.mask)
            return masked_mean(losses, group.mask)

        sizes = [group.mask.shape for group in groups]
        flat = [
            group.examples.x.reshape(n * r, -1) for group, (n, r) in zip(groups, sizes, strict=True)
        ]
        x = jnp.concatenate(flat)
        x = tree.blank(x, jnp.concatenate([group.mask.reshape(-1) for group in groups]))
        split_at = [sum(n * r for n, r in sizes[: i + 1]) for i in range(len(sizes) - 1)]
        z = jnp.split(x @ kernel, split_at)
        per_group = jax.vmap(jax.value_and_grad(mean_loss, argnums=(0, 1)), in_axes=(None, 0, 0))
        made = [
            per_group(rest, part.reshape(n, r, -1), group)
            for part, group, (n, r) in zip(z, groups, sizes, strict=True)
        ]
        losses, d_rest = _joined([(loss, grads[0]) for loss, grads in made])
        d_z = jnp.concatenate([grads[1].reshape(-1, kernel.shape[1]) for _, grads in made])
        counts = [r for n, r in sizes for _ in range(n)]
        owner = jnp.repeat(
            jnp.arange(len(counts)), jnp.array(counts), total_repeat_length=x.shape[0]
        )
        member = jax.nn.one_hot(owner, len(counts), dtype=x.dtype)  # [rows, N]
        of_kernel = _product(_product(member.T, _product(x, x.T) * _product(d_z, d_z.T)), member)

        def combine(coefficients: Array) -> Params:
            d_kernel = x.T @ (coefficients[owner][:, None] * d_z)
            return first.join(d_kernel, _combined(d_rest, coefficients))

        return Gradients(losses, of_kernel + _gram(d_rest), combine)

    return gradients


def _joined(parts: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def _gram(grads: Params) -> Array:
    flat = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(grads)]
    return functools.reduce(jnp.add, [_product(leaf, leaf.T) for leaf in flat])


# Inner products of gradients that nearly cancel decide: never in fewer digits than they have.
_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def _combined(grads: Params, coefficients: Array) -> Params:
    return jax.tree.map(lambda g: jnp.tensordot(coefficients, g, axes=1), grads)
