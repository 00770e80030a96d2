"""HAT: a mask of units for each task, learned with it; units of earlier tasks stand still.

    a_l  = sigmoid(s e_l[t])                       multiplies the units of layer l, for task t
    loss = CE(theta, a; batch) + lambda R,         R = sum a (1 - a^<) / sum (1 - a^<)
    W_l[i, j] -= lr (1 - min(a^<_l[j], a^<_{l-1}[i])) grad,     a bias:  lr (1 - a^<_l[j]) grad
    e_l[t]    -= lr (s_max / s) (cosh(s e) + 1) / (cosh(e) + 1) grad,    |s e| <= 50, |e| <= 6
    s          = 1 / s_max + (s_max - 1 / s_max) b / (A - 1),   b = steps of the task so far mod A
    after t:     a^<_l = max(a^<_l, sigmoid(s_max e_l[t]))

Of the first layer, whose inputs no mask has, the factor is 1 - a^<_l[j]. Each task has a head of
its own, which is not masked. Under GroupNorm a unit that stands still feels others of its group
move (``cljax.nets.gated``). Predictions use the mask of the example's task at s_max, of a task
that is still to come its first embedding. On streams that say how the first task is learned
(``Stream.pretraining``) it is learned by that optimiser with its mask and the loss above, for the
masks must be there before the second task begins.

Symbols: e ``embedding``, a^< ``before``, theta and W ``params``, lambda ``strength``, s_max
``s_max``, A ``anneal``, b ``count``.

Source: Serra, Suris, Miron, Karatzoglou, "Overcoming Catastrophic Forgetting with Hard Attention to
the Task", ICML 2018 (arXiv:1801.01423), section 2. There s_max is 400, lambda 0.75 and A an epoch;
3.0 is the baseline's in Xiong, Ren, Zeng, Urtasun, 2019 (arXiv:1910.04650), which leaves A open.
Embeddings start as normal numbers. Weight decay, in pretraining, does not reach them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import UserError
from cljax.losses import masked_mean, row_losses
from cljax.method import Method, Problem
from cljax.methods.groups.descent import DescentOptions
from cljax.methods.groups.pretraining import epochs_for, from_task_1, optimizer_of
from cljax.methods.sessions import session
from cljax.nets.gated import Units, chained, gated
from cljax.optimizers import Optimizer, Transformation
from cljax.options import Bound, Count, Rate
from cljax.types import (
    Array,
    Batch,
    Examples,
    Info,
    Needs,
    Params,
    Phase,
    Predictor,
    Pretraining,
    PyTree,
    Variables,
)

__all__ = ["HAT", "State", "compensated", "masks", "occupied", "restricted", "scale"]

Masks: TypeAlias = Mapping[str, Array]  # by the ``gate`` of ``cljax.nets.gated.Units``
_STEEPEST, _WIDEST = 50.0, 6.0  # bounds of |s e| in cosh and of |e|


class State(NamedTuple):
    """``early`` is pretraining's optimiser, ``()`` without; ``opt_state`` begins anew each task."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    embedding: Masks  # [T, C] of each layer
    before: Masks  # [C], the largest mask of any earlier task; 0 in the first
    count: Array  # [] int32, steps of this task so far
    early: PyTree


def scale(count: Array, s_max: float, anneal: int) -> Array:
    """s [] of a task's step ``count`` []; it climbs from 1 / s_max to s_max again and again."""
    place = (count % anneal).astype(jnp.result_type(float))
    share = place / (anneal - 1) if anneal > 1 else jnp.ones_like(place)
    return 1 / s_max + (s_max - 1 / s_max) * share


def masks(embedding: Masks, s: Array | float, task: Array) -> Masks:
    """The masks of each layer, [B, C], of examples of ``task`` [B]."""
    return {name: jax.nn.sigmoid(s * e[task]) for name, e in embedding.items()}


def restricted(grads: Params, units: tuple[Units, ...], before: Masks) -> Params:
    """The gradient, less what would move weights between units of earlier tasks."""
    free: dict[str, Array] = {}
    inputs: Array | None = None
    for own in units:
        outputs = before[own.gate]
        reach = outputs[None] if inputs is None else jnp.minimum(inputs[:, None], outputs[None])
        for layer in own.layers:
            free[f"{layer}/kernel"] = 1 - reach
            free[f"{layer}/bias"] = free[f"{layer}/scale"] = 1 - outputs
        inputs = outputs

    def scaled(path: tuple, leaf: Array) -> Array:
        factor = free.get(jax.tree_util.keystr(path, simple=True, separator="/"))
        if factor is None:  # the head
            return leaf
        return leaf * factor.reshape((1,) * (leaf.ndim - factor.ndim) + factor.shape)

    return jax.tree_util.tree_map_with_path(scaled, grads)


