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

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import UserError, check_above_zero, check_positive, check_rate
from cljax.losses import cross_entropy, head_mask, masked_mean
from cljax.methods.common import initial
from cljax.methods.pretrained import epochs_for, from_task_1, scheduled
from cljax.methods.sessions import session
from cljax.nets.gated import Units, chained, gated
from cljax.optimizers import Optimizer, Transformation, direction, make_optimizer
from cljax.types import (
    Array,
    Batch,
    Info,
    Learner,
    Method,
    Model,
    Needs,
    Params,
    Phase,
    Predictor,
    PyTree,
    Spec,
    Variables,
)

__all__ = [
    "Draws",
    "State",
    "compensated",
    "draw",
    "hat",
    "masks",
    "occupied",
    "restricted",
    "scale",
]

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


class Draws(NamedTuple):
    """An update makes no random choice."""


def draw(state: State, batch: Batch, key: Array) -> Draws:
    """Nothing to draw."""
    return Draws()


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


def hat(
    *,
    lr: Array | float = 0.1,
    s_max: float = 3.0,
    strength: Array | float = 0.75,
    anneal: int = 500,
    optimizer: Optimizer = "sgd",
) -> Method:
    """Hard attention to the task (Serra et al. 2018), for layers that follow one another.

    Args:
      lr: step size; an optax optimiser of your own brings its own. May be traced.
      s_max: steepness of the masks in the end and in predictions, at least 1; 400 in the paper.
      strength: weight of the regulariser, which keeps units free (lambda). May be traced.
      anneal: steps over which the steepness climbs from 1 / s_max to s_max, again and again.
      optimizer: sgd, momentum (0.9), adam, or an ``optax.GradientTransformation``; it begins anew
        with each task. Adam's steps do not shrink with the gradient: only masks of 1 hold then.

    Raises:
      UserError: for a count below 1, values out of range, an unknown optimiser, a network in which
        examples go past a layer, as in residual ones, or tasks without outputs of their own.
    """
    options = dict(locals())
    check_rate(lr=lr, strength=strength)
    check_above_zero(s_max=s_max)
    check_positive(anneal=anneal)
    if s_max < 1:
        raise UserError(f"s_max is {s_max}, but the masks' steepness must reach at least 1.")
    step = make_optimizer(optimizer, lr)

    def bind(model: Model, spec: Spec) -> Learner:
        units = chained("hat", model, spec.example, spec.num_classes)
        if not spec.multi_head:
            raise UserError(
                "hat has a mask and a head for each task, but on this stream tasks share their "
                "outputs; choose one with heads, such as fashion-5-5."
            )
        how = spec.pretraining
        towards = None
        if how is not None:
            towards = _apart(
                direction(how.optimizer, weight_decay=how.weight_decay), direction(how.optimizer)
            )

        def init(key: Array) -> State:
            params, model_state = initial(model, spec, key)
            dtype = jax.tree.leaves(params)[0].dtype
            embedding, before = {}, {}
            for i, own in enumerate(units):
                shape = (spec.num_tasks, own.width)
                drawn = jax.random.normal(jax.random.fold_in(key, i + 1), shape, dtype)
                embedding[own.gate] = drawn
                before[own.gate] = jnp.zeros(own.width, dtype)
            learned = (params, embedding)
            return State(
                params, model_state, step.init(learned), embedding, before,
                jnp.zeros((), jnp.int32), () if towards is None else towards.init(learned),
            )  # fmt: skip

        def gradient(state: State, batch: Batch) -> tuple[tuple[Params, Masks], Array]:
            task = batch.clock.task[None]
            dtype = jax.tree.leaves(state.embedding)[0].dtype
            s = scale(state.count, s_max, anneal).astype(dtype)

            def objective(learned: tuple[Params, Masks]) -> tuple[Array, Array]:
                params, embedding = learned
                own = masks(embedding, s, task)
                variables = Variables(params, state.model_state)
                x = tree.blank(batch.x, batch.mask)
                logits = gated(model, own, variables, x, True).logits
                losses = cross_entropy(logits, batch.y, head_mask(spec, batch.task))
                loss = masked_mean(losses, batch.mask)
                return loss + strength * occupied(own, state.before), loss

            (_, loss), (of_weights, of_masks) = jax.value_and_grad(objective, has_aux=True)(
                (state.params, state.embedding)
            )
            of_weights = restricted(of_weights, units, state.before)
            return (of_weights, compensated(of_masks, state.embedding, s, s_max)), loss

        def descended(
            state: State, batch: Batch, by: Transformation, kept: PyTree
        ) -> tuple[State, PyTree, Info]:
            grads, loss = gradient(state, batch)
            learned = (state.params, state.embedding)
            updates, moved = by.update(grads, kept, learned)
            params, embedding = jax.tree.map(jnp.add, learned, updates)
            embedding = jax.tree.map(lambda e: jnp.clip(e, -_WIDEST, _WIDEST), embedding)
            after = state._replace(params=params, embedding=embedding, count=state.count + 1)
            # On a batch of padding the regulariser alone is no step.
            return *tree.select(jnp.any(batch.mask), (after, moved), (state, kept)), Info(loss)

        def update(state: State, batch: Batch, draws: Draws) -> tuple[State, Info]:
            state, kept, info = descended(state, batch, step, state.opt_state)
            return state._replace(opt_state=kept), info

        def pretrain(state: State, batch: Batch, draws: Draws) -> tuple[State, Info]:
            assert how is not None and towards is not None
            by = scheduled(how, towards, batch.clock.step)
            state, kept, info = descended(state, batch, by, state.early)
            return state._replace(early=kept), info

        def begin(state: State, task: Array) -> State:
            past = masks(state.embedding, s_max, jnp.maximum(task - 1, 0)[None])
            larger = lambda a, b: jnp.where(task > 0, jnp.maximum(a, b[0]), a)
            return state._replace(
                before=jax.tree.map(larger, state.before, past),
                opt_state=step.init((state.params, state.embedding)),
                count=jnp.zeros((), jnp.int32),
            )

        def predictor(part: str) -> Predictor:
            def prepare(state: State) -> tuple[Variables, Masks]:
                return Variables(state.params, state.model_state), state.embedding

            def scores(view: tuple[Variables, Masks], batch: Batch) -> Array:
                variables, embedding = view
                own = masks(embedding, s_max, batch.task)
                return getattr(gated(model, own, variables, batch.x, False), part)

            return Predictor(prepare, scores, needs_task_ids=True)

        phases: tuple[Phase, ...] = (session(begin),)
        if how is not None:
            first = Phase("pretrain", epochs_for(how), draw, pretrain, before=True, augment=True)
            phases += (first,)
        return Learner(
            init,
            draw,
            update if how is None else from_task_1(update),
            {part: predictor(part) for part in ("logits", "features")},
            phases,
            gradients_per_update=1,
            examples_per_update=spec.batch_size,
        )

    needs = Needs(boundaries=True, task_ids_train=True, task_ids_test=True)
    return Method("hat", bind, needs, options, make=hat)


def occupied(own: Masks, before: Masks) -> Array:
    """R []: the share of the units that no earlier task has which this one's mask takes."""
    taken = sum(jnp.sum(a * (1 - before[name][None])) for name, a in own.items())
    free = sum(jnp.sum(1 - old) for old in before.values())
    return taken / jnp.maximum(free, jnp.finfo(jnp.result_type(free)).tiny)


def _apart(weights: Transformation, embedding: Transformation) -> Transformation:
    """One optimiser for weights and another for embeddings, of pairs of both."""
    both = (weights, embedding)

    def update(grads: tuple, state: tuple, learned: tuple) -> tuple[tuple, tuple]:
        done = [by.update(*own) for by, *own in zip(both, grads, state, learned, strict=True)]
        return tuple(zip(*done, strict=True))  # type: ignore[return-value]

    init = lambda learned: tuple(by.init(own) for by, own in zip(both, learned, strict=True))
    return Transformation(init, update)
