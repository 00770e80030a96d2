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
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import UserError
from cljax.losses import binary_cross_entropy, masked_mean, weighted
from cljax.memory.exemplars import Exemplars
from cljax.method import Cost, Method, Problem, logits_predictor
from cljax.methods.adapted import adapt_key, adapted_predictor, protocols
from cljax.methods.groups.exemplars import ExemplarOptions
from cljax.methods.groups.sessions import SessionOptions
from cljax.methods.incremental import seen_outputs
from cljax.methods.micro_batches import by_task
from cljax.methods.sessions import rate, session
from cljax.nets.masked import masked
from cljax.optimizers import Optimizer
from cljax.options import Count, Natural, Rate
from cljax.types import (
    Array,
    Batch,
    Clock,
    Evaluation,
    Info,
    Model,
    Needs,
    Params,
    Phase,
    Predictor,
    PyTree,
    Variables,
)

__all__ = ["ITAML", "State", "controller"]

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


class ITAML(ExemplarOptions, SessionOptions, Method):
    """iTAML: task-agnostic meta-learning that infers the task before it predicts the class.

    Paper: Rajasegaran et al., CVPR 2020 (arXiv:2003.11652). Pseudo-code and symbols:
    ``cljax.methods.itaml``.

    Example:
        >>> import cljax
        >>> method = cljax.ITAML(lr=0.3)
        >>> run = cljax.run(method, cljax.streams.toy("class"), seeds=1, net="mlp:16", epochs=3)
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    optimizer_at_border: ClassVar[Literal["reset"]] = "reset"

    per_class: ClassVar[None] = None
    capacity_bytes: ClassVar[None] = None

    lr: Rate = 0.01
    """Step size."""
    mode: Mode = "paper"
    """Paper (Algorithm 1), released (what the authors' code computes) or sequential-mean."""
    loss_outputs: LossOutputs = "own"
    """Outputs that a task's loss sees: its own, all seen, or all seen with the rows of the others
    frozen."""
    beta: Rate = 1.0
    """Of the controller; larger ones move less in later tasks."""
    eta_index: EtaIndex = "code"
    """How the controller counts tasks: code, paper or printed."""
    inner_steps: Count = 1
    """Steps on each micro-batch (r)."""
    last_inner_steps: Count | None = None
    """r of the last task's own micro-batches; None is as the others'."""
    optimizer: Optimizer = "sgd"
    """Sgd, momentum, adam, radam, or an ``optax.GradientTransformation``, whose updates' negative,
    its own rate left out, is multiplied by lr."""
    decay: Rate = 0.2
    """By this factor."""
    last_factor: Rate = 1.0
    """Rates of the last task, as a share of the others'."""
    capacity: Count = 2000
    """Exemplars of all classes together."""
    head_combine: Literal["mean", "own"] = "mean"
    """Mean of every parameter over the tasks of the mini-batch, or own for each output's row from
    its own task's model (paper's mode)."""
    optimizer_state: OptimizerState = "per-task"
    """Per-task, which advances where the task is in the mini-batch, shared, which goes on from task
    to task, or fresh each time (paper's mode; else always shared)."""
    log_forward: bool = True
    """Whether the code's logging pass over the whole batch reaches BatchNorm's statistics
    (released; the paper's has nothing else reach them)."""
    algebra: Literal["general", "one-gradient"] = "general"
    """General, or one-gradient for the paper's mode with r = 1 and plain SGD."""
    continuum: Count = 20
    """Test examples known to share one task (p)."""
    adapt_epochs: Natural = 1
    """Epochs of adaptation on a task's exemplars before prediction (b); 0 is none."""
    adapt_lr: Rate = 0.001
    """Its step size."""
    adapt_batch: Count = 64
    """Its batch size."""

    def check(self) -> None:
        super().check()
        mode, loss_outputs = self.mode, self.loss_outputs
        if self.head_combine == "own" and (mode != "paper" or loss_outputs == "seen"):
            raise UserError(
                "head_combine is own, but only in mode=paper, and with loss_outputs own or "
                f"seen-frozen, does one task alone move a row; here they are {mode} and "
                f"{loss_outputs}."
            )
        steps = self.inner_steps == 1 and self.last_inner_steps is None
        plain = self.optimizer == "sgd" and not self.weight_decay and steps
        if self.algebra == "one-gradient" and not (
            plain and mode == "paper" and loss_outputs != "seen-frozen"
        ):
            raise UserError(
                "algebra is one-gradient, but it holds only for mode=paper with inner_steps=1, "
                "optimizer=sgd, no weight decay and loss_outputs own or seen; use algebra=general."
            )

    @property
    def needs(self) -> Needs:
        return super().needs._replace(continuum=self.continuum)

    def fit(self, problem: Problem) -> None:
        super().fit(problem)
        rows = self.loss_outputs == "seen-frozen" or self.head_combine == "own"
        if problem.model.head is None and (self.mode == "paper" or rows):
            raise UserError(
                "itaml freezes outputs' rows in this mode, but this network does not say which "
                "they are; give its Model a head (see cljax.types.Model), or choose mode=released."
            )

    def _new_optimizer(self, problem: Problem, params: Params) -> PyTree:
        if self.mode == "paper" and self.optimizer_state == "fresh":
            return ()
        one = self.opt_state(params)
        if self.mode != "paper" or self.optimizer_state != "per-task":
            return one
        tasks = problem.spec.num_tasks
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (tasks, *a.shape)), one)

    def init(self, problem: Problem, key: Array) -> State:
        params, model_state = problem.variables(key)
        opt_state, exemplars = self._new_optimizer(problem, params), self.no_exemplars(problem)
        return State(params, model_state, opt_state, exemplars, adapt_key(key))

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: tuple[()]
    ) -> tuple[State, Info]:
        """One mini-batch, of tasks 0 to ``batch.clock.task``.

        Returns:
          The new state; ``info.loss`` is the mean over tasks of the first inner step's loss, in
          nats, and ``info.metrics["margin"]`` how far, in logits, the largest output of an
          example's own task is above the largest of other tasks seen, mean over tasks.
        """
        clock, num_tasks = batch.clock, problem.spec.num_tasks
        size = rate(
            clock, self.lr, self.milestones, self.decay, num_tasks=num_tasks,
            last_factor=self.last_factor,
        )  # fmt: skip
        eta = controller(clock, self.beta, num_tasks, self.eta_index)
        step = self._one_gradient if self.algebra == "one-gradient" else self._general
        return step(problem, state, batch, size, eta)

    def _general(
        self, problem: Problem, state: State, batch: Batch, lr: Array, eta: Array
    ) -> tuple[State, Info]:
        """Algorithm 1, in all its modes; ``lr`` [] and ``eta`` [] are those of the moment."""
        (model, spec), base, current = problem, state.params, batch.clock.task
        counts, visit = by_task(batch, spec.num_tasks)
        train = self._inner_loop(problem, base, current, lr)
        resets, zero = self.mode == "paper", jnp.zeros((), jax.tree.leaves(base)[0].dtype)

        def one(task: Array, carry: _Inner) -> _Inner:
            opt_state = self._opt_state_of(task, carry.opt_state, base, lr)
            at = (base if resets else carry.params, carry.model_state, opt_state, (zero, zero))
            params, model_state, opt_state, (value, margin) = visit(
                task, functools.partial(train, task), at
            )
            opt_state = self._with_opt_state(task, carry.opt_state, opt_state)
            moved = carry.moved
            if self.mode != "released":
                add = lambda total, a, b: total + jnp.where(counts[task] > 0, a - b, 0.0)
                moved = jax.tree.map(add, moved, params, base)
            return _Inner(
                params, model_state, opt_state, moved, carry.loss + value, carry.margin + margin
            )

        statistics = state.model_state
        if jax.tree.leaves(statistics) and (resets or self.log_forward):
            _, statistics = masked(model, Variables(base, statistics), batch.x, batch.mask)
        none = () if self.mode == "released" else tree.full_like(base, 0.0)
        start = _Inner(base, statistics, state.opt_state, none, zero, zero)
        inner = jax.lax.fori_loop(0, current + 1, one, start)
        present = jnp.maximum(jnp.sum(counts > 0), 1)
        if self.mode == "released":
            moved = jax.tree.map(jnp.subtract, inner.params, base)
        else:
            # With "own" one task alone moves a row.
            heads = 1.0 if self.head_combine == "own" else 1.0 / present
            moved = _scaled(model, spec.num_classes, inner.moved, 1.0 / present, heads)
        params = tree.add_scaled(base, moved, eta)
        state = state._replace(
            params=params, model_state=inner.model_state, opt_state=inner.opt_state
        )
        return state, Info(inner.loss / present, {"margin": inner.margin / present})

    def _inner_loop(
        self, problem: Problem, base: Params, current: Array, lr: Array
    ) -> Callable[[Array, Batch, Any], Any]:
        """``train(task, micro, at)``: a task's steps on its micro-batch.

        ``at`` is parameters, the network's other state, the optimiser's, and the loss and margin
        of the first step.
        """
        (model, spec), optimizer = problem, self.step(lr)
        owner, seen = jnp.asarray(spec.class_mask), seen_outputs(spec.class_mask, current)
        resets = self.mode == "paper"

        def outputs_of(task: Array) -> Array:
            return owner[task] if self.loss_outputs == "own" else seen

        def loss(
            params: Params, model_state: PyTree, micro: Batch, task: Array
        ) -> tuple[Array, Any]:
            output, after = masked(model, Variables(params, model_state), micro.x, micro.mask)
            targets = jax.nn.one_hot(micro.y, owner.shape[1], dtype=output.logits.dtype)
            losses = binary_cross_entropy(output.logits, targets, outputs_of(task)[None])
            losses = weighted(spec, losses, micro.y)
            margin = _margin(output.logits, owner[task], seen)
            return masked_mean(losses, micro.mask), (after, masked_mean(margin, micro.mask))

        def train(task: Array, micro: Batch, at: Any) -> Any:
            learns = _learning(
                model, base, outputs_of(task), owner[task], self.loss_outputs, resets
            )

            def step(j: Array | int, at: Any) -> Any:
                params, model_state, opt_state, first = at
                grad = jax.value_and_grad(loss, has_aux=True)
                (value, (after, margin)), grads = grad(params, model_state, micro, task)
                updates, opt_state = optimizer.update(_masked(grads, learns), opt_state, params)
                params = jax.tree.map(jnp.add, params, _masked(updates, learns))
                first = jax.tree.map(lambda a, b: jnp.where(j == 0, a, b), (value, margin), first)
                return params, model_state if resets else after, opt_state, first

            if self.last_inner_steps is None and self.inner_steps == 1:
                return step(0, at)
            of_last = (task == current) & (current == spec.num_tasks - 1)
            last = self.inner_steps if self.last_inner_steps is None else self.last_inner_steps
            return jax.lax.fori_loop(0, jnp.where(of_last, last, self.inner_steps), step, at)

        return train

    def _opt_state_of(self, task: Array, opt_state: PyTree, base: Params, lr: Array) -> PyTree:
        """The optimiser's state that a task's loop begins with."""
        if self.mode == "paper" and self.optimizer_state == "per-task":
            # The others stay out of the branches, which would copy them.
            return jax.tree.map(lambda a: a[task], opt_state)
        if self.mode == "paper" and self.optimizer_state == "fresh":
            return self.step(lr).init(base)
        return opt_state

    def _with_opt_state(self, task: Array, opt_state: PyTree, after: PyTree) -> PyTree:
        """The optimiser's state with what a task's loop leaves of it."""
        if self.mode == "paper" and self.optimizer_state == "per-task":
            return jax.tree.map(lambda old, new: old.at[task].set(new), opt_state, after)
        if self.mode == "paper" and self.optimizer_state == "fresh":
            return opt_state
        return after

    def _one_gradient(
        self, problem: Problem, state: State, batch: Batch, lr: Array, eta: Array
    ) -> tuple[State, Info]:
        """``_general`` in the paper's mode with r = 1 and plain SGD, as one gradient.

        All tasks' models start at Phi_base, so their mean is Phi_base less the gradient of
        1/n sum_i L_i, n the tasks in the mini-batch.
        """
        model, spec = problem
        base, owner = state.params, jnp.asarray(spec.class_mask)
        same = batch.task[:, None] == jnp.arange(spec.num_tasks)[None]
        member = batch.mask[:, None] & same  # [B, T]
        counts = jnp.sum(member, axis=0)
        present = jnp.maximum(jnp.sum(counts > 0), 1)
        weights = batch.mask / (present * jnp.maximum(counts, 1)[batch.task])
        seen = seen_outputs(spec.class_mask, batch.clock.task)
        outputs = owner[batch.task] if self.loss_outputs == "own" else seen[None]

        def objective(params: Params) -> tuple[Array, Array]:
            variables = Variables(params, state.model_state)
            if model.grouped is None:
                logits = masked(model, variables, batch.x, batch.mask)[0].logits
            else:
                logits = model.grouped(variables, batch.x, member)[0].logits
            targets = jax.nn.one_hot(batch.y, owner.shape[1], dtype=logits.dtype)
            losses = weighted(spec, binary_cross_entropy(logits, targets, outputs), batch.y)
            margin = jnp.where(batch.mask, _margin(logits, owner[batch.task], seen), 0.0)
            return jnp.sum(jnp.where(batch.mask, losses, 0.0) * weights), jnp.sum(margin * weights)

        (loss, margin), grads = jax.value_and_grad(objective, has_aux=True)(base)
        if self.head_combine == "own":
            grads = _scaled(model, owner.shape[1], grads, 1.0, present)
        params = tree.add_scaled(base, grads, -eta * lr)
        statistics = state.model_state
        if jax.tree.leaves(statistics):
            _, statistics = masked(model, Variables(base, statistics), batch.x, batch.mask)
        return state._replace(params=params, model_state=statistics), Info(loss, {"margin": margin})

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        def begin(state: State, task: Array) -> State:
            return state._replace(opt_state=self._new_optimizer(problem, state.params))

        return (session(begin), *self.choices(problem))

    def predictors(self, problem: Problem) -> Mapping[str, Predictor]:
        adapted = adapted_predictor(
            *problem, epochs=self.adapt_epochs, lr=self.adapt_lr, batch_size=self.adapt_batch
        )
        return {"adapted": adapted, "logits": logits_predictor(problem.model)}

    def evaluations(self, problem: Problem) -> tuple[Evaluation, ...]:
        return protocols(self.continuum)

    def cost(self, problem: Problem) -> Cost:
        return Cost(examples=problem.spec.batch_size * self.inner_steps)


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
