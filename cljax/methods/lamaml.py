"""La-MAML, Sync La-MAML and C-MAML: look-ahead meta-updates on a stream.

    update(batch):                                        # B examples of the current task
      for each of G glances:
        bm      = R replayed examples ++ the batch        # the meta-batch, the same for all steps
        theta_0 = theta
        for i in 1..K:                                    # K chunks of the batch, in random order
          theta_i = theta_{i-1} - A(alpha) * grad CE(theta_{i-1}; chunk_i)
          L_i     = CE(theta_i; bm)
        dW, dA  = clip(grad_theta mean_i L_i), clip(grad_alpha mean_i L_i)
        alpha   = alpha - alpha_lr * dA                   # La-MAML, Sync
        theta   = theta - relu(alpha) * dW                # La-MAML: the rates just updated
        theta   = theta - lr * dW                         # Sync, C-MAML
      the batch is offered to the reservoir once, in its first pass, after glance 1 drew from it

Symbols: theta ``params``, alpha ``alpha``, alpha_0 ``alpha_init``, eta ``alpha_lr``, beta ``lr``,
G ``glances``, K ``inner_steps``, R ``replay_size``, M ``capacity``;
A(alpha) is relu(alpha) or alpha.

Source: Gupta, Yadav, Paull, "La-MAML: Look-ahead Meta Learning for Continual Learning", NeurIPS
2020 (arXiv:2007.13904), Algorithms 1 and 2, equations 5 to 8.

Differs from the paper, as its released code does: the meta-loss is the mean over inner steps
(``meta_reduce``), not the last step's; the memory is written in the first pass only; on MNIST
the inner step uses relu(alpha) (``inner_relu``), and K = B single examples. Differs from the
code: the reservoir rule is the textbook one and replay is without replacement unless asked.

Padding is no step: the valid rows of a batch come first in a glance's order, chunks hold B/K rows,
and the mean is over the chunks that hold a valid one. So n valid rows of B give the update of a
batch of n in chunks of B/K.

Under BatchNorm, which no source has, each chunk and each meta-batch is normalised by its own
statistics. The running ones, which predictions use, follow the meta-batch, old and new examples
together, once a glance, as theta_K sees it. The chunks, often of one example, do not reach them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
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
from cljax.factories import variant
from cljax.inner_loop import sgd_step, split, unroll
from cljax.losses import LossFn, classification_loss, masked_mean
from cljax.memory import reservoir
from cljax.methods.common import (
    REDUCTIONS,
    check_penalty,
    initial,
    logits_predictor,
    network_of,
    penalised,
    penalty_phases,
    penalty_state,
)
from cljax.methods.lowrank import low_rank_meta_loss
from cljax.types import (
    Array,
    Batch,
    Examples,
    Info,
    Learner,
    Method,
    Model,
    Needs,
    Network,
    Params,
    Penalty,
    PyTree,
    Spec,
)  # fmt: skip

__all__ = ["Draws", "State", "cmaml", "draw", "draw_order", "lamaml", "meta_loss", "sync_lamaml",
           "update"]  # fmt: skip

Reduce = Literal["mean", "sum", "last"]


class State(NamedTuple):
    """``alpha`` has the structure and shapes of ``params``."""

    params: Params
    model_state: PyTree
    alpha: Params
    memory: reservoir.Reservoir
    old_memory: reservoir.Reservoir | None  # memory when the current task began, if replayed
    task: Array  # [] int32, the task of the last update
    penalty: PyTree = ()  # the penalty's own state, if there is one


class Draws(NamedTuple):
    """Every random choice of one update."""

    order: Array  # [G, B] int32, a permutation of the batch for each glance, padding last
    replay: Examples  # leaves [G, R, ...], contents, so that recorded draws go straight in
    replay_mask: Array  # [G, R] bool
    slots: Array  # [B] int32, reservoir slot of each example, M = not stored


def meta_loss(
    params: Params,
    alpha: Params,
    model_state: PyTree,
    inner: Examples,
    inner_mask: Array,
    meta: Examples,
    meta_mask: Array,
    *,
    loss_fn: LossFn,
    order: int = 1,
    inner_clip: Array | float | None = None,
    inner_relu: bool = True,
    meta_reduce: Reduce = "mean",
    remat: bool = False,
    unroll_steps: int | bool = True,
) -> tuple[Array, PyTree]:
    """Meta-loss of an inner loop with per-parameter rates (equations 5 and 6).

    Differentiate it with respect to ``(params, alpha)``: with ``order=1`` the inner gradients
    are constants, so that its gradients are equation 7's, averaged over the inner steps.

    Args:
      inner: leaves ``[K, B/K, ...]``, one chunk a step, with ``inner_mask [K, B/K]``.
      meta: leaves ``[R + B, ...]``, the meta-batch, with ``meta_mask [R + B]``.
      loss_fn: see ``cljax.losses.LossFn``.

    Returns:
      The loss ``[]`` in nats over the steps that hold a valid example, 0 if none does, and the
      network's state after its pass over the meta-batch behind the last of them.
    """
    steps = jnp.any(inner_mask, axis=1)  # [K]
    meta_mask = meta_mask & jnp.any(steps)  # without a step there is nothing to judge

    def inner_loss(params: Params, chunk: Any) -> Array:
        examples, mask = chunk
        return masked_mean(loss_fn(params, model_state, examples, mask)[0], mask)

    def judged(params: Params) -> tuple[Array, PyTree]:
        losses, after = loss_fn(params, model_state, meta, meta_mask)
        return masked_mean(losses, meta_mask), after

    rates = jax.tree.map(jax.nn.relu, alpha) if inner_relu else alpha
    unrolled = unroll(
        sgd_step(inner_loss, rates, clip=inner_clip),
        params,
        (inner, inner_mask),
        order=order,
        remat=remat,
        unroll_steps=unroll_steps,
        probe_fn=judged,
    )
    losses, states = unrolled.probes
    return REDUCTIONS[meta_reduce](losses, steps), jax.tree.map(lambda a: a[-1], states)


def draw(
    state: State,
    batch: Batch,
    key: Array,
    *,
    glances: int,
    replay_size: int,
    rule: reservoir.Rule = "textbook",
    with_replacement: bool = False,
) -> Draws:
    """Makes the random choices of one update.

    The first glance replays from the memory without the batch, later ones from the memory with
    it (or all from the memory as the task began, where the state holds one).
    """
    key_order, key_replay, key_slots = jax.random.split(key, 3)
    slots = reservoir.draw_slots(state.memory, _offered(batch), key_slots, rule)
    first, later = state.memory, _remember(state.memory, batch, slots)
    if state.old_memory is not None:
        # While the first task lasts there is no older one, and replay is live.
        old = tree.select(state.task == batch.clock.task, state.old_memory, state.memory)
        live = batch.clock.task == 0
        first, later = tree.select(live, first, old), tree.select(live, later, old)

    def replay(memory: reservoir.Reservoir, key: Array) -> tuple[Examples, Array]:
        return reservoir.sample(memory, replay_size, key, replace=with_replacement)

    keys = jax.random.split(key_replay, glances)
    drawn = [replay(first if g == 0 else later, keys[g]) for g in range(glances)]
    examples, mask = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)
    return Draws(draw_order(key_order, glances, batch.mask), examples, mask, slots)


def draw_order(key: Array, glances: int, mask: Array) -> Array:
    """Permutations [G, B] int32 of a batch's rows, those outside ``mask`` [B] last."""
    ranks = jax.random.uniform(key, (glances, mask.shape[0]))
    return jnp.argsort(jnp.where(mask[None], ranks, 2.0), axis=1).astype(jnp.int32)


