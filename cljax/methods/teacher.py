"""A learned update rule that remembers: trained to follow a teacher who still sees the old task.

    task 0:                theta_net learned elsewhere (``cljax.pretrained``);  then, without a rule
                           at hand, the rule is meta-trained on what the stream holds out
    update(batch):         W = W - alpha delta(W, G, tape; theta) G,     the head:  W = W - alpha G

G is the gradient of the batch's cross-entropy, over the outputs of its own task. Old examples are
never seen after task 0: only meta-training sees them, beside held-out new ones.

Symbols: W ``params``, theta ``theta``, (h, c) ``carry``, delta as in ``cljax.update_rules.gate``,
alpha ``lr``, E ``episodes_at_once``, tau, S, N as in ``cljax.update_rules.meta_training``.

Source: Xiong, Ren, Zeng, Urtasun, "Learning to Remember from a Multi-Task Teacher", 2019
(arXiv:1910.04650), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import (
    UserError,
    check_above_zero,
    check_counts,
    check_flag,
    check_known,
    check_positive,
    check_rate,
    given,
)
from cljax.losses import cross_entropy, head_mask, masked_mean
from cljax.methods.common import Descent, initial, logits_predictor
from cljax.methods.pretrained import epochs_for, source_steps
from cljax.methods.sessions import session
from cljax.nets.transfer import convolves
from cljax.optimizers import direction
from cljax.types import (
    Array,
    Batch,
    Info,
    Learner,
    Method,
    Model,
    Needs,
    Output,
    Params,
    Phase,
    Pretraining,
    PyTree,
    Spec,
)
from cljax.update_rules.curriculum import Curriculum, check_curriculum
from cljax.update_rules.episodes import check_stream
from cljax.update_rules.gate import SGD, NormUnit, learned_step, lstm_gate
from cljax.update_rules.meta_training import Course, Sources, Training, phases, start
from cljax.update_rules.stored import load_rule
from cljax.update_rules.windows import Estimator, Pupils

__all__ = ["Draws", "State", "draw", "teacher"]


class State(NamedTuple):
    """``carry`` is the gate's, zeros when task 1 begins; ``training`` is ``()`` with a rule."""

    params: Params
    model_state: PyTree
    carry: PyTree
    theta: PyTree  # of the rule, once it is learned
    training: Training | tuple[()]
    sources: Descent | tuple[()]  # leaves [N, ...]: networks that episodes start from


class Draws(NamedTuple):
    """An update makes no random choice; those of meta-training are ``meta_training.Chance``."""


def draw(state: State, batch: Batch, key: Array) -> Draws:
    """Nothing to draw."""
    return Draws()


