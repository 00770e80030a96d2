"""iTAML: a generic model from the models of each task that a mini-batch holds.

    for each mini-batch B of the task's data and the exemplars of earlier ones:
        Phi_base = Phi
        for each task i of B, in order, with its examples B_i:
            Psi   = Phi_base                                     # paper; else Psi goes on
            r times:  Psi = Opt(Psi, grad L_i(Psi; B_i))
        Phi = eta mean_i Psi_i + (1 - eta) Phi_base              # released: the last Psi alone
    L_i = mean over B_i and the outputs of task i of  BCE(z_u, 1[y = u])
    eta = exp(-beta s / T)

``mode="paper"`` is Algorithm 1; while task i is trained, the rows of other tasks' outputs are
frozen. ``released`` is what the authors' code computes: parameters are not reset between tasks, the
models that it averages are one and the same, and momentum moves foreign rows. ``sequential-mean``
is that code without the aliasing. With r = 1 and plain SGD the paper's mode is one gradient of the
loss in which every task weighs the same (``algebra="one-gradient"``).

Symbols: Phi ``params``, eta the controller, beta ``beta``, r ``inner_steps``, s the task, T their
number, z logits, B_i a micro-batch.

Source: Rajasegaran, Khan, Hayat, Khan, Shah, "iTAML: An Incremental Task-Agnostic Meta-learning
Approach", CVPR 2020 (arXiv:2003.11652), Algorithm 1. Its loss is a sum over examples; here, as in
the code, it is a mean over examples and outputs. ``loss_outputs`` is ours: which outputs a task's
loss sees decides how well tasks are inferred.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from cljax import tree
from cljax.errors import (
    UserError,
    check_counts,
    check_flag,
    check_known,
    check_positive,
    check_rate,
    given,
)
from cljax.losses import binary_cross_entropy, masked_mean
from cljax.memory.exemplars import Exemplars
from cljax.memory.policies import Policy
from cljax.methods.adapted import adapt_key, adapted_predictor, protocols
from cljax.methods.common import initial, logits_predictor
from cljax.methods.incremental import check_single_head, seen_outputs
from cljax.methods.micro import by_task
from cljax.methods.rehearsal import recall, rehearsal
from cljax.methods.sessions import check_milestones, rate, session
from cljax.nets.masked import masked
from cljax.optimizers import Optimizer, Transformation, direction
from cljax.types import (
    Array,
    Batch,
    Clock,
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

__all__ = ["Draws", "State", "controller", "draw", "itaml", "one_gradient", "update"]

Mode: TypeAlias = Literal["paper", "released", "sequential-mean"]
LossOutputs: TypeAlias = Literal["own", "seen", "seen-frozen"]
OptimizerState: TypeAlias = Literal["per-task", "shared", "fresh"]
EtaIndex: TypeAlias = Literal["code", "paper", "printed"]


class State(NamedTuple):
    """``opt_state`` has a leading axis [T] where each task has its own."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    exemplars: Exemplars
    adapt_key: Array  # of the seed's draws in adaptation, see ``cljax.methods.adapted``


class Draws(NamedTuple):
    """An update makes no random choice."""


def draw(state: State, batch: Batch, key: Array) -> Draws:
    """Nothing to draw: orders are the stream's."""
    return Draws()


class _Inner(NamedTuple):
    """What the loop over a mini-batch's tasks carries."""

    params: Params  # Psi
    model_state: PyTree
    opt_state: PyTree
    moved: Params  # sum over tasks of Psi_i - Phi_base, () where the last Psi alone counts
    loss: Array  # sum over tasks
    margin: Array


def controller(
    clock: Clock, beta: Array | float, num_tasks: int, index: EtaIndex = "code"
) -> Array:
    """eta [], how far Phi moves: from 1 at the first task (as the code counts) downwards.

    Args:
      index: ``code`` exp(-beta s / T) with s from 0; ``paper`` s + 1 for s, the text of section
        3.1; ``printed`` Algorithm 1's i / t, whose loop has ended: exp(-beta).
    """
    task = clock.task.astype(jnp.result_type(float))
    share = {"code": task / num_tasks, "paper": (task + 1) / num_tasks, "printed": 1.0}[index]
    return jnp.exp(-beta * share)


