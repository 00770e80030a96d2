"""Experience replay: each step learns from the batch and a draw of the reservoir.

    update(batch):
      for each of G glances:
        bm    = R replayed examples ++ the batch
        theta = theta - lr * clip(grad CE(theta; bm))
      the batch is offered to the reservoir

``balance="tasks"`` weighs an example by one over the number of its task's examples in bm, so the
loss is the sum over tasks of their means.

Symbols: theta ``params``, G ``glances``, R ``replay_size``, M ``capacity``.

Source: Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019
(arXiv:1902.10486); Riemer et al. 2019 (arXiv:1810.11910), algorithms 4 and 5; the code released
with La-MAML clips the gradient, glances, and offers the batch again in every epoch
(``offer="every-epoch"``).
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from cljax.errors import (
    check_above_zero,
    check_flag,
    check_known,
    check_positive,
    check_rate,
    given,
)
from cljax.losses import classification_loss
from cljax.memory import reservoir
from cljax.methods.common import (
    Descent,
    check_penalty,
    descend,
    initial,
    logits_predictor,
    mean_weights,
    network_of,
    penalty_phases,
    penalty_state,
)
from cljax.optimizers import Optimizer, make_optimizer
from cljax.types import (
    Array,
    Batch,
    Examples,
    Info,
    Learner,
    Method,
    Model,
    Needs,
    Params,
    Penalty,
    PyTree,
    Spec,
)

__all__ = ["Draws", "State", "draw", "er", "task_weights"]


class State(NamedTuple):
    """``penalty`` is the penalty's own state, ``()`` without one."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    penalty: PyTree
    memory: reservoir.Reservoir


class Draws(NamedTuple):
    """Every random choice of one update."""

    replay: Examples  # leaves [G, R, ...]
    replay_mask: Array  # [G, R] bool
    slots: Array  # [B] int32, reservoir slot of each example, M = not stored


def draw(
    state: Any,
    batch: Batch,
    key: Array,
    *,
    glances: int,
    replay_size: int,
    rule: reservoir.Rule = "textbook",
    with_replacement: bool = False,
    every_epoch: bool = False,
) -> Draws:
    """Makes the random choices of one update; every glance draws anew, without the batch.

    Reads ``memory`` of the state.
    """
    key_replay, key_slots = jax.random.split(key)
    keys = jax.random.split(key_replay, glances)
    replay, mask = jax.vmap(
        lambda k: reservoir.sample(state.memory, replay_size, k, replace=with_replacement)
    )(keys)
    offered = batch.mask & (batch.clock.first_pass | every_epoch)
    return Draws(replay, mask, reservoir.draw_slots(state.memory, offered, key_slots, rule))


def task_weights(task: Array, mask: Array) -> Array:
    """Weights ``[B]`` that make a sum the sum over tasks of their examples' means."""
    same = (task[:, None] == task[None]) & mask[None]
    return mask / jnp.maximum(jnp.sum(same, axis=1), 1)


def er(
    *,
    lr: Array | float = 0.1,
    capacity: int = 200,
    replay_size: int = 10,
    glances: int = 1,
    balance: Literal["examples", "tasks"] = "examples",
    optimizer: Optimizer = "sgd",
    clip_norm: float | None = None,
    offer: Literal["first-pass", "every-epoch"] = "first-pass",
    reservoir_rule: reservoir.Rule = "textbook",
    with_replacement: bool = False,
    penalty: Penalty | None = None,
) -> Method:
    """Experience replay from a reservoir (Chaudhry et al. 2019, algorithm 1).

    Args:
      lr: step size; an optax optimiser of your own brings its own. May be traced.
      capacity: replay memory, in examples.
      replay_size: replayed examples beside each batch.
      glances: steps on each incoming batch.
      balance: the loss is the mean over examples, or the sum over tasks of their means.
      optimizer: sgd, momentum (0.9), adam, or an ``optax.GradientTransformation``.
      clip_norm: bound of the global norm of the gradient; None disables.
      offer: offer examples to the memory when first seen, or again in every epoch.
      reservoir_rule: textbook, or inclusive as in the reference code (an off-by-one).
      with_replacement: draw each replayed example independently.
      penalty: a regulariser beside the replay, such as ``cljax.ewc(100.0)``.

    Raises:
      UserError: for a count below 1, a rate that is not finite, or an unknown choice.
    """
    options = dict(locals())
    check_positive(capacity=capacity, replay_size=replay_size, glances=glances)
    check_rate(lr=lr)
    check_above_zero(**given(clip_norm=clip_norm))
    check_flag(with_replacement=with_replacement)
    check_penalty(penalty)
    check_known("balance", balance, ("examples", "tasks"))
    check_known("offer", offer, ("first-pass", "every-epoch"))
    check_known("reservoir_rule", reservoir_rule, ("textbook", "inclusive"))
    step = make_optimizer(optimizer, lr)
    every_epoch = offer == "every-epoch"

    def bind(model: Model, spec: Spec) -> Learner:
        loss_fn, network = classification_loss(model, spec), network_of(model, spec)

        def init(key: Array) -> State:
            params, model_state = initial(model, spec, key)
            kept = penalty_state(penalty, params)
            memory = reservoir.init(reservoir.of_stream(spec), capacity)
            return State(params, model_state, step.init(params), kept, memory)

        def update(state: State, batch: Batch, draws: Draws) -> tuple[State, Info]:
            current = Examples(batch.x, batch.y, batch.task)

            def glance(at: Descent, drawn: tuple[Examples, Array]) -> tuple[Descent, Array]:
                replay, replay_mask = drawn
                examples = jax.tree.map(
                    lambda old, new: jnp.concatenate([old.astype(new.dtype), new]), replay, current
                )
                mask = jnp.concatenate([replay_mask, batch.mask])
                tasks = balance == "tasks"
                weights = task_weights(examples.task, mask) if tasks else mean_weights(mask)
                return descend(
                    at, examples, weights, batch, loss_fn=loss_fn, optimizer=step,
                    clip_norm=clip_norm, penalty=penalty, network=network,
                )  # fmt: skip

            after, losses = jax.lax.scan(
                glance, Descent(*state[:4]), (draws.replay, draws.replay_mask)
            )
            offered = batch.mask & (batch.clock.first_pass | every_epoch)
            memory = reservoir.write(state.memory, current, draws.slots, offered)
            return State(*after, memory), Info(jnp.mean(losses))

        return Learner(
            init,
            functools.partial(
                draw,
                glances=glances,
                replay_size=replay_size,
                rule=reservoir_rule,
                with_replacement=with_replacement,
                every_epoch=every_epoch,
            ),
            update,
            {"logits": logits_predictor(model)},
            penalty_phases(penalty, model, spec),
            gradients_per_update=glances,
            examples_per_update=glances * (replay_size + spec.batch_size),
        )

    return Method("er", bind, Needs(boundaries=penalty is not None), options, make=er)