def teacher(
    *,
    lr: Array | float = 0.1,
    rule: str | Any = None,
    rule_seed: int = 0,
    hidden: int = 64,
    hidden_norm: int = 32,
    kappa: float = SGD,
    norm_unit: NormUnit = "channel",
    meta_lr: Array | float = 1e-3,
    clip_norm: float | None = None,
    estimator: Estimator = "window",
    order: Literal[1, 2] = 1,
    detach: bool = True,
    remat: bool | None = None,
    episodes_at_once: int = 1,
    old_size: int | None = None,
    checkpoints: int = 0,
    rho: Array | float | None = None,
    target: int = 75,
    threshold: float = 20.0,
    threshold_step: float = 5.0,
    threshold_cap: float = 50.0,
    truncation: int = 5,
    truncation_step: int = 2,
    truncation_cap: int = 17,
    level_every: int = 300,
    longest: int = 500,
    episodes: int = 2000,
    windows: int = 20000,
) -> Method:
    """A gated update rule, learned from a teacher that sees old and new examples together.

    Args:
      lr: step size of student and teacher. May be traced.
      rule: folder of a run that learned a rule, or its theta; None learns one after task 0 on the
        examples that the stream holds out.
      rule_seed: which seed's rule of that folder.
      hidden: units of the LSTMs of kernels.
      hidden_norm: units of the LSTMs of scales and shifts.
      kappa: bound of the multipliers at the start; 1 / tanh(1) starts as plain SGD.
      norm_unit: LSTMs of scales and shifts run for each channel, or once for the whole vector.
      meta_lr: step size of the rule's Adam. May be traced.
      clip_norm: bound of the global norm of the rule's gradient; None disables.
      estimator: window learns once from each truncated window; per-step after every inner step,
        as in algorithm 1.
      order: 2 differentiates through the gradients and activations that the rule sees.
      detach: weights that the rule sees are constants in derivatives.
      remat: recompute inner steps in the backward pass; None: where order is 2.
      episodes_at_once: E, whose gradients are averaged.
      old_size: old examples of each inner step, and as many new ones; None: the batch size.
      checkpoints: networks that episodes start from, one drawn for each: pretrained as the
        stream has it, from first weights of their own; 0: all start from this run's network.
      rho: scale of the loss; None calibrates it.
      target: inner steps after which an untrained rule is to pass the first threshold.
      threshold: tau, the loss at which an episode ends.
      threshold_step: tau grows by this at each level of the curriculum.
      threshold_cap: at most.
      truncation: S, inner steps of a window.
      truncation_step: S grows by this at each level.
      truncation_cap: at most.
      level_every: episodes of a level.
      longest: inner steps of an episode, of each of its parts.
      episodes: N, of meta-training.
      windows: of meta-training at most, should episodes not end.

    Raises:
      UserError: for counts below 1, values that are not finite, a curriculum out of order, an
        unknown choice, a network without a tape, or a rule of another network.
    """
    options = dict(locals())
    check_rate(lr=lr, meta_lr=meta_lr)
    check_above_zero(kappa=kappa, **given(clip_norm=clip_norm, rho=rho))
    check_positive(
        hidden=hidden, hidden_norm=hidden_norm, episodes_at_once=episodes_at_once,
        episodes=episodes, windows=windows, target=target, **given(old_size=old_size),
    )  # fmt: skip
    check_counts(checkpoints=checkpoints, rule_seed=rule_seed)
    check_flag(detach=detach, **given(remat=remat))
    check_known("estimator", estimator, get_args(Estimator))
    check_known("norm_unit", norm_unit, get_args(NormUnit))
    curriculum = Curriculum(
        threshold,
        threshold_step,
        threshold_cap,
        truncation,
        truncation_step,
        truncation_cap,
        level_every,
        longest,
    )
    check_curriculum(curriculum)
    check_positive(order=order)
    if order > 2:
        raise UserError(f"order is {order}, but a meta-gradient is of order 1 or 2.")

    def bind(model: Model, spec: Spec) -> Learner:
        gate = lstm_gate(
            model, spec.example, hidden=hidden, hidden_norm=hidden_norm, kappa=kappa,
            norm_unit=norm_unit,
        )  # fmt: skip
        given = load_rule(rule, rule_seed, gate)
        slow = jax.default_backend() == "cpu" and convolves(model, spec.example)
        pupils = Pupils(
            model, gate, lr, spec.batch_size if old_size is None else old_size, longest, order,
            detach, order == 2 if remat is None else remat, slow,
        )  # fmt: skip
        course = Course(
            pupils, curriculum, _adam(meta_lr, clip_norm), estimator, episodes_at_once, episodes,
            windows,
            target, spec,
        )  # fmt: skip
        nursery = _nursery(model, spec, checkpoints)
        if given is None:
            check_stream("teacher", spec, instead=", or give a trained rule")

        def init(key: Array) -> State:
            params, model_state = initial(model, spec, key)
            if given is not None:
                return State(params, model_state, gate.start(), given, (), ())
            theta = gate.init(jax.random.fold_in(key, 1))
            training = start(course, theta, params, rho)
            sources = nursery.init(jax.random.fold_in(key, 2)) if checkpoints else ()
            return State(params, model_state, gate.start(), theta, training, sources)

        def update(state: State, batch: Batch, draws: Draws) -> tuple[State, Info]:
            def loss(output: Output, batch: Batch) -> Array:
                losses = cross_entropy(output.logits, batch.y, head_mask(spec, batch.task))
                return masked_mean(losses, batch.mask)

            step = learned_step(gate, state.theta, loss, model, lr)
            own = batch._replace(x=tree.blank(batch.x, batch.mask))
            before = state.params, state.carry
            found, carry = step.gradient(*before, own)
            after = step.apply(state.params, carry, found)
            params, carry = tree.select(jnp.any(batch.mask), after, before)
            return state._replace(params=params, carry=carry), Info(found.loss)

        def begin(state: State, task: Array) -> State:
            # Zeros before the first new task; a second one goes on with what the first one left.
            clear = lambda old: jnp.where(task <= 1, jnp.zeros_like(old), old)
            return state._replace(carry=jax.tree.map(clear, state.carry))

        follow: tuple[Phase, ...] = (session(begin),)
        if given is None and checkpoints:
            follow += (
                nursery.phase,
                *phases(course, model, nursery.sources, calibrate=rho is None),
            )
        elif given is None:
            alone = Sources(
                lambda key, num: jnp.zeros(num, jnp.int32), lambda state, source: state.params
            )
            follow += phases(course, model, alone, calibrate=rho is None)
        return Learner(
            init, draw, update, {"logits": logits_predictor(model)}, follow,
            gradients_per_update=1, examples_per_update=spec.batch_size,
            rule=None if given is not None else lambda state: state.theta,
        )  # fmt: skip

    return Method(
        "teacher", bind, Needs(boundaries=True, task_ids_train=True), options, make=teacher
    )


class _Nursery(NamedTuple):
    """Networks pretrained side by side: their beginning, a phase, and how episodes take them."""

    init: Callable[[Array], Descent]
    phase: Phase
    sources: Sources


def _nursery(model: Model, spec: Spec, num: int) -> _Nursery:
    """``num`` networks that learn the first task as the stream's own does, from other weights."""
    how = Pretraining() if spec.pretraining is None else spec.pretraining
    towards = direction(how.optimizer, weight_decay=how.weight_decay)
    learn = source_steps(model, spec, how, towards)

    def init(key: Array) -> Descent:
        def one(key: Array) -> Descent:
            params, model_state = initial(model, spec, key)
            return Descent(params, model_state, towards.init(params), ())

        return jax.vmap(one)(jax.random.split(key, num))

    def update(state: State, batch: Batch, draws: Draws) -> tuple[State, Info]:
        after, losses = jax.vmap(lambda at: learn(at, batch))(state.sources)
        return state._replace(sources=after), Info(jnp.mean(losses))

    phase = Phase("checkpoints", epochs_for(how), draw, update, augment=True)
    sources = Sources(
        lambda key, count: jax.random.randint(key, (count,), 0, num),
        lambda state, source: jax.tree.map(lambda a: a[source], state.sources.params),
    )
    return _Nursery(init, phase, sources)


def _adam(lr: Array | float, clip_norm: float | None) -> Any:
    import optax  # here, so that methods work without it

    adam = optax.adam(lr)
    return adam if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), adam)
