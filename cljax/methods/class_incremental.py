"""What iCaRL, LwF with exemplars, BiC and LUCIR share: a teacher, exemplars, a head that grows.

    before task s:   teacher = theta;  imprint the rows of the new outputs   (optional)
    each epoch:      the examples of D(s) and M(s - 1), shuffled, in batches
    update(batch):   theta = theta - rate * Opt(grad objective(theta; batch, teacher))
    after task s:    M(s) chosen or learned;  epochs of cross-entropy on M(s) alone   (optional)

    imprint:         w_c = (mean over past outputs k of |w_k|) normalise(mean over x of c of f^(x))

f^ are normalised features of the network before the task. What tells the methods apart is an
``Objective``. With ``freeze`` the rows of past outputs do not learn. With ``transfer`` the kernels
of convolutions learn in the first task, and one scale a pair of channels after it.

Symbols: theta ``params``, w ``model.rows``, M ``exemplars``, D(s) the examples of task s.

Source: Liu et al., "Mnemonics Training: Multi-Class Incremental Learning without Forgetting",
CVPR 2020 (arXiv:2002.10211), section 4 and the released code, which imprints and freezes for every
method; balanced fine-tuning as after its equation 10, and in Hou et al., CVPR 2019.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import UserError, check_counts, check_flag, check_known, check_rate
from cljax.losses import masked_mean
from cljax.memory.exemplars import Budget, epochs_of, rows_of
from cljax.memory.policies import Policy
from cljax.memory.selection import class_steps, features_of
from cljax.methods.common import initial, logits_predictor
from cljax.methods.incremental import (
    Descent,
    Outputs,
    blanked,
    check_single_head,
    classification,
    descend,
    descent,
    outputs_at,
    trainable,
    training,
)
from cljax.methods.nearest import nearest_mean
from cljax.methods.rehearsal import Rehearsal, recall, rehearsal
from cljax.methods.sessions import check_milestones, session
from cljax.nets.cosine import unit
from cljax.nets.transfer import folded, with_scales
from cljax.optimizers import Optimizer
from cljax.streams.base import Stream
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
    Predictor,
    PyTree,
    Spec,
    StepPlan,
    Variables,
)

__all__ = ["Draws", "Objective", "State", "Terms", "Transfer", "both_predictors",
           "class_incremental", "draw", "update"]  # fmt: skip

Transfer: TypeAlias = Literal["none", "kept", "folded"]


class State(NamedTuple):
    """``teacher`` is the network when the last task ended, ``own`` the objective's."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    teacher: Variables
    exemplars: PyTree
    own: PyTree


class Draws(NamedTuple):
    """An update makes no random choice."""


class Terms(NamedTuple):
    """An objective on a network and a stream.

    ``loss(params, output, old, own, batch, outputs) -> []``, in nats, is of the network's output
    and the teacher's on a batch; ``own`` is the state that ``init()`` makes and ``begin(own,
    task)`` prepares before each task. ``phases`` follow a task's data, before its exemplars.
    ``adjusted(logits, own)`` are the logits that fine-tuning on exemplars looks at. The first
    predictor is the headline.
    """

    loss: Callable[[Params, Output, Output, PyTree, Batch, Outputs], Array]
    predictors: dict[str, Predictor]
    init: Callable[[], PyTree] = lambda: ()
    begin: Callable[[PyTree, Array], PyTree] = lambda own, task: own
    phases: tuple[Phase, ...] = ()
    adjusted: Callable[[Array, PyTree], Array] = lambda logits, own: logits


class Objective(NamedTuple):
    """What a class-incremental method is besides what all share.

    ``bind(model, spec, budget) -> Terms`` raises UserError for what it cannot work with;
    ``arrange(stream, held)`` may change what ``Rehearsal.arrange`` gave. ``kept(budget)`` are the
    exemplars that are left where the objective stores examples of its own within the budget.
    """

    bind: Callable[[Model, Spec, Budget], Terms]
    arrange: Callable[[Stream, Rehearsal], Stream] = lambda stream, held: stream
    kept: Callable[[Budget], Budget] = lambda budget: budget
    name: str = "custom"
    options: Mapping[str, Any] = MappingProxyType({})