def compensated(grads: Masks, embedding: Masks, s: Array, s_max: float) -> Masks:
    """The embeddings' gradient as it would be with s = 1, times s_max: annealing starves it."""

    def one(grad: Array, e: Array) -> Array:
        steep = jnp.cosh(jnp.clip(s * e, -_STEEPEST, _STEEPEST))
        return grad * (s_max / s) * (steep + 1) / (jnp.cosh(e) + 1)

    return {name: one(grad, embedding[name]) for name, grad in grads.items()}


class HAT(DescentOptions, Method, name="hat"):
    """Hard attention to the task (Serra et al. 2018), for layers that follow one another.

    Tasks have outputs of their own, and no example goes past a layer, as in residual networks.

    Paper: Serra et al., ICML 2018 (arXiv:1801.01423). Pseudo-code and symbols:
    ``cljax.methods.hat``.

    Example:
        >>> import cljax
        >>> method = cljax.HAT(lr=0.5)
        >>> run = cljax.run(method, cljax.streams.toy("task"), seeds=1, net="mlp:16", epochs=3)
        >>> float(run.metric("BTI")[0]) > -0.05  # units of the first task stand still
        True
    """

    penalty: ClassVar[None] = None
    clip_norm: ClassVar[None] = None
    optimizer_at_border: ClassVar[Literal["reset"]] = "reset"

    lr: Rate = 0.1
    """Step size; an optax optimiser of your own brings its own."""
    s_max: Bound = 3.0
    """Steepness of the masks in the end and in predictions, at least 1; 400 in the paper."""
    strength: Rate = 0.75
    """Weight of the regulariser, which keeps units free (lambda)."""
    anneal: Count = 500
    """Steps over which the steepness climbs from 1 / s_max to s_max, again and again."""
    optimizer: Optimizer = "sgd"
    """Sgd, momentum (0.9), adam, or an ``optax.GradientTransformation``; it begins anew with each
    task. Adam's steps do not shrink with the gradient: only masks of 1 hold then."""

    def check(self) -> None:
        super().check()
        if self.s_max < 1:
            raise UserError(
                f"s_max is {self.s_max}, but the masks' steepness must reach at least 1."
            )

    @property
    def needs(self) -> Needs:
        return Needs(boundaries=True, task_ids_train=True, task_ids_test=True)

    def fit(self, problem: Problem) -> None:
        _units(problem)
        if not problem.spec.multi_head:
            raise UserError(
                "hat has a mask and a head for each task, but on this stream tasks share their "
                "outputs; choose one with heads, such as fashion-5-5."
            )

    def init(self, problem: Problem, key: Array) -> State:
        params, model_state = problem.variables(key)
        spec, how = problem.spec, problem.spec.pretraining
        dtype = jax.tree.leaves(params)[0].dtype
        embedding, before = {}, {}
        for i, own in enumerate(_units(problem)):
            shape = (spec.num_tasks, own.width)
            drawn = jax.random.normal(jax.random.fold_in(key, i + 1), shape, dtype)
            embedding[own.gate] = drawn
            before[own.gate] = jnp.zeros(own.width, dtype)
        learned = (params, embedding)
        return State(
            params, model_state, self.step.init(learned), embedding, before,
            jnp.zeros((), jnp.int32), () if how is None else _pretraining(how).init(learned),
        )  # fmt: skip

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: tuple[()]
    ) -> tuple[State, Info]:
        def own(state: State, batch: Batch, draws: tuple[()]) -> tuple[State, Info]:
            state, opt_state, info = self._descended(
                problem, state, batch, self.step, state.opt_state
            )
            return state._replace(opt_state=opt_state), info

        stepped = own if problem.spec.pretraining is None else from_task_1(own)
        return stepped(state, batch, draws)

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        begin, how = session(self._begin), problem.spec.pretraining
        if how is None:
            return (begin,)
        first = Phase(
            "pretrain", epochs_for(how), lambda state, batch, key: (),
            functools.partial(self._pretrain, problem, how), before=True, augment=True,
        )  # fmt: skip
        return (begin, first)

    def predictors(self, problem: Problem) -> Mapping[str, Predictor]:
        return {part: self._predictor(problem, part) for part in ("logits", "features")}

    def _gradient(
        self, problem: Problem, state: State, batch: Batch
    ) -> tuple[tuple[Params, Masks], Array]:
        """Of weights and embeddings, and the loss [] without the regulariser."""
        model, spec = problem
        task = batch.clock.task[None]
        dtype = jax.tree.leaves(state.embedding)[0].dtype
        s = scale(state.count, self.s_max, self.anneal).astype(dtype)

        def objective(learned: tuple[Params, Masks]) -> tuple[Array, Array]:
            params, embedding = learned
            own = masks(embedding, s, task)
            variables = Variables(params, state.model_state)
            x = tree.blank(batch.x, batch.mask)
            logits = gated(model, own, variables, x, True).logits
            examples = Examples(batch.x, batch.y, batch.task)
            losses = row_losses(spec, logits, examples, batch.mask)
            loss = masked_mean(losses, batch.mask)
            return loss + self.strength * occupied(own, state.before), loss

        (_, loss), (of_weights, of_masks) = jax.value_and_grad(objective, has_aux=True)(
            (state.params, state.embedding)
        )
        of_weights = restricted(of_weights, _units(problem), state.before)
        return (of_weights, compensated(of_masks, state.embedding, s, self.s_max)), loss

    def _descended(
        self, problem: Problem, state: State, batch: Batch, by: Transformation, opt_state: PyTree
    ) -> tuple[State, PyTree, Info]:
        """A step by an optimiser whose state is ``opt_state``, and that state after it."""
        grads, loss = self._gradient(problem, state, batch)
        learned = (state.params, state.embedding)
        updates, moved = by.update(grads, opt_state, learned)
        params, embedding = jax.tree.map(jnp.add, learned, updates)
        embedding = jax.tree.map(lambda e: jnp.clip(e, -_WIDEST, _WIDEST), embedding)
        after = state._replace(params=params, embedding=embedding, count=state.count + 1)
        # On a batch of padding the regulariser alone is no step.
        return *tree.select(jnp.any(batch.mask), (after, moved), (state, opt_state)), Info(loss)

    def _pretrain(
        self, problem: Problem, how: Pretraining, state: State, batch: Batch, draws: tuple[()]
    ) -> tuple[State, Info]:
        by = _pretraining(how, batch.clock.step)
        state, opt_state, info = self._descended(problem, state, batch, by, state.early)
        return state._replace(early=opt_state), info

    def _begin(self, state: State, task: Array) -> State:
        past = masks(state.embedding, self.s_max, jnp.maximum(task - 1, 0)[None])
        larger = lambda a, b: jnp.where(task > 0, jnp.maximum(a, b[0]), a)
        return state._replace(
            before=jax.tree.map(larger, state.before, past),
            opt_state=self.step.init((state.params, state.embedding)),
            count=jnp.zeros((), jnp.int32),
        )

    def _predictor(self, problem: Problem, part: str) -> Predictor:
        def prepare(state: State) -> tuple[Variables, Masks]:
            return Variables(state.params, state.model_state), state.embedding

        def scores(view: tuple[Variables, Masks], batch: Batch) -> Array:
            variables, embedding = view
            own = masks(embedding, self.s_max, batch.task)
            return getattr(gated(problem.model, own, variables, batch.x, False), part)

        return Predictor(prepare, scores, needs_task_ids=True)


