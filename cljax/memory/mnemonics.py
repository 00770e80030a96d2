"""Mnemonics: exemplars learned by gradients through the training of a temporary network on them.

    new classes, after task s; V a batch of D(s):
        theta' = theta;  for i = 1..T:  theta' = theta' - alpha grad L(theta'; E_i)
        E      = E - beta grad_E L(theta'(E); V)
    old classes, split in folds A, B, ... of each class's exemplars; folds take turns f:
        V is a batch of the other folds, as they are by now, or as they were when the round of
        turns began;  E is fold f;  as above

E_i holds a few exemplars of every class, in turn. L is cross-entropy over the phase's own outputs
(or all seen), with BatchNorm's running statistics (in the inner steps, or the batch's). theta' is
thrown away, with its statistics. beta halves every few epochs. The gradient goes through all T
steps, through the last few, or is that of the implicit function theorem at theta'; T = 1 aligns the
gradients of E and V.

Exemplars start as policies of ``selection`` choose them, and are rounded to the stored type when a
phase ends. What ``learned`` says of units and projection holds here.

Symbols: theta ``params``, E ``pixels``, T ``inner_steps``, alpha ``inner_lr``, beta ``lr``.

Source: Liu et al., "Mnemonics Training: Multi-Class Incremental Learning without Forgetting",
CVPR 2020 (arXiv:2002.10211), equations 7 to 10. Differs from it or decides what it leaves open:
T = 20 steps, the i-th with the i-th exemplar of every class (the text says both "a few" and 50
epochs); momentum 0.9; new exemplars are judged by the task's own images (equation 7a, not 4b).
The authors' released code has no inner loop: see ``class_means``.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import jax.numpy as jnp
import numpy as np

from cljax.errors import (
    UserError,
    check_flag,
    check_known,
    check_positive,
    check_rate,
    check_share,
    given,
)
from cljax.memory.bilevel import Bilevel, Gradient, Inner, Judged, Norm, outer_gradient
from cljax.memory.exemplars import Budget
from cljax.memory.learned import Learned, begin, empty, finish, moved, shown
from cljax.memory.selection import SELECTIONS, Selection
from cljax.memory.turns import Course, Turn, geometry_of, learnable, new_phases, old_phase
from cljax.types import Array, Batch, ExemplarPolicy, Info, Model, Phase, PyTree, Spec, Variables

__all__ = ["mnemonics"]

Begin: TypeAlias = Literal["trained", "fresh"]
Turns: TypeAlias = Literal["sequential", "simultaneous"]


def mnemonics(
    *,
    start: Selection = "random",
    new: bool = True,
    old: bool = True,
    outer_epochs: int = 50,
    lr: Array | float = 0.01,
    momentum: Array | float = 0.9,
    halve_every: int = 10,
    normalise: bool = False,
    inner_steps: int = 20,
    inner_images: int = 1,
    inner_lr: Array | float = 0.01,
    inner_params: Inner = "all",
    inner_start: Begin = "trained",
    inner_norm: Norm = "frozen",
    gradient: Gradient = "unrolled",
    last: int | None = None,
    damping: Array | float = 1.0,
    solver_steps: int = 10,
    validation: Literal["new", "all"] = "new",
    outputs: Literal["own", "all"] = "own",
    folds: int = 2,
    turns: Turns = "sequential",
    old_steps: int | None = None,
    real: float = 0.0,
    rounding: Literal["nearest", "none"] = "nearest",
    remat: bool | None = None,
) -> ExemplarPolicy:
    """Exemplars learned through unrolled training, for any method that keeps exemplars.

    Args:
      start: how they are chosen: random (the paper), first or herding (its released code).
      new: learn those of new classes. old: adjust those of old classes, after each later task.
      outer_epochs: passes over the validation examples in either phase.
      lr: step size in normalised pixels. May be traced.
      momentum: of these steps. May be traced.
      halve_every: epochs after which the step size halves.
      normalise: scale each exemplar's gradient to mean square 1.
      inner_steps: T for new exemplars.
      inner_images: exemplars of each class in an inner step.
      inner_lr: step size of the inner loop. May be traced.
      inner_params: what it moves: all that learns, or the head.
      inner_start: where it starts: at the trained network (the paper), or at fresh initial
        weights, other ones at every step, as dataset distillation does (Wang et al.,
        arXiv:1811.10959), which needs a longer loop with larger steps.
      inner_norm: BatchNorm's statistics in it: frozen, the running ones it starts with; or batch,
        those of each step's own exemplars, while the validation loss keeps to the running ones.
      gradient: unrolled or implicit.
      last: inner steps that the unrolled gradient goes through; None for all.
      damping: added to the Hessian of the implicit gradient. May be traced.
      solver_steps: of conjugate gradients, for it.
      validation: of new exemplars, the task's own images, or those and the old exemplars.
      outputs: that compete: the new (old) classes' own; or all seen, where the inner steps of new
        ones also hold the old exemplars, as they are.
      folds: of each old class's exemplars.
      turns: sequential, each fold judged by the others as they are by now; or simultaneous, as they
        were when the round of turns began, for one more copy of the exemplars as floats.
      old_steps: T for old exemplars; None for as many as go once through a fold.
      real: share of each class's exemplars, the last ones, that stay as they were chosen.
      rounding: nearest stores the type that the stream does; none stores floats, four times as
        large as bytes.
      remat: recompute inner steps in the backward pass; None does so on accelerators.

    Raises:
      UserError: for counts below 1, values that are not finite, or unknown choices; when a run
        begins, for budgets with fewer exemplars a class than folds.
    """
    check_known("start", start, SELECTIONS)
    for label, value, choices in (
        ("inner_params", inner_params, get_args(Inner)),
        ("inner_start", inner_start, get_args(Begin)),
        ("inner_norm", inner_norm, get_args(Norm)),
        ("gradient", gradient, get_args(Gradient)),
        ("validation", validation, ("new", "all")),
        ("outputs", outputs, ("own", "all")),
        ("turns", turns, get_args(Turns)),
        ("rounding", rounding, ("nearest", "none")),
    ):
        check_known(label, value, choices)
    check_positive(
        outer_epochs=outer_epochs, halve_every=halve_every, inner_steps=inner_steps,
        inner_images=inner_images, solver_steps=solver_steps,
    )  # fmt: skip
    check_rate(lr=lr, inner_lr=inner_lr, damping=damping)
    check_share(momentum=momentum, real=real)
    check_positive(folds=folds, **given(old_steps=old_steps, last=last))
    check_flag(new=new, old=old, normalise=normalise, **given(remat=remat))
    if validation == "all" and outputs == "own":
        raise UserError(
            "validation is all, but outputs is own, which leaves out the labels of old exemplars; "
            "choose outputs=all."
        )
    if inner_norm == "batch" and gradient == "implicit":
        raise UserError(
            "inner_norm is batch, but the implicit gradient sees all inner batches as one, whose "
            "statistics are not theirs; choose inner_norm=frozen or gradient=unrolled."
        )
    if folds < 2:
        raise UserError(f"folds is {folds}, but old exemplars are split in at least 2.")
    if real == 1:
        raise UserError(f"real is {real}, but it must be a share from 0 to below 1.")
    how = Bilevel(
        inner_steps, inner_lr, inner_params, gradient, last, damping, solver_steps, remat,
        inner_norm,
    )  # fmt: skip

    def init(model: Model, spec: Spec, budget: Budget) -> Learned:
        free = learnable(budget, real)
        if old and len(budget.shares) > 1 and free[1:].min() < folds:
            raise UserError(
                f"Old exemplars are adjusted in {folds} folds, but a class has only "
                f"{free[1:].min()} that are learned; raise the budget, or choose old=false."
            )
        if free.min() < 1:
            raise UserError("All exemplars stay real with this budget; lower real.")
        # Old exemplars compete over all past outputs, which are fewest after the first task.
        sizes = np.diff(budget.seen, prepend=0) if new else budget.seen[:1]
        if outputs == "own" and (sizes < 2).any():
            raise UserError(
                "A task brings a single class, whose exemplars have nothing to learn while its "
                "output competes alone; choose outputs=all, or tasks of two classes or more."
            )
        kept = empty(spec, budget, rounding=rounding)
        return kept._replace(anchors=kept.pixels) if turns == "simultaneous" else kept

    def phases(model: Model, spec: Spec, budget: Budget) -> tuple[Phase, ...]:
        def learn(
            state: PyTree, batch: Batch, draws: PyTree, turn: Turn, x: Array, y: Array, mask: Array,
            competing: Array,
        ) -> tuple[PyTree, Info]:  # fmt: skip
            kept, task = begin(state.exemplars, batch), batch.clock.task
            if x is None:  # exemplars of the other folds judge
                still = kept.pixels
                if turns == "simultaneous":
                    begins = batch.clock.step % folds == 0
                    still = jnp.where(begins, kept.pixels, kept.anchors)
                    kept = kept._replace(anchors=still)
                x = shown(spec, still[turn.judges], kept.task[turn.judges])
            loss, grads = outer_gradient(
                model, spec, starting(state, x, draws), kept, turn.slots,
                turn.mask & kept.mask[turn.slots], Judged(x, y, mask, competing),
                # Fresh weights are those of a first task: nothing of them is transferred.
                task if inner_start == "trained" else jnp.zeros_like(task),
                how._replace(last=None if last is None else min(last, turn.slots.shape[0])),
            )  # fmt: skip
            rate = lr * 0.5 ** (batch.clock.epoch // halve_every)
            active = turn.active & jnp.any(mask)  # where no row judges, momentum alone is no step
            kept = moved(kept, grads, active, spec, lr=rate, momentum=momentum, normalise=normalise)
            kept = finish(kept, batch, turn.learned, rounding)
            return state._replace(exemplars=kept), Info(loss)

        def starting(state: PyTree, x: Array, draws: PyTree) -> Variables:
            if inner_start == "fresh":
                return model.init(draws, x)
            return Variables(state.params, state.model_state)

        made = list(SELECTIONS[start]().phases(model, spec, budget))
        course = Course(
            budget, geometry_of(budget, folds, real), learn, inner_steps, old_steps, inner_images,
            outer_epochs, folds, union=validation == "all", everyone=outputs == "all",
        )  # fmt: skip
        made += new_phases(spec, course) if new else []
        made += [old_phase(spec, course)] if old and len(budget.shares) > 1 else []
        return tuple(made)

    return ExemplarPolicy(init, phases)
