"""A learned update rule that remembers: trained to follow a teacher who still sees the old task.

    task 0:                theta_net learned elsewhere (``cljax.Pretrained``);  then, without a rule
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

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import UserError
from cljax.losses import cross_entropy, head_mask, masked_mean
from cljax.method import Cost, Method, Problem
from cljax.methods.groups.descent import Descent
from cljax.methods.groups.pretraining import epochs_for, optimizer_of, pretraining_of, source_step
from cljax.methods.sessions import session
from cljax.nets.transfer import slow_in_loops
from cljax.options import Bound, Count, Natural, Positive, Rate, StaticRate
from cljax.types import Array, Batch, Info, Needs, Output, Params, Phase, PyTree
from cljax.update_rules import meta_training
from cljax.update_rules.curriculum import Curriculum, check_curriculum
from cljax.update_rules.episodes import check_stream
from cljax.update_rules.gate import SGD, Gate, NormUnit, learned_step, lstm_gate
from cljax.update_rules.meta_training import MetaTraining, MetaTrainingSetup, Sources
from cljax.update_rules.stored import load_rule
from cljax.update_rules.windows import Estimator, StudentTeacher

__all__ = ["State", "Teacher"]


class State(NamedTuple):
    """``carry`` is the gate's, zeros when task 1 begins; ``training`` is ``()`` with a rule."""

    params: Params
    model_state: PyTree
    carry: PyTree
    theta: PyTree  # of the rule, once it is learned
    training: MetaTraining | tuple[()]
    sources: Descent | tuple[()]  # leaves [N, ...]: networks that episodes start from