def draw(state: State, batch: Batch, key: Array) -> Draws:
    """Nothing to draw: orders are the stream's."""
    return Draws()


def update(
    state: State,
    batch: Batch,
    draws: Draws,
    *,
    model: Model,
    class_mask: np.ndarray,
    terms: Terms,
    by: Descent,
    learns: Callable[[Params, Outputs, Array], PyTree | None],
) -> tuple[State, Info]:
    """One gradient step on the batch; ``info.loss`` is in nats, with the distillation."""
    batch, task = blanked(batch), batch.clock.task
    outputs = outputs_at(class_mask, task)
    ask = lambda: model.apply(state.teacher, batch.x, False)[0]
    nothing = lambda: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(ask))
    old = jax.lax.cond(task > 0, ask, nothing)  # the first task has no teacher

    def loss(params: Params, output: Output) -> Array:
        return terms.loss(params, output, old, state.own, batch, outputs)

    allowed = learns(state.params, outputs, task)
    state, value = descend(state, batch, loss, forward=training(model), by=by, learns=allowed)
    return state, Info(value)


def class_incremental(
    *,
    objective: Objective,
    lr: Array | float = 0.1,
    capacity: int | None = 2000,
    per_class: int | None = None,
    capacity_bytes: int | None = None,
    exemplars: Policy = "herding",
    optimizer: Optimizer = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    milestones: Sequence[int] = (),
    decay: Array | float = 0.1,
    first_epochs: int | None = None,
    imprint: bool = False,
    freeze: bool = False,
    transfer: Transfer = "none",
    balanced_epochs: int = 0,
    balanced_lr: Array | float = 0.01,
    balanced_milestones: Sequence[int] = (),
) -> Method:
    """A class-incremental method with a teacher and exemplars, by its objective.

    Args:
      objective: what is minimised, and what goes with it.
      lr: step size. May be traced.
      capacity: exemplars of all classes together; None with per_class or capacity_bytes.
      per_class: exemplars of each class, instead of a total.
      capacity_bytes: all exemplars together in bytes, as the stream stores examples, instead.
      exemplars: herding, random, first, mnemonics or mnemonics-released, with options after a
        colon, as in mnemonics:inner_steps=5,outer_epochs=10; or an ``ExemplarPolicy``.
      optimizer: sgd, momentum, adam, radam, or directions of your own (``optax.scale_by_...``).
      momentum: of the optimiser "momentum".
      weight_decay: adds so many parameters to the gradient.
      milestones: epochs at which the rate drops.
      decay: by this factor. May be traced.
      first_epochs: epochs of the first task; None is as many as of the others.
      imprint: start the rows of new outputs at their classes' mean features.
      freeze: rows of past outputs do not learn.
      transfer: weight transfer, which after the first task learns one scale for each pair of a
        convolution's channels instead of its kernel; folded puts scales into kernels as each
        task begins.
      balanced_epochs: passes over the exemplars alone, after they were chosen, from the second
        task on, with fixed statistics of BatchNorm; all outputs seen learn.
      balanced_lr: step size of these. May be traced.
      balanced_milestones: epochs of these at which the rate drops.

    Raises:
      UserError: for counts below 1, values that are not finite, unknown choices, a network that
        lacks what an option needs, or a stream whose tasks share classes.
    """
    options = dict(locals())
    check_known("transfer", transfer, get_args(Transfer))
    check_counts(balanced_epochs=balanced_epochs)
    check_flag(imprint=imprint, freeze=freeze)
    held = rehearsal(exemplars, capacity, per_class, capacity_bytes, first_epochs)
    shared: dict[str, Any] = {
        "momentum": momentum, "weight_decay": weight_decay, "decay": decay
    }  # fmt: skip
    by = descent(optimizer, lr=lr, milestones=milestones, **shared)
    check_rate(balanced_lr=balanced_lr)
    check_milestones(balanced_milestones=balanced_milestones)
    slowly = descent(optimizer, lr=balanced_lr, milestones=balanced_milestones, **shared)
    name = objective.name

    def bind(model: Model, spec: Spec) -> Learner:
        check_single_head(name, spec)
        if transfer != "none":
            model = with_scales(model)
        if (imprint and model.rows is None) or (freeze and model.head is None):
            raise UserError(
                f"{name} imprints or freezes rows of the head, but this network does not say which "
                "of its parameters those are; give its Model rows and a head (see "
                "cljax.types.Model)."
            )
        budget = objective.kept(held.budget(spec))
        terms = objective.bind(model, spec, budget)

        def init(key: Array) -> State:
            variables = initial(model, spec, key)
            opt_state = by.optimizer.init(variables.params)
            kept = held.policy.init(model, spec, budget)
            return State(*variables, opt_state, variables, kept, terms.init())

        def begin(state: State, task: Array) -> State:
            params = state.params
            if transfer == "folded":
                params = jax.lax.cond(task > 0, folded, lambda same: same, params)
            return state._replace(
                params=params,
                opt_state=by.optimizer.init(params),
                teacher=Variables(params, state.model_state),
                own=terms.begin(state.own, task),
            )

        def learns(params: Params, outputs: Outputs, task: Array) -> PyTree | None:
            # Rows of outputs to come move only by decay, ours or that of a user's directions.
            whose = outputs.own if freeze else outputs.seen
            watched = freeze or weight_decay or not isinstance(optimizer, str)
            return trainable(model if watched else model._replace(head=None), params, whose, task)

        phases = [session(begin)]
        phases += [_imprinted(model, spec, budget)] if imprint else []
        phases += terms.phases
        phases += held.policy.phases(model, spec, budget)
        if balanced_epochs:
            phases.append(_balanced(model, spec, budget, terms, slowly, balanced_epochs))
        return Learner(
            init,
            draw,
            functools.partial(
                update, model=model, class_mask=spec.class_mask, terms=terms, by=by, learns=learns
            ),
            terms.predictors,
            tuple(phases),
            recall=recall,
            gradients_per_update=1,
            examples_per_update=spec.batch_size,
        )  # fmt: skip

    def arrange(stream: Stream) -> Stream:
        return objective.arrange(held.arrange(stream), held)

    needs = Needs(boundaries=True, task_ids_train=True, epochs=True)
    return Method(name, bind, needs, options, arrange=arrange, make=class_incremental)