def update(
    state: State,
    batch: Batch,
    draws: Draws,
    *,
    model: Model,
    class_mask: np.ndarray,
    optimizer: Transformation,
    lr: Array | float,
    eta: Array | float,
    mode: Mode = "paper",
    loss_outputs: LossOutputs = "own",
    inner_steps: Array | int = 1,
    last_inner_steps: int | None = None,
    head_combine: Literal["mean", "own"] = "mean",
    optimizer_state: OptimizerState = "per-task",
    log_forward: bool = True,
) -> tuple[State, Info]:
    """One mini-batch of Algorithm 1, general in all its choices.

    Args:
      batch: B examples of tasks 0 to ``batch.clock.task``.
      class_mask: [T, C] bool, disjoint rows.
      optimizer: gives directions; the step is ``lr`` times them.
      eta: weight of the tasks' models against Phi_base.
      inner_steps: r. last_inner_steps: r of the last task's own micro-batch.
      head_combine: ``mean`` averages every parameter over the tasks of the mini-batch; ``own``
        takes each output's row from its own task's model (paper's mode).
      optimizer_state: ``per-task`` advances where the task is in the mini-batch, ``shared`` goes
        on from task to task, ``fresh`` is new each time (paper's mode; else always shared).
      log_forward: the whole batch's forward pass, which the code logs accuracy with, reaches
        BatchNorm's running statistics (released mode; the paper's has nothing else reach them).

    Returns:
      The new state; ``info.loss`` is the mean over tasks of the first inner step's loss, in nats,
      and ``info.metrics["margin"]`` how far, in logits, the largest output of an example's own
      task is above the largest of other tasks seen, mean over tasks.
    """
    base, current, owner = state.params, batch.clock.task, jnp.asarray(class_mask)
    num_tasks = len(class_mask)
    counts, visit = by_task(batch, num_tasks)
    seen = seen_outputs(class_mask, current)
    resets, zero = mode == "paper", jnp.zeros((), jax.tree.leaves(base)[0].dtype)

    def outputs_of(task: Array) -> Array:
        return owner[task] if loss_outputs == "own" else seen

    def loss(params: Params, model_state: PyTree, micro: Batch, task: Array) -> tuple[Array, Any]:
        output, after = masked(model, Variables(params, model_state), micro.x, micro.mask)
        targets = jax.nn.one_hot(micro.y, owner.shape[1], dtype=output.logits.dtype)
        losses = binary_cross_entropy(output.logits, targets, outputs_of(task)[None])
        margin = _margin(output.logits, owner[task], seen)
        return masked_mean(losses, micro.mask), (after, masked_mean(margin, micro.mask))

    alone = resets and optimizer_state == "per-task"
    anew = resets and optimizer_state == "fresh"

    def train(task: Array, micro: Batch, at: Any) -> Any:
        """The task's inner loop."""
        learns = _learning(model, base, outputs_of(task), owner[task], loss_outputs, resets)

        def step(j: Array | int, at: Any) -> Any:
            params, model_state, opt_state, first = at
            grad = jax.value_and_grad(loss, has_aux=True)
            (value, (after, margin)), grads = grad(params, model_state, micro, task)
            towards, opt_state = optimizer.update(_masked(grads, learns), opt_state, params)
            params = tree.add_scaled(params, _masked(towards, learns), -jnp.asarray(lr))
            first = jax.tree.map(lambda a, b: jnp.where(j == 0, a, b), (value, margin), first)
            return params, model_state if resets else after, opt_state, first

        if last_inner_steps is None and isinstance(inner_steps, int) and inner_steps == 1:
            return step(0, at)
        own = (task == current) & (current == num_tasks - 1)
        last = inner_steps if last_inner_steps is None else last_inner_steps
        return jax.lax.fori_loop(0, jnp.where(own, last, inner_steps), step, at)

    def one(task: Array, carry: _Inner) -> _Inner:
        opt_state = carry.opt_state
        if alone:  # the others stay out of the branches, which would copy them
            opt_state = jax.tree.map(lambda a: a[task], carry.opt_state)
        elif anew:
            opt_state = optimizer.init(base)
        at = (base if resets else carry.params, carry.model_state, opt_state, (zero, zero))
        params, model_state, opt_state, (value, margin) = visit(
            task, functools.partial(train, task), at
        )
        if alone:
            put = lambda old, new: old.at[task].set(new)
            opt_state = jax.tree.map(put, carry.opt_state, opt_state)
        elif anew:
            opt_state = carry.opt_state
        moved = carry.moved
        if mode != "released":
            add = lambda total, a, b: total + jnp.where(counts[task] > 0, a - b, 0.0)
            moved = jax.tree.map(add, moved, params, base)
        return _Inner(
            params, model_state, opt_state, moved, carry.loss + value, carry.margin + margin
        )

    statistics = state.model_state
    if jax.tree.leaves(statistics) and (resets or log_forward):
        _, statistics = masked(model, Variables(base, statistics), batch.x, batch.mask)
    none = () if mode == "released" else tree.full_like(base, 0.0)
    start = _Inner(base, statistics, state.opt_state, none, zero, zero)
    inner = jax.lax.fori_loop(0, current + 1, one, start)
    present = jnp.maximum(jnp.sum(counts > 0), 1)
    if mode == "released":
        moved = jax.tree.map(jnp.subtract, inner.params, base)
    else:
        heads = 1.0 if head_combine == "own" else 1.0 / present  # one task alone moves a row
        moved = _scaled(model, owner.shape[1], inner.moved, 1.0 / present, heads)
    params = tree.add_scaled(base, moved, jnp.asarray(eta))
    state = state._replace(params=params, model_state=inner.model_state, opt_state=inner.opt_state)
    return state, Info(inner.loss / present, {"margin": inner.margin / present})


