"""La-ER: experience replay whose per-parameter rates are learned by look-ahead.

    update(batch):
      for each of G glances:
        bm      = R replayed examples ++ the batch
        theta_K = K inner steps from theta, rates alpha       # as La-MAML, first order
        alpha   = alpha - alpha_lr * clip(grad_alpha CE(theta_K; bm))
        theta   = theta - relu(alpha) * clip(grad CE(theta; bm))     # at the weights before them
      the batch is offered to the reservoir

Symbols: theta ``params``, alpha ``alpha``, alpha_0 ``alpha_init``, eta ``alpha_lr``,
G ``glances``, K ``inner_steps``, R ``replay_size``, M ``capacity``.

Source: Gupta, Yadav, Paull, "La-MAML", NeurIPS 2020 (arXiv:2007.13904), section 5.2, the ablation
named La-ER, and its released code: the last inner step's loss alone, raw rates and clipped
gradient elements in the inner steps, and (``offer="every-epoch"``) examples offered again in
every epoch.

Padding is no step, as in La-MAML. Under BatchNorm the running statistics follow bm at theta; the
look-ahead does not reach them.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import (
    UserError,
    check_above_zero,
    check_flag,
    check_known,
    check_positive,
    check_rate,
    given,
)
from cljax.inner_loop import split
from cljax.losses import LossFn, classification_loss, masked_mean
from cljax.memory import reservoir
from cljax.methods import er
from cljax.methods.common import initial, logits_predictor
from cljax.methods.lamaml import Draws, draw_order, meta_loss
from cljax.types import (
    Array,
    Batch,
    Examples,
    Info,
    Learner,
    Method,
    Model,
    Params,
    PyTree,
    Spec,
)

__all__ = ["Draws", "State", "draw", "la_er", "update"]


class State(NamedTuple):
    """``alpha`` has the structure and shapes of ``params``."""

    params: Params
    model_state: PyTree
    alpha: Params
    memory: reservoir.Reservoir


def draw(state: State, batch: Batch, key: Array, *, glances: int, **options: Any) -> Draws:
    """Makes the random choices of one update: those of ``er.draw``, and an order a glance."""
    key_order, key_rest = jax.random.split(key)
    drawn = er.draw(state, batch, key_rest, glances=glances, **options)
    return Draws(draw_order(key_order, glances, batch.mask), *drawn)


def update(
    state: State,
    batch: Batch,
    draws: Draws,
    *,
    loss_fn: LossFn,
    inner_steps: int,
    alpha_lr: Array | float,
    clip_norm: Array | float | None = 2.0,
    inner_clip: Array | float | None = 2.0,
    every_epoch: bool = False,
) -> tuple[State, Info]:
    """G glances at a batch, then the batch enters the memory; see the module.

    ``info.loss`` is the mean over glances of the loss at the weights before each, in nats.
    """
    current = Examples(batch.x, batch.y, batch.task)

    def glance(carry: Any, drawn: Any) -> tuple[Any, Array]:
        params, alpha, model_state = carry
        permutation, replay, replay_mask = drawn
        shuffled = jax.tree.map(lambda a: a[permutation], (current, batch.mask))
        inner, inner_mask = split(shuffled, inner_steps)
        meta, meta_mask = jax.tree.map(
            lambda old, new: jnp.concatenate([old.astype(new.dtype), new]),
            (replay, replay_mask),
            shuffled,
        )
        meta_mask = meta_mask & jnp.any(batch.mask)  # replay alone is no step
        d_alpha = jax.grad(
            lambda alpha: meta_loss(
                params, alpha, model_state, inner, inner_mask, meta, meta_mask, loss_fn=loss_fn,
                order=1, inner_clip=inner_clip, inner_relu=False, meta_reduce="last",
            )[0]
        )(alpha)  # fmt: skip
        alpha = tree.add_scaled(alpha, tree.clip_norm(d_alpha, clip_norm), -alpha_lr)

        def replayed(params: Params) -> tuple[Array, PyTree]:
            losses, model_state_after = loss_fn(params, model_state, meta, meta_mask)
            return masked_mean(losses, meta_mask), model_state_after

        (loss, model_state), d_params = jax.value_and_grad(replayed, has_aux=True)(params)
        d_params = tree.clip_norm(d_params, clip_norm)
        params = jax.tree.map(lambda p, a, d: p - jax.nn.relu(a) * d, params, alpha, d_params)
        return (params, alpha, model_state), loss

    (params, alpha, model_state), losses = jax.lax.scan(
        glance,
        (state.params, state.alpha, state.model_state),
        (draws.order, draws.replay, draws.replay_mask),
    )
    offered = batch.mask & (batch.clock.first_pass | every_epoch)
    memory = reservoir.write(state.memory, current, draws.slots, offered)
    return State(params, model_state, alpha, memory), Info(jnp.mean(losses))


def la_er(
    *,
    alpha_init: Array | float = 0.1,
    alpha_lr: Array | float = 0.1,
    capacity: int = 200,
    replay_size: int = 10,
    glances: int = 1,
    inner_steps: int | None = None,
    clip_norm: float | None = 2.0,
    inner_clip: float | None = 2.0,
    offer: Literal["first-pass", "every-epoch"] = "first-pass",
    reservoir_rule: reservoir.Rule = "textbook",
    with_replacement: bool = False,
) -> Method:
    """La-ER: replay with per-parameter rates that are learned by look-ahead.

    Args:
      alpha_init: initial value of every per-parameter learning rate (alpha_0). May be traced.
      alpha_lr: step size of the learning rates (eta). May be traced.
      capacity: replay memory, in examples.
      replay_size: replayed examples beside each batch.
      glances: updates on each incoming batch.
      inner_steps: look-ahead steps, a divisor of the batch; None is one an example.
      clip_norm: bound of the global norm of both gradients; None disables.
      inner_clip: bound of each element of an inner gradient; None disables.
      offer: offer examples to the memory when first seen, or again in every epoch.
      reservoir_rule: textbook, or inclusive as in the reference code (an off-by-one).
      with_replacement: draw each replayed example independently.

    Raises:
      UserError: for a count below 1, a rate that is not finite, or an unknown choice.
    """
    options = dict(locals())
    check_positive(capacity=capacity, replay_size=replay_size, glances=glances)
    check_positive(**given(inner_steps=inner_steps))
    check_rate(alpha_init=alpha_init, alpha_lr=alpha_lr)
    check_above_zero(**given(clip_norm=clip_norm, inner_clip=inner_clip))
    check_flag(with_replacement=with_replacement)
    check_known("offer", offer, ("first-pass", "every-epoch"))
    check_known("reservoir_rule", reservoir_rule, ("textbook", "inclusive"))
    every_epoch = offer == "every-epoch"

    def bind(model: Model, spec: Spec) -> Learner:
        num_inner_steps = spec.batch_size if inner_steps is None else inner_steps
        if spec.batch_size % num_inner_steps:
            raise UserError(
                f"inner_steps is {num_inner_steps}, which does not divide the batch of "
                f"{spec.batch_size} examples; choose a divisor of the batch size."
            )

        def init(key: Array) -> State:
            params, model_state = initial(model, spec, key)
            memory = reservoir.init(reservoir.of_stream(spec), capacity)
            return State(params, model_state, tree.full_like(params, alpha_init), memory)

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
            functools.partial(
                update,
                loss_fn=classification_loss(model, spec),
                inner_steps=num_inner_steps,
                alpha_lr=alpha_lr,
                clip_norm=clip_norm,
                inner_clip=inner_clip,
                every_epoch=every_epoch,
            ),
            {"logits": logits_predictor(model)},
            gradients_per_update=glances * (num_inner_steps + 2),
            examples_per_update=glances * (2 * replay_size + 3 * spec.batch_size),
        )

    return Method("la-er", bind, options=options, make=la_er)
