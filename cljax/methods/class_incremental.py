"""What iCaRL, LwF with exemplars, BiC and LUCIR share: a teacher, exemplars, a head that grows.

    before task s:   teacher = theta;  imprint the rows of the new outputs   (optional)
    each epoch:      the examples of D(s) and M(s - 1), shuffled, in batches
    update(batch):   theta = theta - rate * Opt(grad objective(theta; batch, teacher))
    after task s:    M(s) chosen or learned;  epochs of cross-entropy on M(s) alone   (optional)

    imprint:         w_c = (mean over past outputs k of |w_k|) normalise(mean over x of c of f^(x))

f^ are normalised features of the network before the task. What tells the methods apart is what a
subclass of ``ClassIncremental`` says of its objective. With ``freeze`` the rows of past outputs do
not learn. With ``transfer`` the kernels of convolutions learn in the first task, and one scale a
pair of channels after it.

Symbols: theta ``params``, w ``model.rows``, M ``exemplars``, D(s) the examples of task s.

Source: Liu et al., "Mnemonics Training: Multi-Class Incremental Learning without Forgetting",
CVPR 2020 (arXiv:2002.10211), section 4 and the released code, which imprints and freezes for every
method; balanced fine-tuning as after its equation 10, and in Hou et al., CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from cljax.errors import UserError
from cljax.losses import masked_mean, weighted
from cljax.memory.exemplars import epochs_of, rows_of
from cljax.memory.policies import Policy
from cljax.memory.selection import class_steps, features_of
from cljax.method import Method, Problem, logits_predictor
from cljax.methods.groups.exemplars import ExemplarOptions, recall
from cljax.methods.groups.sessions import SessionOptions
from cljax.methods.incremental import (
    Outputs,
    blanked,
    classification,
    outputs_at,
    trainable,
    training,
)
from cljax.methods.nearest import nearest_mean
from cljax.methods.sessions import check_milestones, rate, session
from cljax.nets.cosine import unit
from cljax.nets.transfer import folded, with_scales
from cljax.options import Natural, Rate
from cljax.types import (
    Array,
    Batch,
    Info,
    Output,
    Params,
    Phase,
    Predictor,
    PyTree,
    StepPlan,
    Variables,
)

__all__ = ["ClassIncremental", "State", "Transfer"]

Transfer: TypeAlias = Literal["none", "kept", "folded"]


class State(NamedTuple):
    """``teacher`` is the network when the last task ended, ``own`` what the objective keeps."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    teacher: Variables
    exemplars: PyTree
    own: PyTree