def one_gradient(
    state: State,
    batch: Batch,
    draws: Draws,
    *,
    model: Model,
    class_mask: np.ndarray,
    lr: Array | float,
    eta: Array | float,
    loss_outputs: Literal["own", "seen"] = "own",
    head_combine: Literal["mean", "own"] = "mean",
) -> tuple[State, Info]:
    """``update`` in the paper's mode with r = 1 and plain SGD, as one gradient.

    All tasks' models start at Phi_base, so their mean is Phi_base less the gradient of
    1/n sum_i L_i, n the tasks in the mini-batch.
    """
    base, owner = state.params, jnp.asarray(class_mask)
    num_tasks = len(class_mask)
    member = batch.mask[:, None] & (batch.task[:, None] == jnp.arange(num_tasks)[None])  # [B, T]
    counts = jnp.sum(member, axis=0)
    present = jnp.maximum(jnp.sum(counts > 0), 1)
    weights = batch.mask / (present * jnp.maximum(counts, 1)[batch.task])
    seen = seen_outputs(class_mask, batch.clock.task)
    outputs = owner[batch.task] if loss_outputs == "own" else seen[None]

    def objective(params: Params) -> tuple[Array, Array]:
        variables = Variables(params, state.model_state)
        if model.grouped is None:
            logits = masked(model, variables, batch.x, batch.mask)[0].logits
        else:
            logits = model.grouped(variables, batch.x, member)[0].logits
        targets = jax.nn.one_hot(batch.y, owner.shape[1], dtype=logits.dtype)
        losses = binary_cross_entropy(logits, targets, outputs)
        margin = jnp.where(batch.mask, _margin(logits, owner[batch.task], seen), 0.0)
        return jnp.sum(jnp.where(batch.mask, losses, 0.0) * weights), jnp.sum(margin * weights)

    (loss, margin), grads = jax.value_and_grad(objective, has_aux=True)(base)
    if head_combine == "own":
        grads = _scaled(model, owner.shape[1], grads, 1.0, present)
    params = tree.add_scaled(base, grads, -jnp.asarray(eta) * lr)
    statistics = state.model_state
    if jax.tree.leaves(statistics):
        _, statistics = masked(model, Variables(base, statistics), batch.x, batch.mask)
    return state._replace(params=params, model_state=statistics), Info(loss, {"margin": margin})


