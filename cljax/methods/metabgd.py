"""Meta-BGD: C-MAML's meta-gradient inside Bayesian gradient descent.

    update(batch):                                        # B examples of the current task
      for each of G glances:
        S = 0;  Q = 0
        for each of N samples:
          eps ~ N(0, I);  phi = mu + sigma * eps          # phi = (theta, alpha)
          bm  = R replayed examples ++ the batch
          theta_0 = theta
          for i in 1..K:                                  # K chunks of the batch, in random order
            theta_i = theta_{i-1} - alpha * clip(grad CE(theta_{i-1}; chunk_i))
            L_i     = CE(theta_i; bm)
          d   = grad_phi mean_i L_i, its part of theta clipped
          S  += B * d / N;  Q += B * d * eps / N
        mu    = mu - eta * sigma^2 * S
        sigma = sigma * sqrt(1 + (sigma Q / 2)^2) - sigma^2 Q / 2          # the old sigma
      the batch is offered to the reservoir once, in its first pass, after sample 1 of glance 1
      drew from it

Symbols: mu ``params`` and ``alpha``, sigma ``params_std`` and ``alpha_std``, eta ``lr``,
alpha_0 ``alpha_init``, G ``glances``, N ``mc_samples``, K ``inner_steps``, R ``replay_size``,
M ``capacity``. B counts the valid examples of the batch. Predictions use mu.

Source: Gupta, Yadav, Paull, "La-MAML: Look-ahead Meta Learning for Continual Learning", NeurIPS
2020 (arXiv:2007.13904), where it is a baseline; Zeno, Golan, Hoffer, Soudry, "Task Agnostic
Continual Learning Using Online Variational Bayes", 2018 (arXiv:1803.10123), for BGD.

Differs from the paper, as its released code does: the inner rates have a mean and a standard
deviation like the parameters (``bayes_alpha``) instead of being constant, and their gradient is
not clipped. Differs from the code: the reservoir rule is the textbook one and replay is without
replacement unless asked; K chunks that leave some empty become fewer steps.

Chunks of padding are no steps, and running statistics are as in La-MAML, once a sample.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import (
    check_above_zero,
    check_flag,
    check_known,
    check_positive,
    check_rate,
    given,
)
from cljax.inner_loop import split
from cljax.losses import LossFn, classification_loss
from cljax.memory import reservoir
from cljax.method import Problem
from cljax.methods import lamaml
from cljax.methods.common import initial, logits_predictor
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
)  # fmt: skip

__all__ = ["Draws", "State", "draw", "meta_bgd", "update"]


class State(NamedTuple):
    """``alpha`` and the standard deviations have the structure and shapes of ``params``."""

    params: Params  # mean of theta
    alpha: Params  # mean of the inner rates
    params_std: Params
    alpha_std: Params  # 0 where the rates are fixed
    model_state: PyTree
    memory: reservoir.Reservoir


class Draws(NamedTuple):
    """Every random choice of one update."""

    params_eps: Params  # leaves [G, N, ...], standard normal
    alpha_eps: Params  # leaves [G, N, ...], standard normal
    order: Array  # [G, N, B] int32, a permutation of the batch for each sample
    replay: Examples  # leaves [G, N, R, ...], contents
    replay_mask: Array  # [G, N, R] bool
    slots: Array  # [B] int32, reservoir slot of each example, M = not stored


def draw(
    state: State,
    batch: Batch,
    key: Array,
    *,
    glances: int,
    mc_samples: int,
    replay_size: int,
    rule: reservoir.Rule = "textbook",
    with_replacement: bool = False,
) -> Draws:
    """Makes the random choices of one update.

    The first sample of the first glance replays from the memory without the batch, all later
    ones from the memory with it.
    """
    key_params, key_alpha, key_replay = jax.random.split(key, 3)
    lead = (glances, mc_samples)
    # La-MAML's draws, with every sample taking the place of a glance.
    source = lamaml.State(
        state.params, state.model_state, state.alpha, state.memory, None, batch.clock.task
    )
    replay = lamaml.LaMAML(
        replay_size=replay_size, glances=glances * mc_samples, reservoir_rule=rule,
        with_replacement=with_replacement,
    )  # fmt: skip
    drawn = replay.draw(
        Problem(None, None), source, batch, key_replay,  # type: ignore[arg-type]
    )  # fmt: skip
    order, replay, mask = jax.tree.map(
        lambda a: a.reshape(*lead, *a.shape[1:]), (drawn.order, drawn.replay, drawn.replay_mask)
    )
    params_eps, alpha_eps = (_normal(k, state.params, lead) for k in (key_params, key_alpha))
    return Draws(params_eps, alpha_eps, order, replay, mask, drawn.slots)


def update(
    state: State,
    batch: Batch,
    draws: Draws,
    *,
    loss_fn: LossFn,
    inner_steps: int,
    lr: Array | float,
    order: int = 2,
    clip_norm: Array | float | None = 2.0,
    inner_clip: Array | float | None = 2.0,
    inner_relu: bool = False,
) -> tuple[State, Info]:
    """G steps of Bayesian gradient descent on a batch, then the batch enters the memory.

    Args:
      loss_fn: see ``cljax.losses.LossFn``.
      inner_steps: K; the batch is cut into chunks of ceil(B/K), the last one smaller.
      lr: step size of the means (eta).
      order: 1 or 2.
      clip_norm: bound of the global L2 norm of the parameters' meta-gradient; None disables.
      inner_clip: bound of each inner gradient element; None disables.
      inner_relu: inner steps use relu(alpha).

    Returns:
      The new state; ``info.loss`` is the mean meta-loss of all samples, in nats.
    """
    current = Examples(batch.x, batch.y, batch.task)
    num_samples = draws.order.shape[1]
    num_valid = jnp.sum(batch.mask)

    def glance(carry: Any, drawn: Any) -> tuple[Any, Array]:
        mean, std, model_state = carry

        def sample(carry: Any, drawn: Any) -> tuple[Any, Array]:
            model_state, slope, curvature = carry
            eps, permutation, replay, replay_mask = drawn
            params, alpha = jax.tree.map(lambda m, s, e: m + s * e, mean, std, eps)
            shuffled = jax.tree.map(lambda a: a[permutation], (current, batch.mask))
            inner, inner_mask = _chunks(shuffled, inner_steps)
            meta, meta_mask = jax.tree.map(
                lambda old, new: jnp.concatenate([old.astype(new.dtype), new]),
                (replay, replay_mask),
                shuffled,
            )
            (loss, model_state), (d_params, d_alpha) = jax.value_and_grad(
                lamaml.meta_loss, argnums=(0, 1), has_aux=True
            )(
                params, alpha, model_state, inner, inner_mask, meta, meta_mask,
                loss_fn=loss_fn, order=order, inner_clip=inner_clip, inner_relu=inner_relu,
            )  # fmt: skip
            d = (tree.clip_norm(d_params, clip_norm), d_alpha)
            # A posterior weighs every example, so gradients are sums over the batch, not means.
            slope = tree.add_scaled(slope, d, num_valid / num_samples)
            d_eps = jax.tree.map(jnp.multiply, d, eps)
            curvature = tree.add_scaled(curvature, d_eps, num_valid / num_samples)
            return (model_state, slope, curvature), loss

        zeros = tree.full_like(mean, 0.0)
        (model_state, slope, curvature), losses = jax.lax.scan(
            sample, (model_state, zeros, zeros), drawn
        )
        mean = jax.tree.map(lambda m, s, d: m - lr * s**2 * d, mean, std, slope)
        std = jax.tree.map(_new_std, std, curvature)
        return (mean, std, model_state), losses

    ((params, alpha), (params_std, alpha_std), model_state), losses = jax.lax.scan(
        glance,
        ((state.params, state.alpha), (state.params_std, state.alpha_std), state.model_state),
        ((draws.params_eps, draws.alpha_eps), draws.order, draws.replay, draws.replay_mask),
    )
    offered = batch.mask & batch.clock.first_pass
    memory = reservoir.write(state.memory, current, draws.slots, offered)
    state = State(params, alpha, params_std, alpha_std, model_state, memory)
    return state, Info(jnp.mean(losses))


def meta_bgd(
    *,
    lr: Array | float = 50.0,
    std_init: Array | float = 0.02,
    mc_samples: int = 2,
    alpha_init: Array | float = 0.1,
    bayes_alpha: bool = True,
    capacity: int = 200,
    replay_size: int = 10,
    glances: int = 3,
    inner_steps: int = 3,
    order: Literal["first", "second"] = "second",
    clip_norm: float | None = 2.0,
    inner_clip: float | None = 2.0,
    inner_relu: bool = False,
    reservoir_rule: reservoir.Rule = "textbook",
    with_replacement: bool = False,
) -> Method:
    """Meta-BGD: Bayesian gradient descent on C-MAML's meta-loss.

    Args:
      lr: step size of the means (eta); a mean moves by lr * std^2 * gradient. May be traced.
      std_init: initial standard deviation of every parameter. May be traced.
      mc_samples: samples of the parameters that each step averages over.
      alpha_init: initial value of every per-parameter inner rate (alpha_0). May be traced.
      bayes_alpha: learn the inner rates like the parameters; else they stay at alpha_init.
      capacity: replay memory, in examples.
      replay_size: replayed examples in each meta-batch.
      glances: steps on each incoming batch.
      inner_steps: chunks the batch is cut into, the last one smaller if it does not divide.
      order: first or second order meta-gradients.
      clip_norm: bound of the global norm of the parameters' meta-gradient; None disables.
      inner_clip: bound of each element of an inner gradient; None disables.
      inner_relu: inner steps use relu(alpha), so that a negative rate does not ascend.
      reservoir_rule: textbook, or inclusive as in the reference code (an off-by-one).
      with_replacement: draw each replayed example independently.

    Raises:
      UserError: for a count below 1, a rate that is not finite, or an option that does not fit.
    """
    options = dict(locals())
    check_positive(
        mc_samples=mc_samples, capacity=capacity, replay_size=replay_size, glances=glances,
        inner_steps=inner_steps,
    )  # fmt: skip
    check_rate(lr=lr, alpha_init=alpha_init)
    check_above_zero(std_init=std_init, **given(clip_norm=clip_norm, inner_clip=inner_clip))
    check_flag(bayes_alpha=bayes_alpha, inner_relu=inner_relu, with_replacement=with_replacement)
    check_known("order", order, ("first", "second"))
    check_known("reservoir_rule", reservoir_rule, ("textbook", "inclusive"))

    def bind(model: Model, spec: Spec) -> Learner:
        def init(key: Array) -> State:
            params, model_state = initial(model, spec, key)
            return State(
                params,
                tree.full_like(params, alpha_init),
                tree.full_like(params, std_init),
                tree.full_like(params, std_init if bayes_alpha else 0.0),
                model_state,
                reservoir.init(reservoir.of_stream(spec), capacity),
            )

        num_steps, _ = _cut(spec.batch_size, inner_steps)
        samples = glances * mc_samples
        return Learner(
            init,
            functools.partial(
                draw, glances=glances, mc_samples=mc_samples, replay_size=replay_size,
                rule=reservoir_rule, with_replacement=with_replacement,
            ),
            functools.partial(
                update, loss_fn=classification_loss(model, spec), inner_steps=inner_steps, lr=lr,
                order=1 if order == "first" else 2, clip_norm=clip_norm, inner_clip=inner_clip,
                inner_relu=inner_relu,
            ),
            {"logits": logits_predictor(model)},
            gradients_per_update=samples * 2 * num_steps,
            examples_per_update=samples
            * (spec.batch_size + num_steps * (replay_size + spec.batch_size)),
        )  # fmt: skip

    return Method("meta-bgd", bind, options=options, make=meta_bgd)


def _new_std(std: Array, curvature: Array) -> Array:
    """The last line of a glance, where sqrt(1 + h^2) - h = exp(-arcsinh h) does not cancel."""
    new = std * jnp.exp(-jnp.arcsinh(std * curvature / 2))
    # Rounding never makes a deviation 0, and one that is 0 (fixed rates) stays so.
    return jnp.maximum(new, jnp.minimum(std, jnp.finfo(std.dtype).tiny))


def _normal(key: Array, like: Params, lead: tuple[int, ...]) -> Params:
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.normal(k, (*lead, *a.shape), a.dtype) for k, a in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def _cut(batch_size: int, inner_steps: int) -> tuple[int, int]:
    """Number and size of the chunks; fewer than ``inner_steps`` where some would be empty."""
    size = -(-batch_size // inner_steps)
    return -(-batch_size // size), size


def _chunks(batch: PyTree, inner_steps: int) -> PyTree:
    """Leaves ``[B, ...]`` as ``[K, ceil(B/K), ...]``; the mask's padding is False."""
    batch_size = jax.tree.leaves(batch)[0].shape[0]
    num_steps, size = _cut(batch_size, inner_steps)
    pad = num_steps * size - batch_size
    padded = jax.tree.map(lambda a: jnp.pad(a, [(0, pad)] + [(0, 0)] * (a.ndim - 1)), batch)
    return split(padded, num_steps)
