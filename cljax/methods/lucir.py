"""LUCIR: a cosine head, features that keep their direction, a margin between old and new.

    L       = CE over outputs seen + lambda L_lf + weight L_mr
    L_lf    = mean_B  1 - cos(f^(x), f(x))
    L_mr    = mean over old-class examples x and the top new outputs k of
              max(0, margin - s_y(x) + s_k(x))
    s_c     = cos(f(x), w_c),    z_c = sigma s_c,    lambda = base sqrt(n_past / n_new)

The course of a task is that of ``class_incremental``; nothing is distilled from logits. The first
task has cross-entropy alone.

Symbols: f features and f^ the teacher's, w ``model.rows``, base ``less_forget``, top ``negatives``,
n_past and n_new the numbers of outputs.

Source: Hou, Pan, Loy, Wang, Lin, "Learning a Unified Classifier Incrementally via Rebalancing",
CVPR 2019, equations 6, 8 and 10; base 5 for CIFAR-100 and 10 for ImageNet, margin 0.5, top 2.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array as AnyArray
from jaxtyping import Bool, Float, Int

from cljax.errors import UserError, check_flag, check_positive, check_rate
from cljax.factories import with_part
from cljax.losses import masked_mean
from cljax.memory.exemplars import Budget
from cljax.methods.class_incremental import (
    Objective,
    Terms,
    both_predictors,
    class_incremental,
)
from cljax.methods.incremental import Outputs, classification
from cljax.nets.cosine import cosines, unit
from cljax.types import Array, Batch, Lens, Model, Output, Params, PyTree, Spec

__all__ = ["less_forget_loss", "lucir", "lucir_objective", "margin_loss", "objective"]


def less_forget_loss(
    features: Float[AnyArray, "B D"], old: Float[AnyArray, "B D"], mask: Bool[AnyArray, " B"]
) -> Array:
    """L_lf [], in [0, 2]: how far features have turned from the teacher's."""
    return masked_mean(1 - jnp.sum(unit(features) * unit(old), axis=1), mask)


def margin_loss(
    scores: Float[AnyArray, "B C"],
    y: Int[AnyArray, " B"],
    mask: Bool[AnyArray, " B"],
    outputs: Outputs,
    *,
    margin: Array | float,
    negatives: int,
) -> Array:
    """L_mr []: hinges of an old class's cosine against the nearest new ones.

    Where fewer than ``negatives`` outputs are new, those count; without old examples it is 0.
    """
    own = jnp.sum(jnp.where(jnp.arange(scores.shape[1])[None] == y[:, None], scores, 0.0), axis=1)
    nearest, _ = jax.lax.top_k(jnp.where(outputs.own[None], scores, -jnp.inf), negatives)
    there = jnp.arange(negatives)[None] < jnp.sum(outputs.own)
    # Chosen before the hinge: an infinity must not reach its gradient.
    nearest = jnp.where(there, nearest, 0.0)
    hinges = jax.nn.relu(margin - own[:, None] + nearest)
    old = (mask & outputs.past[y])[:, None] & there
    return masked_mean(hinges, old)


def objective(
    params: Params,
    output: Output,
    old: Output,
    own: PyTree,
    batch: Batch,
    outputs: Outputs,
    *,
    rows: Lens,
    less_forget: Array | float,
    margin: Array | float,
    margin_weight: Array | float,
    negatives: int,
) -> Array:
    """L [] of a batch, in nats and cosines."""
    plain = classification("softmax", output.logits, batch.y, outputs.seen)
    past, new = jnp.sum(outputs.past), jnp.sum(outputs.own)
    strength = less_forget * jnp.sqrt(past / jnp.maximum(new, 1)).astype(plain.dtype)
    kept = less_forget_loss(output.features, old.features, batch.mask)
    scores = cosines(output.features, rows.get(params))
    apart = margin_loss(
        scores, batch.y, batch.mask, outputs, margin=margin, negatives=negatives
    )  # fmt: skip
    return masked_mean(plain, batch.mask) + strength * kept + margin_weight * apart


def lucir_objective(
    *,
    less_forget: Array | float = 5.0,
    margin: Array | float = 0.5,
    margin_weight: Array | float = 1.0,
    negatives: int = 2,
    mirror: bool = False,
) -> Objective:
    """LUCIR: a cosine head, a less-forget constraint on features and a margin ranking loss.

    Args:
      less_forget: its strength where old and new outputs are as many. May be traced.
      margin: between the cosines of the right old output and of new ones. May be traced.
      margin_weight: of the margin loss. May be traced.
      negatives: new outputs that each old example is held apart from, the nearest ones.
      mirror: class means over the exemplars and their mirror images.

    Raises:
      UserError: for counts below 1, values that are not finite, unknown choices, a network
        without a cosine head, or a stream whose tasks share classes.
    """
    options = dict(locals())
    check_rate(less_forget=less_forget, margin=margin, margin_weight=margin_weight)
    check_positive(negatives=negatives)
    check_flag(mirror=mirror)

    def bind(model: Model, spec: Spec, budget: Budget) -> Terms:
        if model.rows is None or not model.cosine:
            raise UserError(
                "lucir compares features and outputs by angle, but this network has no cosine "
                "head; use one such as resnet32 or mlp:100:cosine."
            )
        if negatives > spec.num_classes:
            raise UserError(
                f"negatives is {negatives}, but the stream has only {spec.num_classes} outputs."
            )
        loss = functools.partial(
            objective, rows=model.rows, less_forget=less_forget, margin=margin,
            margin_weight=margin_weight, negatives=negatives,
        )  # fmt: skip
        return Terms(loss, both_predictors(model, spec, mirror=mirror))

    return Objective(bind, name="lucir", options=options)


lucir = with_part(
    class_incremental, "lucir", "objective", lucir_objective, imprint=True, freeze=True
)
