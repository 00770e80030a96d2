"""Meta-experience replay: sequential steps on single examples, drawn together by Reptile.

    update(z):                                      # one example at a time
      theta_A = theta
      for each of s sweeps:
        theta_W = theta
        for u in the sweep's sequence of z and R replayed examples:
          theta = theta - lr * clip(grad CE(theta; u))
        theta = theta_W + beta * (theta - theta_W)        # within a sweep
      theta = theta_A + gamma * (theta - theta_A)         # across sweeps
      z is offered to the reservoir

``algorithm="1"``: z comes first, and both Reptile steps. ``"6"``: z comes last, and only the step
within a sweep, by gamma. ``"7"``: one sweep with z at a random place and its loss ``z_scale``
times as large; the stream's first example is only stored.

Symbols: theta ``params``, s ``sweeps``, R ``replay_size``, M ``capacity``, beta ``beta``,
gamma ``gamma``.

Source: Riemer et al., "Learning to Learn without Forgetting by Maximizing Transfer and Minimizing
Interference", ICLR 2019 (arXiv:1810.11910), algorithms 1, 6 and 7, and the released code. A batch
of B examples is B updates one after the other. The code released with La-MAML clips too.
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
from cljax.losses import LossFn, classification_loss
from cljax.memory import reservoir
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
)

__all__ = ["Algorithm", "Draws", "State", "draw", "mer", "update"]

Algorithm = Literal["1", "6", "7"]


class State(NamedTuple):
    """The network and the reservoir of stored examples."""

    params: Params
    model_state: PyTree
    memory: reservoir.Reservoir


class Draws(NamedTuple):
    """Every random choice of one update, in the order of the steps. N = R + 1.

    The replay is drawn from the memory as the batch found it, and from the batch's own examples
    where they have entered since.
    """

    sequence: Examples  # leaves [B, s, N, ...], what each step learns from
    mask: Array  # [B, s, N] bool, False: no step
    scale: Array  # [B, s, N], factor of each step's loss
    slots: Array  # [B] int32, reservoir slot of each example, M = not stored


def draw(
    state: State,
    batch: Batch,
    key: Array,
    *,
    algorithm: Algorithm,
    sweeps: int,
    replay_size: int,
    z_scale: Array | float = 1.0,
    rule: reservoir.Rule = "textbook",
    with_replacement: bool = False,
) -> Draws:
    """Makes the random choices of the updates on a batch: the sequence of every sweep."""
    key_slots, key_examples = jax.random.split(key)
    current = Examples(batch.x, batch.y, batch.task)
    offered = batch.mask & batch.clock.first_pass
    slots = reservoir.draw_slots(state.memory, offered, key_slots, rule)

    def sweep(memory: reservoir.Reservoir, z: Examples, valid: Array, key: Array) -> Any:
        key_replay, key_place = jax.random.split(key)
        replay, mask = reservoir.sample(memory, replay_size, key_replay, replace=with_replacement)
        first = jax.tree.map(
            lambda new, old: jnp.concatenate([new[None], old.astype(new.dtype)]), z, replay
        )
        mask = jnp.concatenate([jnp.ones(1, bool), mask])
        # Where each entry of (z, replay...) stands in the sequence: z is entry 0.
        if algorithm == "1":
            order = jnp.arange(replay_size + 1)
        elif algorithm == "6":
            order = jnp.roll(jnp.arange(replay_size + 1), -1)
        else:
            order = jnp.argsort(jnp.where(mask, jax.random.uniform(key_place, mask.shape), 2.0))
        sequence, mask = jax.tree.map(lambda a: a[order], (first, mask))
        if algorithm == "7":
            mask = mask & (memory.age > 0)
        scale = jnp.where(order == 0, z_scale, 1.0)
        return sequence, mask & valid, scale

    def one(memory: reservoir.Reservoir, entry: Any) -> tuple[reservoir.Reservoir, Any]:
        z, valid, offer, slot, key = entry
        drawn = jax.vmap(lambda k: sweep(memory, z, valid, k))(jax.random.split(key, sweeps))
        single = jax.tree.map(lambda a: a[None], z)
        return reservoir.write(memory, single, slot[None], offer[None]), drawn

    entries = (current, batch.mask, offered, slots, jax.random.split(key_examples, len(slots)))
    if len(slots) == 1:  # the usual case, without a copy of the memory
        drawn = one(state.memory, jax.tree.map(lambda a: a[0], entries))[1]
        drawn = jax.tree.map(lambda a: a[None], drawn)
    else:
        drawn = jax.lax.scan(one, state.memory, entries)[1]
    sequence, mask, scale = drawn
    return Draws(sequence, mask, scale, slots)


def update(
    state: State,
    batch: Batch,
    draws: Draws,
    *,
    loss_fn: LossFn,
    algorithm: Algorithm,
    lr: Array | float,
    beta: Array | float,
    gamma: Array | float,
    clip_norm: Array | float | None = None,
) -> tuple[State, Info]:
    """One update for each example of the batch; ``info.loss`` is the mean loss of all steps."""

    def step(carry: Any, entry: Any) -> tuple[Any, Array]:
        params, model_state = carry
        example, valid, scale = entry
        single = jax.tree.map(lambda a: a[None], example)

        def loss(params: Params) -> tuple[Array, PyTree]:
            losses, model_state_after = loss_fn(params, model_state, single, valid[None])
            return scale * losses[0], model_state_after

        # Outside the mask loss and gradient are 0, and statistics stay.
        (value, model_state), grads = jax.value_and_grad(loss, has_aux=True)(params)
        params = tree.add_scaled(params, tree.clip_norm(grads, clip_norm), -lr)
        return (params, model_state), value

    def towards(start: Params, end: Params, share: Array | float) -> Params:
        return jax.tree.map(lambda a, b: a + share * (b - a), start, end)

    def sweep(carry: Any, entries: Any) -> tuple[Any, Array]:
        (params, model_state), losses = jax.lax.scan(step, carry, entries)
        share = beta if algorithm == "1" else gamma
        return (towards(carry[0], params, share), model_state), losses

    def example(carry: Any, entries: Any) -> tuple[Any, Array]:
        (params, model_state), losses = jax.lax.scan(sweep, carry, entries)
        if algorithm == "1":
            params = towards(carry[0], params, gamma)
        return (params, model_state), losses

    (params, model_state), losses = jax.lax.scan(
        example, (state.params, state.model_state), (draws.sequence, draws.mask, draws.scale)
    )
    offered = batch.mask & batch.clock.first_pass
    examples = Examples(batch.x, batch.y, batch.task)
    memory = reservoir.write(state.memory, examples, draws.slots, offered)
    mean = jnp.sum(losses) / jnp.maximum(jnp.sum(draws.mask), 1)
    return State(params, model_state, memory), Info(mean)


def mer(
    *,
    lr: Array | float = 0.03,
    beta: Array | float = 0.03,
    gamma: Array | float = 1.0,
    sweeps: int = 10,
    capacity: int = 200,
    replay_size: int = 10,
    algorithm: Algorithm = "1",
    z_scale: Array | float = 1.0,
    clip_norm: float | None = None,
    reservoir_rule: reservoir.Rule = "textbook",
    with_replacement: bool = False,
) -> Method:
    """Meta-experience replay: Reptile over sequences of single examples (algorithms 1, 6, 7).

    Args:
      lr: step size on every single example (alpha in the paper). May be traced.
      beta: share of the way that a sweep's Reptile step goes, in algorithm 1. May be traced.
      gamma: share of the way that the outer Reptile step goes. May be traced.
      sweeps: sequences for each incoming example (s); algorithm 7 has one.
      capacity: replay memory, in examples.
      replay_size: replayed examples in each sequence.
      algorithm: of the paper: 1 with both Reptile steps, 6 with one and the example last, 7 with
        the example at a random place, weighed by z_scale.
      z_scale: factor of the incoming example's loss, in algorithm 7. May be traced.
      clip_norm: bound of the global norm of each gradient; None disables.
      reservoir_rule: textbook, or inclusive as in the reference code (an off-by-one).
      with_replacement: draw each replayed example independently.

    Raises:
      UserError: for a count below 1, a value that is not finite, or an unknown choice.
    """
    options = dict(locals())
    check_positive(sweeps=sweeps, capacity=capacity, replay_size=replay_size)
    check_rate(lr=lr, beta=beta, gamma=gamma, z_scale=z_scale)
    check_above_zero(**given(clip_norm=clip_norm))
    check_flag(with_replacement=with_replacement)
    check_known("algorithm", algorithm, ("1", "6", "7"))
    check_known("reservoir_rule", reservoir_rule, ("textbook", "inclusive"))
    num_sweeps = 1 if algorithm == "7" else sweeps

    def bind(model: Model, spec: Spec) -> Learner:
        def init(key: Array) -> State:
            params, model_state = initial(model, spec, key)
            memory = reservoir.init(reservoir.of_stream(spec), capacity)
            return State(params, model_state, memory)

        steps = spec.batch_size * num_sweeps * (replay_size + 1)
        return Learner(
            init,
            functools.partial(
                draw,
                algorithm=algorithm,
                sweeps=num_sweeps,
                replay_size=replay_size,
                z_scale=z_scale if algorithm == "7" else 1.0,
                rule=reservoir_rule,
                with_replacement=with_replacement,
            ),
            functools.partial(
                update,
                loss_fn=classification_loss(model, spec),
                algorithm=algorithm,
                lr=lr,
                beta=beta,
                gamma=gamma,
                clip_norm=clip_norm,
            ),
            {"logits": logits_predictor(model)},
            gradients_per_update=steps,
            examples_per_update=steps,
        )

    return Method("mer", bind, options=options, make=mer)
