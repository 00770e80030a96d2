"""OML: features in which a few steps on the head alone learn a new task; then plain steps.

    pretraining, a step:   P n held classes stand for those of the P new tasks
        h_0   = the head;  K batches of those classes
        h_k   = h_{k-1} - alpha grad_h CE(phi, h_{k-1}; batch_k)            k = 1 .. K
        theta = theta - rate * direction of grad_theta CE(phi, h_K; query),     theta = (phi, h_0)
    update(batch):         theta = theta - lr grad CE(theta; batch)

The query is a fresh batch of those classes and pretraining's batch of the source task, or the
former alone; its loss is the mean over all its examples. Its gradient goes through the K steps,
into the features phi and into where the head starts. Each example competes over the outputs of its
own task, so the K steps move the new tasks' rows of the head and no others.

Pretraining's steps, optimiser and rates are the stream's (``Stream.pretraining``), whose first task
is then over; on a stream without, they are those of ``cljax.types.Pretraining``, and the first task
is learned like the others afterwards.

Symbols: theta ``params``, alpha ``inner_lr``, K ``inner_steps``, rate ``meta_lr``, lr ``lr``.

Source: the baseline MAML in Xiong, Ren, Zeng, Urtasun, "Learning to Remember from a Multi-Task
Teacher", 2019 (arXiv:1910.04650), after Javed & White, "Meta-Learning Representations for Continual
Learning", NeurIPS 2019 (arXiv:1905.12588). Ten steps are the former's; which data is query is open,
and the meta-gradient's bound is an addition.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import UserError
from cljax.inner_loop import LoopOptions, sgd_step, unroll
from cljax.losses import cross_entropy, masked_mean
from cljax.method import Method, Problem
from cljax.methods.groups.pretraining import (
    PlainOptions,
    epochs_for,
    optimizer_of,
    pretraining_of,
)
from cljax.nets.heads import split_head
from cljax.nets.transfer import slow_in_loops
from cljax.options import Bound, Count, Rate
from cljax.types import (
    Array,
    Batch,
    Info,
    Model,
    Params,
    Phase,
    PyTree,
    StepPlan,
    Variables,
)
from cljax.update_rules.episodes import check_stream, drawn_classes, held_rows, labelled
from cljax.update_rules.windows import Shown

__all__ = ["OML", "State", "query_loss"]

Query = Literal["both", "new"]


class State(NamedTuple):
    """``early`` is pretraining's optimiser, ``classes`` [P, n] int32 those it practises on next."""

    params: Params
    model_state: PyTree
    early: PyTree
    classes: Array


def query_loss(
    model: Model,
    params: Params,
    support: Shown,
    query: Shown,
    mask: Array,
    inner_lr: Array | float,
    *,
    unroll_steps: int | bool = 1,
) -> Array:
    """Mean loss [] of the query after steps on the head alone, differentiable through them.

    Args:
      support: leaves [K, B, ...], a batch a step. query: leaves [m, ...]. mask: [m] bool.
      unroll_steps: of ``cljax.inner_loop.LoopOptions``.
    """
    head, join = split_head(model, params, query.outputs.shape[-1])

    def losses(head: list[Array], shown: Shown) -> Array:
        logits = model.apply(Variables(join(head), {}), shown.x, False)[0].logits
        return cross_entropy(logits, shown.y, shown.outputs)

    step = sgd_step(losses, inner_lr)
    after = unroll(step, head, support, order=2, loop=LoopOptions(unroll_steps=unroll_steps))
    return masked_mean(losses(after.params, query), mask)


