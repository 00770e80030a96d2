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

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cljax import tree
from cljax.losses import cross_entropy, masked_mean
from cljax.memory.class_means import class_means
from cljax.memory.exemplars import Budget, epochs_of, recall, rows_of
from cljax.memory.learned import Learned, Rounding, begin, empty, finish, moved, shown
from cljax.memory.policy import ExemplarPolicy
from cljax.memory.selection import SELECTIONS, Herding, Selection
from cljax.nets.cosine import cosines
from cljax.options import Count, Rate, Share
from cljax.types import (
    Array,
    Batch,
    Info,
    Model,
    Phase,
    PyTree,
    Spec,
    StepPlan,
    Variables,
)

__all__ = ["MnemonicsReleased", "class_mean_loss"]


def class_mean_loss(features: Array, y: Array, mask: Array, means: Array, seen: Array) -> Array:
    """Cross-entropy [] of cosines between features [B, D] and class means [C, D], over ``seen``."""
    scores = cosines(features, means.T)
    return masked_mean(cross_entropy(scores, y, seen[None]), mask)


class MnemonicsReleased(ExemplarPolicy):
    """New exemplars learned through their class means, in the features of the trained network."""

    start: Selection = "herding"
    """How they are chosen: herding (the released code), random or first."""
    repeats: bool = True
    """Herding by the released rule, in which an example may win again."""
    outer_epochs: Count = 1
    """Passes over the task's images and the old exemplars."""
    lr: Rate = 1e-5
    """Step size in normalised pixels."""
    momentum: Share = 0.9
    """Of these steps."""
    weight_decay: Rate = 5e-4
    """Of the normalised pixels."""
    mirror: bool = True
    """Means of old classes over exemplars and mirror images, stored as [height, width, ...]."""
    rounding: Rounding = "truncate"
    """To the stored type at the end: truncate (the released code), nearest, or none."""

    def init(self, model: Model, spec: Spec, budget: Budget) -> Learned:
        x = jax.ShapeDtypeStruct((1, *spec.example.shape), spec.example.dtype)
        features = jax.eval_shape(
            lambda x: model.apply(model.init(jax.random.key(0), x), x, False)[0].features, x
        )
        anchors = jnp.zeros((spec.num_classes, features.shape[1]), features.dtype)
        return empty(spec, budget, rounding=self.rounding, anchors=anchors)

    def phases(self, model: Model, spec: Spec, budget: Budget) -> tuple[Phase, ...]:
        learned = Phase(
            "mnemonics", functools.partial(self._plan, budget), lambda state, batch, key: (),
            functools.partial(self._update, model, spec), augment=True,
            recall=lambda state, x, y, index: recall(state.exemplars, x, y, index),
        )  # fmt: skip
        chosen = Herding(repeats=self.repeats)
        chosen = chosen if self.start == "herding" else SELECTIONS[self.start]
        return (*chosen.phases(model, spec, budget), learned)

    def _plan(self, budget: Budget, task: int, rows: StepPlan) -> StepPlan:
        """The task's images and the old exemplars, shuffled in each epoch."""
        own = rows.index[rows.mask & (rows.epoch == 0)[:, None] & (rows.index >= 0)]
        others, owner = rows_of(budget, task)
        count = int(budget.seen[task - 1] * budget.shares[task]) if task else 0
        return epochs_of(
            np.append(own, others[:count]),
            np.append(np.full(len(own), task, np.int32), owner[:count]),
            rows.index.shape[1], task, self.outer_epochs, "class means",
        )  # fmt: skip

    def _update(
        self, model: Model, spec: Spec, state: PyTree, batch: Batch, draws: tuple[()]
    ) -> tuple[PyTree, Info]:
        task, variables = batch.clock.task, Variables(state.params, state.model_state)
        kept = begin(state.exemplars, batch)
        kept = jax.lax.cond(
            batch.clock.step == 0,
            lambda k: k._replace(
                anchors=class_means(model, spec, variables, k, mirror=self.mirror)[0]
            ),
            lambda k: k,
            kept,
        )
        active = kept.mask & jnp.asarray(spec.class_mask)[task][kept.y]
        mask = batch.mask & ((batch.index >= 0) | kept.mask.at[-2 - batch.index].get(mode="clip"))
        batch = batch._replace(mask=mask)
        grads, value = jax.grad(self._loss, argnums=4, has_aux=True)(
            model, spec, variables, kept, kept.pixels, batch, active
        )
        some = jnp.any(mask)  # decay and momentum alone are no step
        kept = moved(kept, grads, active & some, spec, lr=self.lr, momentum=self.momentum)
        kept = finish(kept, batch, active, self.rounding)
        return state._replace(exemplars=kept), Info(value)

    def _loss(
        self,
        model: Model,
        spec: Spec,
        variables: Variables,
        kept: Learned,
        pixels: Array,
        batch: Batch,
        active: Array,
    ) -> tuple[Array, Array]:
        """The loss of pixels with their decay, and without it."""
        tasks, own = jnp.arange(spec.num_tasks), jnp.asarray(spec.class_mask)[batch.clock.task]
        seen = jnp.any(spec.class_mask & (tasks <= batch.clock.task)[:, None], axis=0)
        features = model.apply(variables, tree.blank(batch.x, batch.mask), False)[0].features
        x = shown(spec, pixels, kept.task)
        exemplars = model.apply(variables, x, False)[0].features
        member = (kept.y[None] == jnp.arange(spec.num_classes)[:, None]) & active[None]
        share = member / jnp.maximum(jnp.sum(member, axis=1, keepdims=True), 1)
        new = share.astype(exemplars.dtype) @ jnp.where(active[:, None], exemplars, 0.0)
        means = jnp.where(own[:, None], new, kept.anchors)
        value = class_mean_loss(features, batch.y, batch.mask, means, seen)
        where = active.reshape(-1, *(1,) * (x.ndim - 1))
        return value + 0.5 * self.weight_decay * jnp.sum(jnp.where(where, x, 0.0) ** 2), value