def update(
    state: State,
    batch: Batch,
    draws: Draws,
    *,
    loss_fn: LossFn,
    inner_steps: int,
    alpha_lr: Array | float | None,
    lr: Array | float | None,
    order: int = 1,
    clip_norm: Array | float | None = 2.0,
    inner_clip: Array | float | None = None,
    inner_relu: bool = True,
    meta_reduce: Reduce = "mean",
    meta_loss_fn: Any = meta_loss,
    penalty: Penalty | None = None,
    network: Callable[[PyTree], Network] | None = None,
) -> tuple[State, Info]:
    """One call of Algorithm 2: G meta-updates on a batch, then the batch enters the memory.

    Args:
      loss_fn: see ``cljax.losses.LossFn``.
      inner_steps: K; the batch is cut into K chunks, in the order of each glance.
      alpha_lr: step size of ``alpha``; None keeps ``alpha`` fixed (C-MAML).
      lr: step size of ``params``; None steps with relu(new alpha) (La-MAML).
      order: 1 or 2.
      clip_norm: bound of the global L2 norms of both meta-gradients, apart; None disables.
      inner_clip: bound of each inner gradient element; None disables.
      penalty: added to the meta-loss of ``params``; needs ``network``, model_state -> Network.

    Returns:
      The new state; ``info.loss`` is the mean meta-loss of the glances, in nats.
    """
    current = Examples(batch.x, batch.y, batch.task)

    def glance(carry: Any, drawn: Any) -> tuple[Any, Array]:
        params, alpha, model_state, kept = carry
        permutation, replay, replay_mask = drawn
        shuffled = jax.tree.map(lambda a: a[permutation], (current, batch.mask))
        inner, inner_mask = split(shuffled, inner_steps)
        # Current examples in the glance's order, as the recorded meta-batches have them.
        meta, meta_mask = jax.tree.map(
            lambda old, new: jnp.concatenate([old.astype(new.dtype), new]),
            (replay, replay_mask),
            shuffled,
        )
        (loss, statistics), (d_params, d_alpha) = jax.value_and_grad(
            meta_loss_fn, argnums=(0, 1), has_aux=True
        )(
            params, alpha, model_state, inner, inner_mask, meta, meta_mask,
            loss_fn=loss_fn, order=order, inner_clip=inner_clip, inner_relu=inner_relu,
            meta_reduce=meta_reduce,
        )  # fmt: skip
        total = d_params
        if penalty is not None:
            assert network is not None
            total = penalised(d_params, penalty, kept, params, batch, network(model_state))
        total, d_alpha = tree.clip_norm(total, clip_norm), tree.clip_norm(d_alpha, clip_norm)
        if alpha_lr is not None:
            alpha = tree.add_scaled(alpha, d_alpha, -alpha_lr)
        if lr is None:
            after = jax.tree.map(lambda p, a, d: p - jax.nn.relu(a) * d, params, alpha, total)
        else:
            after = tree.add_scaled(params, total, -lr)
        if penalty is not None:
            observed = penalty.observe(
                kept, params, d_params, jax.tree.map(jnp.subtract, after, params)
            )
            # On a batch of padding the penalty alone is no step.
            after, kept = tree.select(jnp.any(batch.mask), (after, observed), (params, kept))
        return (after, alpha, statistics, kept), loss

    (params, alpha, model_state, kept), losses = jax.lax.scan(
        glance,
        (state.params, state.alpha, state.model_state, state.penalty),
        (draws.order, draws.replay, draws.replay_mask),
    )
    old_memory = state.old_memory
    if old_memory is not None:
        old_memory = tree.select(batch.clock.task == state.task, old_memory, state.memory)
    memory = _remember(state.memory, batch, draws.slots)
    state = State(params, model_state, alpha, memory, old_memory, batch.clock.task, kept)
    return state, Info(jnp.mean(losses))