def both_predictors(
    model: Model, spec: Spec, *, headline: str = "logits", mirror: bool = False
) -> dict[str, Predictor]:
    """The head's logits and the nearest class mean, the headline first."""
    found = {
        "logits": logits_predictor(model),
        "nearest-mean": nearest_mean(model, spec, mirror=mirror),
    }
    return {headline: found.pop(headline), **found}


def _imprinted(model: Model, spec: Spec, budget: Budget) -> Phase:
    """A step a new class: its output's row becomes its mean feature, as long as old rows are."""
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


def _balanced(
    model: Model, spec: Spec, budget: Budget, terms: Terms, by: Descent, epochs: int
) -> Phase:
    """Cross-entropy on the exemplars of all classes seen, in evaluation mode's statistics."""

    def plan(task: int, rows: StepPlan) -> StepPlan | None:
        if task == 0:
            return None
        slots, owner = rows_of(budget, task)
        return epochs_of(slots, owner, rows.index.shape[1], task, epochs, "balanced")

    def forward(variables: Variables, x: PyTree, mask: Array) -> tuple[Output, PyTree]:
        return model.apply(variables, x, False)

    def tune(state: State, batch: Batch, draws: tuple[()]) -> tuple[State, Info]:
        filled = state.exemplars.mask.at[-2 - batch.index].get(mode="clip")
        batch = blanked(batch._replace(mask=batch.mask & filled))
        task, fresh = batch.clock.task, lambda old: by.optimizer.init(state.params)
        state = state._replace(
            opt_state=jax.lax.cond(batch.clock.step == 0, fresh, lambda old: old, state.opt_state)
        )
        seen = outputs_at(spec.class_mask, task).seen

        def loss(params: Params, output: Output) -> Array:
            logits = terms.adjusted(output.logits, state.own)
            return masked_mean(classification("softmax", logits, batch.y, seen), batch.mask)

        learns = trainable(model, state.params, seen, task)
        state, value = descend(state, batch, loss, forward=forward, by=by, learns=learns)
        return state, Info(value)

    return Phase("balanced", plan, lambda s, b, k: (), tune, augment=True, recall=recall)
