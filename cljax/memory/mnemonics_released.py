"""Exemplars learned as the code released with mnemonics does: through class means, features fixed.

    m_c    = mean over the exemplars of c of f(x),  learned, for new classes;
             fixed, of real and mirrored exemplars with normalised features, for old ones
    L      = CE over classes seen of  cos(f(x), m_c),   x a batch of D(s) and the old exemplars
    E      = E - beta (grad_E L + decay E),  with momentum, for one epoch;  then truncated

There is no inner loop, no adjustment of old exemplars and no scale of the cosines. beta is 1e-5.

Source: the code released with Liu et al., "Mnemonics Training", CVPR 2020 (arXiv:2002.10211), by
its specification. Truncation does not clip: values beyond the stored range wrap around there, and
are clipped here. Mirrored from left to right, where the code reverses the colour channels.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from cljax import tree
from cljax.errors import check_flag, check_known, check_positive, check_rate, check_share
from cljax.losses import cross_entropy, masked_mean
from cljax.memory.class_means import class_means
from cljax.memory.exemplars import Budget, epochs_of, recall, rows_of
from cljax.memory.learned import Learned, begin, empty, finish, moved, shown
from cljax.memory.selection import SELECTIONS, Selection, herding
from cljax.nets.cosine import cosines
from cljax.types import (
    Array,
    Batch,
    ExemplarPolicy,
    Info,
    Model,
    Phase,
    PyTree,
    Spec,
    StepPlan,
    Variables,
)

__all__ = ["class_mean_loss", "mnemonics_released"]


def class_mean_loss(features: Array, y: Array, mask: Array, means: Array, seen: Array) -> Array:
    """Cross-entropy [] of cosines between features [B, D] and class means [C, D], over ``seen``."""
    scores = cosines(features, means.T)
    return masked_mean(cross_entropy(scores, y, seen[None]), mask)


def mnemonics_released(
    *,
    start: Selection = "herding",
    repeats: bool = True,
    outer_epochs: int = 1,
    lr: Array | float = 1e-5,
    momentum: Array | float = 0.9,
    weight_decay: float = 5e-4,
    mirror: bool = True,
    rounding: Literal["truncate", "nearest", "none"] = "truncate",
) -> ExemplarPolicy:
    """New exemplars learned through their class means, in the features of the trained network.

    Args:
      start: how they are chosen: herding (the released code), random or first.
      repeats: herding by the released rule, in which an example may win again.
      outer_epochs: passes over the task's images and the old exemplars.
      lr: step size in normalised pixels. May be traced.
      momentum: of these steps. May be traced.
      weight_decay: of the normalised pixels.
      mirror: means of old classes over exemplars and mirror images, stored as [height, width, ...].
      rounding: to the stored type at the end: truncate (the released code), nearest, or none.

    Raises:
      UserError: for counts below 1, values that are not finite, or unknown choices.
    """
    check_known("start", start, SELECTIONS)
    check_known("rounding", rounding, ("truncate", "nearest", "none"))
    check_positive(outer_epochs=outer_epochs)
    check_rate(lr=lr, weight_decay=weight_decay)
    check_share(momentum=momentum)
    check_flag(repeats=repeats, mirror=mirror)

    def init(model: Model, spec: Spec, budget: Budget) -> Learned:
        x = jax.ShapeDtypeStruct((1, *spec.example.shape), spec.example.dtype)
        features = jax.eval_shape(
            lambda x: model.apply(model.init(jax.random.key(0), x), x, False)[0].features, x
        )
        anchors = jnp.zeros((spec.num_classes, features.shape[1]), features.dtype)
        return empty(spec, budget, rounding=rounding, anchors=anchors)

    def phases(model: Model, spec: Spec, budget: Budget) -> tuple[Phase, ...]:
        def update(state: PyTree, batch: Batch, draws: tuple[()]) -> tuple[PyTree, Info]:
            task, variables = batch.clock.task, Variables(state.params, state.model_state)
            tasks = jnp.arange(spec.num_tasks)
            seen = jnp.any(spec.class_mask & (tasks <= task)[:, None], axis=0)
            own = jnp.asarray(spec.class_mask)[task]
            kept = begin(state.exemplars, batch)
            kept = jax.lax.cond(
                batch.clock.step == 0,
                lambda k: k._replace(
                    anchors=class_means(model, spec, variables, k, mirror=mirror)[0]
                ),
                lambda k: k,
                kept,
            )
            active = kept.mask & own[kept.y]
            mask = batch.mask & (
                (batch.index >= 0) | kept.mask.at[-2 - batch.index].get(mode="clip")
            )
            features = model.apply(variables, tree.blank(batch.x, mask), False)[0].features

            def loss(pixels: Array) -> tuple[Array, Array]:
                x = shown(spec, pixels, kept.task)
                exemplars = model.apply(variables, x, False)[0].features
                member = (kept.y[None] == jnp.arange(spec.num_classes)[:, None]) & active[None]
                share = member / jnp.maximum(jnp.sum(member, axis=1, keepdims=True), 1)
                new = share.astype(exemplars.dtype) @ jnp.where(active[:, None], exemplars, 0.0)
                means = jnp.where(own[:, None], new, kept.anchors)
                value = class_mean_loss(features, batch.y, mask, means, seen)
                where = active.reshape(-1, *(1,) * (x.ndim - 1))
                return value + 0.5 * weight_decay * jnp.sum(jnp.where(where, x, 0.0) ** 2), value

            grads, value = jax.grad(loss, has_aux=True)(kept.pixels)
            some = jnp.any(mask)  # decay and momentum alone are no step
            kept = moved(kept, grads, active & some, spec, lr=lr, momentum=momentum)
            return state._replace(exemplars=finish(kept, batch, active, rounding)), Info(value)

        def plan(task: int, rows: StepPlan) -> StepPlan:
            own = rows.index[rows.mask & (rows.epoch == 0)[:, None] & (rows.index >= 0)]
            others, owner = rows_of(budget, task)
            count = int(budget.seen[task - 1] * budget.shares[task]) if task else 0
            return epochs_of(
                np.append(own, others[:count]),
                np.append(np.full(len(own), task, np.int32), owner[:count]),
                rows.index.shape[1], task, outer_epochs, "class means",
            )  # fmt: skip

        learned = Phase(
            "mnemonics", plan, lambda s, b, k: (), update, augment=True,
            recall=lambda state, x, y, index: recall(state.exemplars, x, y, index),
        )  # fmt: skip
        chosen = herding(repeats=repeats) if start == "herding" else SELECTIONS[start]()
        return (*chosen.phases(model, spec, budget), learned)

    return ExemplarPolicy(init, phases)