def lamaml(
    *,
    alpha_init: Array | float = 0.1,
    alpha_lr: Array | float | None = 0.1,
    lr: Array | float | None = None,
    capacity: int = 200,
    replay_size: int = 10,
    glances: int = 5,
    inner_steps: int | None = None,
    order: Literal["first", "second"] = "first",
    clip_norm: float | None = 2.0,
    inner_clip: float | None = None,
    inner_relu: bool = True,
    meta_reduce: Reduce = "mean",
    replay_source: Literal["live", "old-tasks"] = "live",
    reservoir_rule: reservoir.Rule = "textbook",
    with_replacement: bool = False,
    algebra: Literal["general", "low-rank"] = "general",
    penalty: Penalty | None = None,
) -> Method:
    """La-MAML: learnable per-parameter rates, applied asynchronously (Algorithm 2).

    Args:
      alpha_init: initial value of every per-parameter learning rate (alpha_0). May be traced.
      alpha_lr: step size of the learning rates (eta); None keeps them fixed. May be traced.
      lr: step size of the parameters (beta); None steps with relu(alpha). May be traced.
      capacity: replay memory, in examples.
      replay_size: replayed examples in each meta-batch.
      glances: meta-updates on each incoming batch.
      inner_steps: inner steps of a meta-update, a divisor of the batch; None is one an example.
      order: first or second order meta-gradients.
      clip_norm: bound of the global norm of each meta-gradient; None disables.
      inner_clip: bound of each element of an inner gradient; None disables.
      inner_relu: inner steps use relu(alpha), so that a rate at or below 0 stays there.
      meta_reduce: how the losses after the inner steps make the meta-loss.
      replay_source: the live memory, or its copy from when the task began (old tasks only).
      reservoir_rule: textbook, or inclusive as in the reference code (an off-by-one).
      with_replacement: draw each replayed example independently.
      algebra: low-rank uses that the first layer's one-example gradients are of rank one; the
        same update to rounding, faster; needs first order, one-example steps, no inner clip.
      penalty: a regulariser of the meta-update, such as ``cljax.ewc(100.0)``.

    Raises:
      UserError: for a count below 1, a rate that is not finite, or an option that does not fit.
    """
    options = dict(locals())
    check_positive(capacity=capacity, replay_size=replay_size, glances=glances)
    check_positive(**given(inner_steps=inner_steps))
    check_rate(alpha_init=alpha_init, **given(alpha_lr=alpha_lr, lr=lr))
    check_above_zero(**given(clip_norm=clip_norm, inner_clip=inner_clip))
    check_flag(inner_relu=inner_relu, with_replacement=with_replacement)
    check_penalty(penalty)
    check_known("order", order, ("first", "second"))
    check_known("meta_reduce", meta_reduce, REDUCTIONS)
    check_known("replay_source", replay_source, ("live", "old-tasks"))
    check_known("reservoir_rule", reservoir_rule, ("textbook", "inclusive"))
    check_known("algebra", algebra, ("general", "low-rank"))
    if algebra == "low-rank" and (order != "first" or inner_clip is not None):
        raise UserError(
            f"algebra is low-rank with order={order} and inner_clip={inner_clip}, but it needs "
            "first-order meta-gradients and no inner clipping."
        )

    def bind(model: Model, spec: Spec) -> Learner:
        num_inner_steps = spec.batch_size if inner_steps is None else inner_steps
        if spec.batch_size % num_inner_steps:
            raise UserError(
                f"inner_steps is {num_inner_steps}, which does not divide the batch of "
                f"{spec.batch_size} examples; choose a divisor of the batch size."
            )
        if algebra == "low-rank" and num_inner_steps != spec.batch_size:
            raise UserError(
                f"algebra is low-rank with inner_steps={num_inner_steps}, but it needs one "
                f"example a step, {spec.batch_size} steps here."
            )
        low_rank = algebra == "low-rank"

        def init(key: Array) -> State:
            params, model_state = initial(model, spec, key)
            memory = reservoir.init(reservoir.of_stream(spec), capacity)
            old_memory = memory if replay_source == "old-tasks" else None
            alpha = tree.full_like(params, alpha_init)
            kept, task = penalty_state(penalty, params), jnp.zeros((), jnp.int32)
            return State(params, model_state, alpha, memory, old_memory, task, kept)

        return Learner(
            init,
            functools.partial(
                draw,
                glances=glances,
                replay_size=replay_size,
                rule=reservoir_rule,
                with_replacement=with_replacement,
            ),
            functools.partial(
                update,
                loss_fn=classification_loss(model, spec),
                inner_steps=num_inner_steps,
                alpha_lr=alpha_lr,
                lr=lr,
                order=1 if order == "first" else 2,
                clip_norm=clip_norm,
                inner_clip=inner_clip,
                inner_relu=inner_relu,
                meta_reduce=meta_reduce,
                meta_loss_fn=low_rank_meta_loss(model, spec) if low_rank else meta_loss,
                penalty=penalty,
                network=network_of(model, spec),
            ),
            {"logits": logits_predictor(model)},
            penalty_phases(penalty, model, spec),
            gradients_per_update=glances * 2 * num_inner_steps,
            examples_per_update=glances
            * (spec.batch_size + num_inner_steps * (replay_size + spec.batch_size)),
        )

    return Method("lamaml", bind, Needs(boundaries=penalty is not None), options, make=lamaml)


sync_lamaml = variant(
    lamaml,
    "sync-lamaml",
    "Sync La-MAML: learnable rates in the inner steps, one outer rate (Section 4.3).",
    lr=0.1,
)
cmaml = variant(
    lamaml,
    "cmaml",
    "C-MAML: the same meta-update with one fixed inner and one outer rate (Algorithm 1).",
    lr=0.1,
    fixed={"alpha_lr": None},
)


def _remember(memory: reservoir.Reservoir, batch: Batch, slots: Array) -> reservoir.Reservoir:
    examples = Examples(batch.x, batch.y, batch.task)
    return reservoir.write(memory, examples, slots, _offered(batch))


def _offered(batch: Batch) -> Array:
    return batch.mask & batch.clock.first_pass
