"""Rep: features of plain pretraining on more classes; then plain steps.

    pretraining:     L = CE([z_A(x), V phi(x) + c]; batches of the source task and all held classes)
                     (theta, V, c) = (theta, V, c) - rate * direction of grad L
    update(batch):   theta = theta - lr grad CE(theta; batch)

z_A are the network's outputs of the source task, and [V, c] rows of a head for the held classes
(those that the source task lacks): one softmax over both. Nothing uses V and c afterwards.

Pretraining's steps, optimiser and rates are the stream's (``Stream.pretraining``), whose first task
is then over; on a stream without, they are those of ``cljax.types.Pretraining``, and the first task
is learned like the others afterwards. An epoch of it shuffles all examples of both together.

Symbols: theta ``params``, phi the features, (V, c) ``extra``, lr ``lr``.

Source: the baseline Rep in Xiong, Ren, Zeng, Urtasun, "Learning to Remember from a Multi-Task
Teacher", 2019 (arXiv:1910.04650).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import tree
from cljax.errors import check_rate
from cljax.losses import cross_entropy, masked_mean
from cljax.methods.common import initial, logits_predictor
from cljax.methods.pretrained import epochs_for, plain_update, scheduled
from cljax.nets.inits import fan_in_uniform
from cljax.nets.masked import masked
from cljax.optimizers import direction
from cljax.types import (
    Array,
    Batch,
    Info,
    Learner,
    Method,
    Model,
    Needs,
    Params,
    Phase,
    Pretraining,
    PyTree,
    Spec,
    Variables,
)
from cljax.update_rules.episodes import check_held, held_rows

__all__ = ["Draws", "Extra", "State", "draw", "rep"]


class Extra(NamedTuple):
    """A linear layer for the H held classes, PyTorch's at first."""

    kernel: Array  # [D, H], V
    bias: Array  # [H], c


class State(NamedTuple):
    """``extra`` and ``early``, pretraining's optimiser, are of pretraining alone."""

    params: Params
    model_state: PyTree
    extra: Extra
    early: PyTree


class Draws(NamedTuple):
    """An update makes no random choice."""


def draw(state: State, batch: Batch, key: Array) -> Draws:
    """Nothing to draw."""
    return Draws()


def rep(*, lr: Array | float = 0.1) -> Method:
    """Pretraining on the source task and all held classes jointly, then gradient descent.

    Args:
      lr: step size on the stream. May be traced.

    Raises:
      UserError: for a rate that is not finite, or a stream that holds out no examples.
    """
    options = dict(locals())
    check_rate(lr=lr)

    def bind(model: Model, spec: Spec) -> Learner:
        check_held("rep", spec)
        how = Pretraining() if spec.pretraining is None else spec.pretraining
        towards = direction(how.optimizer, weight_decay=how.weight_decay)
        source, number = _joint(spec)
        num_held = int(number.max()) + 1 - len(source)

        def init(key: Array) -> State:
            params, model_state = initial(model, spec, key)
            x = jax.tree.map(lambda a: jnp.zeros((1, *a.shape), a.dtype), spec.example)
            variables = Variables(params, model_state)
            features = jax.eval_shape(lambda: model.apply(variables, x, False)[0].features)
            width = features.shape[-1]
            drawn = fan_in_uniform(width)
            of_kernel, of_bias = jax.random.split(jax.random.fold_in(key, 1))
            extra = Extra(
                drawn(of_kernel, (width, num_held), features.dtype),
                drawn(of_bias, (num_held,), features.dtype),
            )
            return State(params, model_state, extra, towards.init((params, extra)))

        def pretrain(state: State, batch: Batch, draws: Draws) -> tuple[State, Info]:
            y = jnp.asarray(number)[batch.y]

            def objective(learned: tuple[Params, Extra]) -> tuple[Array, PyTree]:
                params, extra = learned
                variables = Variables(params, state.model_state)
                output, model_state = masked(model, variables, batch.x, batch.mask)
                more = output.features @ extra.kernel + extra.bias[None]
                logits = jnp.concatenate([output.logits[:, source], more], axis=1)
                return masked_mean(cross_entropy(logits, y), batch.mask), model_state

            learned = (state.params, state.extra)
            (loss, model_state), grads = jax.value_and_grad(objective, has_aux=True)(learned)
            by = scheduled(how, towards, batch.clock.step)
            updates, early = by.update(grads, state.early, learned)
            params, extra = jax.tree.map(jnp.add, learned, updates)
            some = jnp.any(batch.mask)  # momentum and decay alone are no step
            after = State(params, model_state, extra, early)
            return tree.select(some, after, state), Info(loss)

        rows = epochs_for(how, held_rows(spec).reshape(-1))
        phase = Phase("pretrain", rows, draw, pretrain, before=True, augment=True)
        return Learner(
            init,
            draw,
            plain_update(model, spec, lr),
            {"logits": logits_predictor(model)},
            (phase,),
            gradients_per_update=1,
            examples_per_update=spec.batch_size,
        )

    needs = Needs(boundaries=True, task_ids_train=True)
    return Method("rep", bind, needs, options, make=rep)


def _joint(spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """The source task's outputs [n], and the joint output of each label, -1 where it has none."""
    assert spec.train_y is not None
    source = np.flatnonzero(spec.class_mask[0])
    held = spec.train_y[held_rows(spec)[:, 0]]
    labels = np.concatenate([source, held[~np.isin(held, source)]])
    number = np.full(max(labels.max(), spec.train_y.max()) + 1, -1, np.int32)
    number[labels] = np.arange(len(labels), dtype=np.int32)
    return source, number