def occupied(own: Masks, before: Masks) -> Array:
    """R []: the share of the units that no earlier task has which this one's mask takes."""
    taken = sum(jnp.sum(a * (1 - before[name][None])) for name, a in own.items())
    free = sum(jnp.sum(1 - old) for old in before.values())
    return taken / jnp.maximum(free, jnp.finfo(jnp.result_type(free)).tiny)


def _units(problem: Problem) -> tuple[Units, ...]:
    model, spec = problem
    return chained("hat", model, spec.example, spec.num_classes)


def _pretraining(how: Pretraining, step: Array | int = 0) -> Transformation:
    """Pretraining's optimiser of weights and embeddings; the latter do not decay."""
    return _apart(optimizer_of(how, step), optimizer_of(how, step, weight_decay=0.0))


def _apart(weights: Transformation, embedding: Transformation) -> Transformation:
    """One optimiser for weights and another for embeddings, of pairs of both."""
    both = (weights, embedding)

    def update(grads: tuple, state: tuple, learned: tuple) -> tuple[tuple, tuple]:
        done = [by.update(*own) for by, *own in zip(both, grads, state, learned, strict=True)]
        return tuple(zip(*done, strict=True))  # type: ignore[return-value]

    init = lambda learned: tuple(by.init(own) for by, own in zip(both, learned, strict=True))
    return Transformation(init, update)