class OML(PlainOptions, Method, name="oml"):
    """Features meta-learned for new heads (MAML as in OML), then gradient descent.

    The network has a ``head`` and no running statistics; the stream holds classes out.

    Paper: Xiong et al. 2019 (arXiv:1910.04650), after Javed, White, NeurIPS 2019
    (arXiv:1905.12588). Pseudo-code and symbols: ``cljax.methods.oml``.

    Example:
        >>> import cljax
        >>> run = cljax.run(cljax.OML(lr=0.3), cljax.streams.toy("held-out"), seeds=1, net="mlp:16")
        >>> float(run.metric("LA")[0]) > 0.6
        True
    """

    inner_lr: Rate | None = None
    """Of the steps on the head in pretraining; None: as lr."""
    inner_steps: Count = 10
    """So many, on a batch each (K)."""
    query: Query = "both"
    """What the meta-loss is of: both the practised classes and the source task, or new alone,
    which leaves the source task's outputs as they were."""
    meta_lr: Rate | None = None
    """Of pretraining; None: the stream's."""
    clip_norm: Bound | None = 1.0
    """Bound of the global norm of the meta-gradient; None disables, and then small networks can
    lose their features to one large step."""

    def fit(self, problem: Problem) -> None:
        check_stream("oml", problem.spec)
        _check_network(problem)

    def init(self, problem: Problem, key: Array) -> State:
        params, model_state = problem.variables(key)
        classes = drawn_classes(problem.spec, jax.random.fold_in(key, 1))
        early = optimizer_of(pretraining_of(problem.spec)).init(params)
        return State(params, model_state, early, classes)

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        def classes(state: State, batch: Batch, key: Array) -> Array:
            return drawn_classes(problem.spec, key)

        practice = Phase(
            "pretrain", epochs_for(pretraining_of(problem.spec)), classes,
            functools.partial(self._pretrain, problem), before=True, augment=True,
            select=functools.partial(self._select, problem),
        )  # fmt: skip
        return (practice,)

    def _select(self, problem: Problem, state: State, row: StepPlan, key: Array) -> StepPlan:
        """The source task's batch, then those of the practised classes, end to end."""
        of_class, of_example = jax.random.split(key)
        shape = self._practice_shape(problem)
        held, classes = jnp.asarray(held_rows(problem.spec)), state.classes.reshape(-1)
        chosen = jax.random.randint(of_class, shape, 0, classes.shape[0])
        place = jax.random.randint(of_example, shape, 0, held.shape[1])
        index = held[classes[chosen], place].reshape(-1)
        return row._replace(
            index=jnp.concatenate([row.index, index]),
            task=jnp.concatenate([row.task, jnp.zeros_like(index)]),
            mask=jnp.concatenate([row.mask, jnp.ones(index.shape, bool)]),
        )

    def _pretrain(
        self, problem: Problem, state: State, batch: Batch, classes: Array
    ) -> tuple[State, Info]:
        """One step; ``classes`` are those of the next one."""
        model, spec = problem
        shape, how = self._practice_shape(problem), pretraining_of(spec)
        first = batch.y.shape[0] - shape[0] * shape[1]
        cut = lambda a: a[first:].reshape(*shape, *a.shape[1:])
        y, outputs = labelled(spec, cut(batch.y), state.classes)
        new = Shown(jax.tree.map(cut, batch.x), y, outputs)
        support, fresh = (jax.tree.map(lambda a, at=at: a[at], new) for at in (slice(-1), -1))
        asked, mask = fresh, jnp.ones(shape[1], bool)
        if self.query == "both":
            head = lambda a: a[:first]
            known = jnp.asarray(spec.class_mask)[batch.task[:first]]
            x = tree.blank(jax.tree.map(head, batch.x), batch.mask[:first])
            source = Shown(x, batch.y[:first], known)
            asked = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), source, fresh)
            mask = jnp.concatenate([batch.mask[:first], mask])
        inner = self.lr if self.inner_lr is None else self.inner_lr
        slow = slow_in_loops(model, spec.example)

        def objective(params: Params) -> Array:
            return query_loss(
                model, params, support, asked, mask, inner, unroll_steps=True if slow else 1
            )

        loss, grads = jax.value_and_grad(objective)(state.params)
        rated = how if self.meta_lr is None else how._replace(lr=self.meta_lr)
        by = optimizer_of(rated, batch.clock.step)
        grads = tree.clip_norm(grads, self.clip_norm)
        updates, early = by.update(grads, state.early, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        return state._replace(params=params, early=early, classes=classes), Info(loss)

    def _practice_shape(self, problem: Problem) -> tuple[int, int]:
        """Batches of the practised classes, the last one the query's, and their examples."""
        return self.inner_steps + 1, problem.spec.batch_size


def _check_network(problem: Problem) -> None:
    if problem.model.head is None:
        raise UserError(
            "oml practises on the head, but this network does not say which parameters those are; "
            "give its Model a head (see cljax.types.Model)."
        )
    key = jax.eval_shape(lambda: jax.random.key(0))
    if jax.tree.leaves(jax.eval_shape(lambda k: problem.variables(k).model_state, key)):
        raise UserError(
            "oml works on networks without BatchNorm, whose running statistics no step on the head "
            "would follow; choose one with GroupNorm, such as resnet32:group."
        )