def itaml(
    *,
    lr: Array | float = 0.01,
    mode: Mode = "paper",
    loss_outputs: LossOutputs = "own",
    beta: Array | float = 1.0,
    eta_index: EtaIndex = "code",
    inner_steps: int = 1,
    last_inner_steps: int | None = None,
    optimizer: Optimizer = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    milestones: Sequence[int] = (),
    decay: Array | float = 0.2,
    last_factor: Array | float = 1.0,
    first_epochs: int | None = None,
    capacity: int = 2000,
    exemplars: Policy = "random",
    head_combine: Literal["mean", "own"] = "mean",
    optimizer_state: OptimizerState = "per-task",
    log_forward: bool = True,
    algebra: Literal["general", "one-gradient"] = "general",
    continuum: int = 20,
    adapt_epochs: int = 1,
    adapt_lr: Array | float = 0.001,
    adapt_batch: int = 64,
) -> Method:
    """iTAML: task-agnostic meta-learning that infers the task before it predicts the class.

    Args:
      lr: step size. May be traced.
      mode: paper (Algorithm 1), released (what the authors' code computes) or sequential-mean.
      loss_outputs: outputs that a task's loss sees: its own, all seen, or all seen with the rows
        of the others frozen.
      beta: of the controller; larger ones move less in later tasks. May be traced.
      eta_index: how the controller counts tasks: code, paper or printed.
      inner_steps: steps on each micro-batch (r).
      last_inner_steps: r of the last task's own micro-batches; None is as the others'.
      optimizer: sgd, momentum, adam, radam, or an ``optax.GradientTransformation``, whose
        updates' negative, its own rate left out, is multiplied by lr.
      momentum: of the optimiser "momentum".
      weight_decay: adds so many parameters to the gradient.
      milestones: epochs at which the rate drops.
      decay: by this factor. May be traced.
      last_factor: rates of the last task, as a share of the others'. May be traced.
      first_epochs: epochs of the first task; None is as many as of the others.
      capacity: exemplars of all classes together.
      exemplars: random, first or herding, or an ``ExemplarPolicy``.
      head_combine: mean, or own for each output's row from its own task's model (paper's mode).
      optimizer_state: per-task, shared or fresh (paper's mode).
      log_forward: whether the code's logging pass reaches BatchNorm's statistics (released).
      algebra: general, or one-gradient for the paper's mode with r = 1 and plain SGD.
      continuum: test examples known to share one task (p).
      adapt_epochs: epochs of adaptation on a task's exemplars before prediction (b); 0 is none.
      adapt_lr: its step size. May be traced.
      adapt_batch: its batch size.

    Raises:
      UserError: for counts below 1, values that are not finite, unknown choices, choices that do
        not go together, or a stream whose tasks share classes.
    """
    options = dict(locals())
    check_positive(
        inner_steps=inner_steps, continuum=continuum, adapt_batch=adapt_batch, capacity=capacity,
        **given(last_inner_steps=last_inner_steps),
    )  # fmt: skip
    check_counts(adapt_epochs=adapt_epochs)
    check_rate(lr=lr, beta=beta, decay=decay, last_factor=last_factor, adapt_lr=adapt_lr)
    check_flag(log_forward=log_forward)
    check_milestones(milestones=milestones)
    for name, value, kind in (
        ("mode", mode, Mode), ("loss_outputs", loss_outputs, LossOutputs),
        ("optimizer_state", optimizer_state, OptimizerState), ("eta_index", eta_index, EtaIndex),
        ("head_combine", head_combine, Literal["mean", "own"]),
        ("algebra", algebra, Literal["general", "one-gradient"]),
    ):  # fmt: skip
        check_known(name, value, get_args(kind))
    towards = direction(optimizer, momentum=momentum, weight_decay=weight_decay)
    _check_together(
        mode, loss_outputs, head_combine, algebra,
        plain=optimizer == "sgd" and not weight_decay and inner_steps == 1
        and last_inner_steps is None,
    )  # fmt: skip
    held = rehearsal(exemplars, capacity, None, None, first_epochs)
    per_task = mode == "paper" and optimizer_state == "per-task"

    def bind(model: Model, spec: Spec) -> Learner:
        check_single_head("itaml", spec)
        budget, num_tasks = held.budget(spec), spec.num_tasks
        if model.head is None and (
            mode == "paper" or loss_outputs == "seen-frozen" or head_combine == "own"
        ):
            raise UserError(
                "itaml freezes outputs' rows in this mode, but this network does not say which "
                "they are; give its Model a head (see cljax.types.Model), or choose mode=released."
            )

        def new_optimizer(params: Params) -> PyTree:
            if mode == "paper" and optimizer_state == "fresh":
                return ()
            one = towards.init(params)
            if not per_task:
                return one
            return jax.tree.map(lambda a: jnp.broadcast_to(a, (num_tasks, *a.shape)), one)

        def init(key: Array) -> State:
            params, model_state = initial(model, spec, key)
            return State(
                params, model_state, new_optimizer(params), held.policy.init(model, spec, budget),
                adapt_key(key),
            )  # fmt: skip

        def step(state: State, batch: Batch, draws: Draws) -> tuple[State, Info]:
            clock = batch.clock
            size = rate(clock, lr, milestones, decay, num_tasks=num_tasks, last_factor=last_factor)
            eta = controller(clock, beta, num_tasks, eta_index)
            shared = {
                "model": model, "class_mask": spec.class_mask, "lr": size, "eta": eta,
                "loss_outputs": loss_outputs, "head_combine": head_combine,
            }  # fmt: skip
            if algebra == "one-gradient":
                return one_gradient(state, batch, draws, **shared)
            return update(
                state, batch, draws, optimizer=towards, mode=mode, inner_steps=inner_steps,
                last_inner_steps=last_inner_steps, optimizer_state=optimizer_state,
                log_forward=log_forward, **shared,
            )  # fmt: skip

        begin = session(lambda state, task: state._replace(opt_state=new_optimizer(state.params)))
        adapted = adapted_predictor(
            model, spec, epochs=adapt_epochs, lr=adapt_lr, batch_size=adapt_batch
        )
        return Learner(
            init,
            draw,
            step,
            {"adapted": adapted, "logits": logits_predictor(model)},
            (begin, *held.policy.phases(model, spec, budget)),
            recall=recall,
            evaluations=protocols(continuum),
            examples_per_update=spec.batch_size * inner_steps,
        )

    needs = Needs(boundaries=True, task_ids_train=True, continuum=continuum, epochs=True)
    return Method("itaml", bind, needs, options, arrange=held.arrange, make=itaml)