class ClassIncremental(ExemplarOptions, SessionOptions, Method):
    """A class-incremental method with a teacher and exemplars.

    A subclass has an ``objective``; it may keep a state of its own for it (``init_own``,
    ``begin_own``), add phases after a task's data (``stages``), and adjust the logits that
    fine-tuning on exemplars looks at (``adjusted``). With ``transfer`` these see the network with
    its scales, as ``with_transfer(problem)`` has it.
    """

    headline: ClassVar[str] = "logits"
    """The first of its predictors."""

    exemplars: Policy = "herding"
    """Herding, random, first, mnemonics or mnemonics-released, with options after a colon, as in
    mnemonics:inner_steps=5,outer_epochs=10; or an ``ExemplarPolicy``."""
    imprint: bool = False
    """Start the rows of new outputs at their classes' mean features."""
    freeze: bool = False
    """Rows of past outputs do not learn."""
    transfer: Transfer = "none"
    """Weight transfer, which after the first task learns one scale for each pair of a convolution's
    channels instead of its kernel; folded puts scales into kernels as each task begins."""
    balanced_epochs: Natural = 0
    """Passes over the exemplars alone, after they were chosen, from the second task on, with fixed
    statistics of BatchNorm; all outputs seen learn."""
    balanced_lr: Rate = 0.01
    """Step size of these."""
    balanced_milestones: tuple[int, ...] = ()
    """Epochs of these at which the rate drops."""
    mirror: bool = False
    """Class means over the exemplars and their mirror images."""

    def objective(
        self,
        problem: Problem,
        params: Params,
        output: Output,
        old: Output,
        own: PyTree,
        batch: Batch,
        outputs: Outputs,
    ) -> Array:
        """What is minimised, [] in nats, of the network's output and the teacher's on a batch."""
        raise NotImplementedError

    def init_own(self, problem: Problem) -> PyTree:
        """The state's field ``own`` before the first task."""
        return ()

    def begin_own(self, problem: Problem, own: PyTree, task: Array) -> PyTree:
        """The same as ``task`` [] begins."""
        return own

    def stages(self, problem: Problem) -> tuple[Phase, ...]:
        """Phases after a task's data, before its exemplars."""
        return ()

    def adjusted(self, problem: Problem, logits: Array, own: PyTree) -> Array:
        """The logits [B, C] that fine-tuning on exemplars looks at."""
        return logits

    def with_transfer(self, problem: Problem) -> Problem:
        """The problem with the network's scales, if weights are transferred."""
        if self.transfer == "none":
            return problem
        return problem._replace(model=with_scales(problem.model))

    def check(self) -> None:
        super().check()
        check_milestones(balanced_milestones=self.balanced_milestones)

    def fit(self, problem: Problem) -> None:
        super().fit(problem)
        model = problem.model
        if (self.imprint and model.rows is None) or (self.freeze and model.head is None):
            raise UserError(
                f"{self.kind} imprints or freezes rows of the head, but this network does not say "
                "which of its parameters those are; give its Model rows and a head (see "
                "cljax.types.Model)."
            )

    def init(self, problem: Problem, key: Array) -> State:
        problem = self.with_transfer(problem)
        variables = problem.variables(key)
        opt_state, exemplars = self.opt_state(variables.params), self.no_exemplars(problem)
        return State(*variables, opt_state, variables, exemplars, self.init_own(problem))

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: tuple[()]
    ) -> tuple[State, Info]:
        """One gradient step on the batch; ``info.loss`` is in nats, with the distillation."""
        problem, batch = self.with_transfer(problem), blanked(batch)
        model, task = problem.model, batch.clock.task
        outputs = outputs_at(problem.spec.class_mask, task)
        ask = lambda: model.apply(state.teacher, batch.x, False)[0]
        nothing = lambda: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(ask))
        old = jax.lax.cond(task > 0, ask, nothing)  # the first task has no teacher

        def loss(params: Params, output: Output) -> Array:
            return self.objective(problem, params, output, old, state.own, batch, outputs)

        # Rows of outputs to come move only by decay, ours or that of a user's optimiser.
        whose = outputs.own if self.freeze else outputs.seen
        watched = self.freeze or self.weight_decay or not isinstance(self.optimizer, str)
        watching = model if watched else model._replace(head=None)
        learns = trainable(watching, state.params, whose, task)
        state, value = self.descend(state, batch, loss, forward=training(model), learns=learns)
        return state, Info(value)

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        problem = self.with_transfer(problem)

        resets = self.optimizer_at_border == "reset"

        def begin(state: State, task: Array) -> State:
            params = state.params
            if self.transfer == "folded":
                params = jax.lax.cond(task > 0, folded, lambda same: same, params)
            return state._replace(
                params=params,
                opt_state=self.opt_state(params) if resets else state.opt_state,
                teacher=Variables(params, state.model_state),
                own=self.begin_own(problem, state.own, task),
            )

        before = (session(begin), *([self._imprinted(problem)] if self.imprint else []))
        tuned = (self._balanced(problem),) if self.balanced_epochs else ()
        return (*before, *self.stages(problem), *self.choices(problem), *tuned)

    def predictors(self, problem: Problem) -> Mapping[str, Predictor]:
        """The head's logits and the nearest class mean, the headline first."""
        model, spec = self.with_transfer(problem)
        result = {
            "logits": logits_predictor(model),
            "nearest-mean": nearest_mean(model, spec, mirror=self.mirror),
        }
        return {self.headline: result.pop(self.headline), **result}

    def _imprinted(self, problem: Problem) -> Phase:
        """A step a new class: its output's row becomes its mean feature, as long as old ones."""
        (model, spec), budget = problem, self.exemplar_budget(problem.spec)
        assert model.rows is not None
        lens = model.rows

        def plan(task: int, rows: StepPlan) -> StepPlan | None:
            return class_steps(spec, budget, task, rows) if task else None

        def imprint(state: State, batch: Batch, draws: tuple[()]) -> tuple[State, Info]:
            past = outputs_at(spec.class_mask, batch.clock.task).past
            kernel = lens.get(state.params)
            length = masked_mean(jnp.linalg.norm(jnp.where(past[None], kernel, 1.0), axis=0), past)
            variables = Variables(state.params, state.model_state)
            features = unit(features_of(model, spec, variables, batch))
            mean = jnp.sum(jnp.where(batch.mask[:, None], features, 0.0), axis=0)
            label = batch.y[jnp.argmax(batch.mask)]  # of the first valid row
            where = jnp.where(jnp.any(batch.mask), label, kernel.shape[1])  # none: nowhere
            row = (length * unit(mean)).astype(kernel.dtype)
            kernel = kernel.at[:, where].set(row, mode="drop")
            return state._replace(params=lens.set(state.params, kernel)), Info(jnp.zeros(()))

        return Phase("imprint", plan, lambda s, b, k: (), imprint, before=True, stored=True)

    def _balanced(self, problem: Problem) -> Phase:
        """Cross-entropy on the exemplars of all classes seen, in evaluation mode's statistics."""
        (model, spec), budget = problem, self.exemplar_budget(problem.spec)

        def plan(task: int, rows: StepPlan) -> StepPlan | None:
            if task == 0:
                return None
            slots, owner = rows_of(budget, task)
            width = rows.index.shape[1]
            return epochs_of(slots, owner, width, task, self.balanced_epochs, "balanced")

        def forward(variables: Variables, x: PyTree, mask: Array) -> tuple[Output, PyTree]:
            return model.apply(variables, x, False)

        def tune(state: State, batch: Batch, draws: tuple[()]) -> tuple[State, Info]:
            filled = state.exemplars.mask.at[-2 - batch.index].get(mode="clip")
            batch = blanked(batch._replace(mask=batch.mask & filled))
            task, fresh = batch.clock.task, lambda old: self.opt_state(state.params)
            first = batch.clock.step == 0
            state = state._replace(
                opt_state=jax.lax.cond(first, fresh, lambda old: old, state.opt_state)
            )
            seen = outputs_at(spec.class_mask, task).seen

            def loss(params: Params, output: Output) -> Array:
                logits = self.adjusted(problem, output.logits, state.own)
                losses = classification("softmax", logits, batch.y, seen)
                return masked_mean(weighted(spec, losses, batch.y), batch.mask)

            size = rate(batch.clock, self.balanced_lr, self.balanced_milestones, self.decay)
            learns = trainable(model, state.params, seen, task)
            state, value = self.descend(
                state, batch, loss, forward=forward, size=size, learns=learns
            )
            return state, Info(value)

        return Phase("balanced", plan, lambda s, b, k: (), tune, augment=True, recall=recall)