class Teacher(Method):
    """A gated update rule, learned from a teacher that sees old and new examples together.

    Paper: Xiong et al. 2019 (arXiv:1910.04650), algorithm 1. Pseudo-code and symbols:
    ``cljax.methods.teacher``.

    Example:
        >>> import cljax
        >>> method = cljax.Teacher(hidden=2, episodes=1, truncation=2, truncation_cap=2)
        >>> run = cljax.run(method, cljax.streams.toy("held-out"), seeds=1, net="mlp:16")
        >>> float(run.metric("LA")[0]) > 0.6
        True
    """

    lr: Rate = 0.1
    """Step size of student and teacher."""
    rule: str | Any = None
    """Folder of a run that learned a rule, or its theta; None learns one after task 0 on the
    examples that the stream holds out."""
    rule_seed: Natural = 0
    """Which seed's rule of that folder."""
    hidden: Count = 64
    """Units of the LSTMs of kernels."""
    hidden_norm: Count = 32
    """Units of the LSTMs of scales and shifts."""
    kappa: Bound = SGD
    """Bound of the multipliers at the start; 1 / tanh(1) starts as plain SGD."""
    norm_unit: NormUnit = "channel"
    """LSTMs of scales and shifts run for each channel, or once for the whole vector."""
    meta_lr: Rate = 1e-3
    """Step size of the rule's Adam."""
    clip_norm: Bound | None = None
    """Bound of the global norm of the rule's gradient; None disables."""
    estimator: Estimator = "window"
    """Window learns once from each truncated window; per-step after every inner step, as in
    algorithm 1."""
    order: Count = 1
    """2 differentiates through the gradients and activations that the rule sees."""
    detach: bool = True
    """Weights that the rule sees are constants in derivatives."""
    remat: bool | None = None
    """Recompute inner steps in the backward pass; None: where order is 2."""
    episodes_at_once: Count = 1
    """E, whose gradients are averaged."""
    old_size: Count | None = None
    """Old examples of each inner step, and as many new ones; None: the batch size."""
    checkpoints: Natural = 0
    """Networks that episodes start from, one drawn for each: pretrained as the stream has it, from
    first weights of their own; 0: all start from this run's network."""
    rho: Positive | None = None
    """Scale of the loss; None calibrates it."""
    target: Count = 75
    """Inner steps after which an untrained rule is to pass the first threshold."""
    threshold: Bound = 20.0
    """Tau, the loss at which an episode ends."""
    threshold_step: StaticRate = 5.0
    """Tau grows by this at each level of the curriculum."""
    threshold_cap: Bound = 50.0
    """At most."""
    truncation: Count = 5
    """S, inner steps of a window."""
    truncation_step: Natural = 2
    """S grows by this at each level."""
    truncation_cap: Count = 17
    """At most."""
    level_every: Count = 300
    """Episodes of a level."""
    longest: Count = 500
    """Inner steps of an episode, of each of its parts."""
    episodes: Count = 2000
    """N, of meta-training."""
    windows: Count = 20000
    """Of meta-training at most, should episodes not end."""

    def check(self) -> None:
        check_curriculum(self.curriculum)
        if self.order > 2:
            raise UserError(f"order is {self.order}, but a meta-gradient is of order 1 or 2.")

    @property
    def curriculum(self) -> Curriculum:
        """How tau and S grow."""
        return Curriculum(
            self.threshold, self.threshold_step, self.threshold_cap, self.truncation,
            self.truncation_step, self.truncation_cap, self.level_every, self.longest,
        )  # fmt: skip

    @property
    def needs(self) -> Needs:
        return Needs(boundaries=True, task_ids_train=True)

    @property
    def needs_classes(self) -> str:
        """Episodes are drawn from classes that the stream holds out, with heads of their own."""
        return "practises on classes that the stream holds out"

    @property
    def fixed_loss(self) -> str:
        """Likewise: episodes have the loss of their heads."""
        return self.needs_classes

    @property
    def unweighted(self) -> str:
        """Likewise: a weight is of a class, and episodes draw theirs anew."""
        return self.needs_classes

    def fit(self, problem: Problem) -> None:
        self._given(self._gate(problem))
        if self.rule is None:
            check_stream("teacher", problem.spec, instead=", or give a trained rule")

    def init(self, problem: Problem, key: Array) -> State:
        params, model_state = problem.variables(key)
        gate = self._gate(problem)
        given = self._given(gate)
        if given is not None:
            return State(params, model_state, gate.start(), given, (), ())
        theta = gate.init(jax.random.fold_in(key, 1))
        training = meta_training.start(self._course(problem), theta, params, self.rho)
        sources: Descent | tuple[()] = ()
        if self.checkpoints:
            keys = jax.random.split(jax.random.fold_in(key, 2), self.checkpoints)
            sources = _sources(problem, keys)
        return State(params, model_state, gate.start(), theta, training, sources)

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: tuple[()]
    ) -> tuple[State, Info]:
        def loss(output: Output, batch: Batch) -> Array:
            head = head_mask(problem.spec, batch.task)
            return masked_mean(cross_entropy(output.logits, batch.y, head), batch.mask)

        step = learned_step(self._gate(problem), state.theta, loss, problem.model, self.lr)
        own = batch._replace(x=tree.blank(batch.x, batch.mask))
        before = state.params, state.carry
        gradient, carry = step.gradient(*before, own)
        after = step.apply(state.params, carry, gradient)
        params, carry = tree.select(jnp.any(batch.mask), after, before)
        return state._replace(params=params, carry=carry), Info(gradient.loss)

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        begin, calibrate = session(_begin), self.rho is None
        if self.rule is not None:
            return (begin,)
        course, num = self._course(problem), self.checkpoints
        if not num:
            alone = Sources(
                lambda key, num: jnp.zeros(num, jnp.int32), lambda state, source: state.params
            )
            return (begin, *meta_training.phases(course, problem.model, alone, calibrate=calibrate))
        source_networks = Phase(
            "checkpoints", epochs_for(pretraining_of(problem.spec)), lambda state, batch, key: (),
            functools.partial(_raise_sources, problem), augment=True,
        )  # fmt: skip
        several = Sources(
            lambda key, count: jax.random.randint(key, (count,), 0, num),
            lambda state, source: jax.tree.map(lambda a: a[source], state.sources.params),
        )
        follow = meta_training.phases(course, problem.model, several, calibrate=calibrate)
        return (begin, source_networks, *follow)

    def learned_rule(self, problem: Problem) -> Callable[[PyTree], PyTree] | None:
        return (lambda state: state.theta) if self.rule is None else None

    def cost(self, problem: Problem) -> Cost:
        return Cost(1, problem.spec.batch_size)

    def _gate(self, problem: Problem) -> Gate:
        return lstm_gate(
            problem.model, problem.spec.example, hidden=self.hidden, hidden_norm=self.hidden_norm,
            kappa=self.kappa, norm_unit=self.norm_unit,
        )  # fmt: skip

    def _given(self, gate: Gate) -> PyTree | None:
        """Theta of a rule that is not learned here."""
        return load_rule(self.rule, self.rule_seed, gate)

    def _course(self, problem: Problem) -> MetaTrainingSetup:
        model, spec = problem
        slow = slow_in_loops(model, spec.example)
        pair = StudentTeacher(
            model, self._gate(problem), self.lr,
            spec.batch_size if self.old_size is None else self.old_size, self.longest,
            2 if self.order == 2 else 1, self.detach,
            self.order == 2 if self.remat is None else self.remat, slow,
        )  # fmt: skip
        return MetaTrainingSetup(
            pair, self.curriculum, _adam(self.meta_lr, self.clip_norm), self.estimator,
            self.episodes_at_once, self.episodes, self.windows, self.target, spec,
        )  # fmt: skip


def _begin(state: State, task: Array) -> State:
    # Zeros before the first new task; a second one goes on with what the first one left.
    clear = lambda old: jnp.where(task <= 1, jnp.zeros_like(old), old)
    return state._replace(carry=jax.tree.map(clear, state.carry))


def _sources(problem: Problem, keys: Array) -> Descent:
    """First weights of networks that learn the first task as the stream's own does, one a key."""
    how = pretraining_of(problem.spec)

    def one(key: Array) -> Descent:
        params, model_state = problem.variables(key)
        return Descent(params, model_state, optimizer_of(how).init(params), ())

    return jax.vmap(one)(keys)


def _raise_sources(
    problem: Problem, state: State, batch: Batch, draws: tuple[()]
) -> tuple[State, Info]:
    """A step of pretraining in each of the networks that episodes start from."""
    how = pretraining_of(problem.spec)
    after, losses = jax.vmap(lambda at: source_step(problem, how, at, batch))(state.sources)
    return state._replace(sources=after), Info(jnp.mean(losses))


def _adam(lr: Array | float, clip_norm: float | None) -> Any:
    import optax  # here, so that methods work without it

    adam = optax.adam(lr)
    return adam if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), adam)
