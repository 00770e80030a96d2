"""iCaRL: the previous network's outputs as targets, herded exemplars, the nearest class mean.

    before task s:   teacher = theta
    each epoch:      the examples of D(s) and M(s - 1), shuffled, in batches
    update(batch):   theta = theta - rate * Opt(grad mean_B loss(theta))
    after task s:    M(s) = herded from D(s), and the best of the old ones
    predict(x):      the nearest mean of exemplars, or the largest logit

    loss "bce":  sum over outputs seen of  BCE(z_c, q_c),   q_c = sigmoid(z^_c) for old outputs,
                                                            1[y = c] for new ones
    loss "kl":   CE over outputs seen
                 + strength KL(softmax(z^ / tau) || softmax(z / tau)) over old ones

Symbols: theta ``params``, z logits and z^ the teacher's, tau ``temperature``, M ``exemplars``.

Source: Rebuffi, Kolesnikov, Sperl, Lampert, "iCaRL: Incremental Classifier and Representation
Learning", CVPR 2017 (arXiv:1611.07725), algorithms 1 to 5. ``kl`` is the loss of the code released
with Liu et al., "Mnemonics Training", CVPR 2020 (arXiv:2002.10211), at tau = 2 without the factor
tau^2; with the predictor "logits" it is that paper's LwF with exemplars.

Differs from the paper: the teacher's outputs are computed at each step, not once before the task,
so that they are those of the example as it is augmented.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import check_finite, check_known
from cljax.losses import binary_cross_entropy, distillation
from cljax.memory.policies import Policy
from cljax.methods.common import initial, logits_predictor
from cljax.methods.incremental import (
    Descent,
    blanked,
    check_single_head,
    classification,
    descend,
    descent,
    past_outputs,
    seen_outputs,
    training,
)
from cljax.methods.nearest import nearest_mean
from cljax.methods.rehearsal import recall, rehearsal
from cljax.methods.sessions import session
from cljax.optimizers import Optimizer
from cljax.types import (
    Array,
    Batch,
    Info,
    Learner,
    Method,
    Model,
    Needs,
    Params,
    PyTree,
    Spec,
    Variables,
)

__all__ = ["Draws", "State", "draw", "icarl", "update"]

Kind: TypeAlias = Literal["bce", "kl"]


class State(NamedTuple):
    """``teacher`` is the network when the last task ended."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    teacher: Variables
    exemplars: PyTree


class Draws(NamedTuple):
    """An update makes no random choice."""


def draw(state: State, batch: Batch, key: Array) -> Draws:
    """Nothing to draw: orders are the stream's."""
    return Draws()


def update(
    state: State,
    batch: Batch,
    draws: Draws,
    *,
    model: Model,
    class_mask: np.ndarray,
    loss: Kind,
    strength: Array | float,
    temperature: Array | float,
    by: Descent,
) -> tuple[State, Info]:
    """One gradient step on the batch; ``info.loss`` is in nats, with the distillation."""
    batch, task = blanked(batch), batch.clock.task
    seen, past = seen_outputs(class_mask, task), past_outputs(class_mask, task)
    old = model.apply(state.teacher, batch.x, False)[0].logits

    def losses(logits: Array) -> Array:
        if loss == "bce":
            new = jax.nn.one_hot(batch.y, logits.shape[1], dtype=logits.dtype)
            targets = jnp.where(past[None], jax.nn.sigmoid(old), new)
            return jnp.sum(seen) * binary_cross_entropy(logits, targets, seen[None])
        apart = distillation(logits, old, past, temperature)
        return classification("softmax", logits, batch.y, seen) + strength * apart

    state, value = descend(state, batch, losses, forward=training(model), by=by)
    return state, Info(value)


def icarl(
    *,
    lr: Array | float = 0.1,
    loss: Kind = "bce",
    strength: Array | float = 1.0,
    temperature: Array | float = 2.0,
    capacity: int | None = 2000,
    per_class: int | None = None,
    exemplars: Policy = "herding",
    mirror: bool = False,
    optimizer: Optimizer = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    milestones: Sequence[int] = (),
    decay: Array | float = 0.1,
    first_epochs: int | None = None,
) -> Method:
    """iCaRL: distillation, herded exemplars, prediction by the nearest class mean.

    Args:
      lr: step size. May be traced.
      loss: bce, the sum of binary cross-entropies (the paper), or kl, softmax cross-entropy with
        distillation.
      strength: weight of the distillation; loss=kl only. May be traced.
      temperature: softens both networks' outputs in it; loss=kl only. May be traced.
      capacity: exemplars of all classes together; None with per_class.
      per_class: exemplars of each class, instead of a total.
      exemplars: herding, random or first, or an ``ExemplarPolicy``.
      mirror: class means over the exemplars and their mirror images.
      optimizer: sgd, momentum, adam, radam, or directions of your own (``optax.scale_by_...``).
      momentum: of the optimiser "momentum".
      weight_decay: adds so many parameters to the gradient.
      milestones: epochs at which the rate drops.
      decay: by this factor. May be traced.
      first_epochs: epochs of the first task; None is as many as of the others.

    Raises:
      UserError: for counts below 1, values that are not finite, unknown choices, or a stream
        whose tasks share classes.
    """
    options = dict(locals())
    check_known("loss", loss, get_args(Kind))
    check_finite(strength=strength, temperature=temperature)
    held = rehearsal(exemplars, capacity, per_class, first_epochs)
    by = descent(
        optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay, milestones=milestones,
        decay=decay,
    )  # fmt: skip

    def bind(model: Model, spec: Spec) -> Learner:
        check_single_head("icarl", spec)
        budget = held.budget(spec.class_mask)

        def init(key: Array) -> State:
            variables = initial(model, spec, key)
            opt_state = by.optimizer.init(variables.params)
            return State(*variables, opt_state, variables, held.policy.init(spec, budget))

        def begin(state: State, task: Array) -> State:
            return state._replace(
                teacher=Variables(state.params, state.model_state),
                opt_state=by.optimizer.init(state.params),
            )

        return Learner(
            init,
            draw,
            functools.partial(
                update, model=model, class_mask=spec.class_mask, loss=loss, strength=strength,
                temperature=temperature, by=by,
            ),
            {
                "nearest-mean": nearest_mean(model, spec, mirror=mirror),
                "logits": logits_predictor(model),
            },
            (session(begin), *held.policy.phases(model, spec, budget)),
            recall=recall,
            gradients_per_update=1,
            examples_per_update=spec.batch_size,
        )  # fmt: skip

    needs = Needs(boundaries=True, task_ids_train=True, epochs=True)
    return Method("icarl", bind, needs, options, arrange=held.arrange, make=icarl)
