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

import functools
from typing import Literal, TypeAlias

import jax.numpy as jnp
import numpy as np

from cljax.errors import UserError, check_flag, given
from cljax.memory.bilevel import Bilevel, Gradient, Inner, Judged, Norm, outer_gradient
from cljax.memory.exemplars import Budget
from cljax.memory.folds import FoldSchedule, Turn, geometry_of, new_phases, old_phase
from cljax.memory.learned import Learned, begin, empty, finish, moved, shown
from cljax.memory.policy import ExemplarPolicy
from cljax.memory.selection import SELECTIONS, Selection
from cljax.method import Problem
from cljax.options import Count, Rate, Share
from cljax.types import Batch, Info, Model, Phase, PyTree, Spec, Variables

__all__ = ["Mnemonics"]

Begin: TypeAlias = Literal["trained", "fresh"]
Turns: TypeAlias = Literal["sequential", "simultaneous"]


class Mnemonics(ExemplarPolicy):
    """Exemplars learned through unrolled training, for any method that keeps exemplars."""

    start: Selection = "random"
    """How they are chosen: random (the paper), first or herding (its released code)."""
    new: bool = True
    """Learn those of new classes."""
    old: bool = True
    """Adjust those of old classes, after each later task."""
    outer_epochs: Count = 50
    """Passes over the validation examples in either phase."""
    lr: Rate = 0.01
    """Step size in normalised pixels."""
    momentum: Share = 0.9
    """Of these steps."""
    halve_every: Count = 10
    """Epochs after which the step size halves."""
    normalise: bool = False
    """Scale each exemplar's gradient to mean square 1."""
    inner_steps: Count = 20
    """T for new exemplars."""
    inner_images: Count = 1
    """Exemplars of each class in an inner step."""
    inner_lr: Rate = 0.01
    """Step size of the inner loop."""
    inner_params: Inner = "all"
    """What it moves: all that learns, or the head."""
    inner_start: Begin = "trained"
    """Where it starts: at the trained network (the paper), or at fresh initial weights, other ones
    at every step, as dataset distillation does (Wang et al., arXiv:1811.10959), which needs a
    longer loop with larger steps."""
    inner_norm: Norm = "frozen"
    """BatchNorm's statistics in it: frozen, the running ones it starts with; or batch, those of
    each step's own exemplars, while the validation loss keeps to the running ones."""
    gradient: Gradient = "unrolled"
    """Unrolled, or implicit."""
    last: Count | None = None
    """Inner steps that the unrolled gradient goes through; None for all."""
    damping: Rate = 1.0
    """Added to the Hessian of the implicit gradient."""
    solver_steps: Count = 10
    """Of conjugate gradients, for it."""
    validation: Literal["new", "all"] = "new"
    """Of new exemplars: the task's own images, or those and the old exemplars."""
    outputs: Literal["own", "all"] = "own"
    """Outputs that compete: the new (old) classes' own; or all seen, where the inner steps of new
    exemplars also hold the old ones, as they are."""
    folds: Count = 2
    """Of each old class's exemplars."""
    turns: Turns = "sequential"
    """Sequential, each fold judged by the others as they are by now; or simultaneous, as they were
    when the round of turns began, for one more copy of the exemplars as floats."""
    rounding: Literal["nearest", "none"] = "nearest"
    """Nearest stores the type that the stream does; none stores floats, four times as large as
    bytes."""
    remat: bool | None = None
    """Recompute inner steps in the backward pass; None does so on accelerators."""

    def check(self) -> None:
        """Raises UserError for choices that do not fit each other."""
        check_flag(**given(remat=self.remat))
        if self.validation == "all" and self.outputs == "own":
            raise UserError(
                "validation is all, but outputs is own, which leaves out the labels of old "
                "exemplars; choose outputs=all."
            )
        if self.inner_norm == "batch" and self.gradient == "implicit":
            raise UserError(
                "inner_norm is batch, but the implicit gradient sees all inner batches as one, "
                "whose statistics are not theirs; choose inner_norm=frozen or gradient=unrolled."
            )
        if self.folds < 2:
            raise UserError(f"folds is {self.folds}, but old exemplars are split in at least 2.")

    @property
    def inner(self) -> Bilevel:
        """The inner loop, and how the gradient goes through it."""
        return Bilevel(
            self.inner_steps, self.inner_lr, self.inner_params, self.gradient, self.last,
            self.damping, self.solver_steps, self.remat, self.inner_norm,
        )  # fmt: skip

    def init(self, model: Model, spec: Spec, budget: Budget) -> Learned:
        """Empty slots.

        Raises:
          UserError: for budgets with fewer exemplars a class than folds, and tasks of one class
            whose output competes alone.
        """
        if self.old and len(budget.shares) > 1 and budget.shares[1:].min() < self.folds:
            raise UserError(
                f"Old exemplars are adjusted in {self.folds} folds, but a class has only "
                f"{budget.shares[1:].min()}; raise the budget, or choose old=false."
            )
        # Old exemplars compete over all past outputs, which are fewest after the first task.
        sizes = np.diff(budget.seen, prepend=0) if self.new else budget.seen[:1]
        if self.outputs == "own" and (sizes < 2).any():
            raise UserError(
                "A task brings a single class, whose exemplars have nothing to learn while its "
                "output competes alone; choose outputs=all, or tasks of two classes or more."
            )
        made = empty(spec, budget, rounding=self.rounding)
        return made._replace(anchors=made.pixels) if self.turns == "simultaneous" else made

    def phases(self, model: Model, spec: Spec, budget: Budget) -> tuple[Phase, ...]:
        schedule = FoldSchedule(
            budget, geometry_of(budget, self.folds),
            functools.partial(self.outer_step, model, spec), self.inner_steps,
            self.inner_images, self.outer_epochs, self.folds,
            union=self.validation == "all", everyone=self.outputs == "all",
        )  # fmt: skip
        made = list(SELECTIONS[self.start].phases(model, spec, budget))
        made += new_phases(spec, schedule) if self.new else []
        made += [old_phase(spec, schedule)] if self.old and len(budget.shares) > 1 else []
        return tuple(made)

    def outer_step(
        self,
        model: Model,
        spec: Spec,
        state: PyTree,
        batch: Batch,
        draws: PyTree,
        turn: Turn,
        judged: Judged,
    ) -> tuple[PyTree, Info]:
        """One step of the exemplars of a turn down the loss of those that judge them.

        Args:
          judged: its examples are None where the exemplars of the other folds judge.
        """
        learned, task = begin(state.exemplars, batch), batch.clock.task
        if judged.x is None:
            still = learned.pixels
            if self.turns == "simultaneous":
                begins = batch.clock.step % self.folds == 0
                still = jnp.where(begins, learned.pixels, learned.anchors)
                learned = learned._replace(anchors=still)
            judged = judged._replace(x=shown(spec, still[turn.judges], learned.task[turn.judges]))
        fresh, last = self.inner_start == "fresh", self.last
        start = Variables(state.params, state.model_state)
        loss, grads = outer_gradient(
            Problem(model, spec), model.init(draws, judged.x) if fresh else start, learned,
            turn.slots, turn.mask & learned.mask[turn.slots], judged,
            # Fresh weights are those of a first task: nothing of them is transferred.
            jnp.zeros_like(task) if fresh else task,
            self.inner._replace(last=None if last is None else min(last, turn.slots.shape[0])),
        )  # fmt: skip
        rate = self.lr * 0.5 ** (batch.clock.epoch // self.halve_every)
        active = turn.active & jnp.any(judged.mask)  # where no row judges, momentum is no step
        learned = moved(
            learned, grads, active, spec, lr=rate, momentum=self.momentum, normalise=self.normalise
        )
        learned = finish(learned, batch, turn.learned, self.rounding)
        return state._replace(exemplars=learned), Info(loss)