def _check_together(
    mode: Mode, loss_outputs: LossOutputs, head_combine: str, algebra: str, *, plain: bool
) -> None:
    if head_combine == "own" and (mode != "paper" or loss_outputs == "seen"):
        raise UserError(
            "head_combine is own, but only in mode=paper, and with loss_outputs own or "
            f"seen-frozen, does one task alone move a row; here they are {mode} and {loss_outputs}."
        )
    if algebra == "one-gradient" and not (
        plain and mode == "paper" and loss_outputs != "seen-frozen"
    ):
        raise UserError(
            "algebra is one-gradient, but it holds only for mode=paper with inner_steps=1, "
            "optimizer=sgd, no weight decay and loss_outputs own or seen; use algebra=general."
        )


def _learning(
    model: Model, params: Params, outputs: Array, own: Array, loss_outputs: str, resets: bool
) -> PyTree | None:
    """Which parameters a task's loop may move; None: all of them."""
    if model.head is None or not (resets or loss_outputs == "seen-frozen"):
        return None
    return model.head(params, outputs if loss_outputs == "seen" else own)


def _masked(grads: Params, learns: PyTree | None) -> Params:
    if learns is None:
        return grads
    return jax.tree.map(lambda g, where: jnp.where(where, g, 0.0), grads, learns)


def _scaled(
    model: Model, outputs: int, moved: Params, body: Array | float, heads: Array | float
) -> Params:
    """``moved`` times ``body``, but the rows of the outputs times ``heads``."""
    if model.head is None:
        return jax.tree.map(lambda a: a * body, moved)
    shared = model.head(moved, jnp.zeros(outputs, bool))
    return jax.tree.map(lambda a, where: a * jnp.where(where, body, heads), moved, shared)


def _margin(logits: Array, own: Array, seen: Array) -> Array:
    """Largest own logit less the largest of other tasks seen [B]; 0 while there are none."""
    own = jnp.broadcast_to(own, logits.shape)
    other = jnp.broadcast_to(seen, logits.shape) & ~own
    largest = lambda where: jnp.max(jnp.where(where, logits, -jnp.inf), axis=-1)
    some = jnp.any(other, axis=-1)
    return jax.lax.stop_gradient(jnp.where(some, largest(own) - largest(other), 0.0))
