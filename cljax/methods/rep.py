"""Rep: features of plain pretraining on more classes; then plain steps.

    pretraining:     L = CE([z_A(x), V phi(x) + c]; batches of the source task and all held classes)
                     (theta, V, c) = (theta, V, c) - rate * direction of grad L
    update(batch):   theta = theta - lr grad CE(theta; batch)

z_A are the network's outputs of the source task, and [V, c] rows of a head for the held classes
(those that the source task lacks): one softmax over both. Nothing uses V and c afterwards.

Pretraining's steps, optimiser and rates are the stream's (``Stream.pretraining``), whose first task
is then over; on a stream without, they are those of ``cljax.types.Pretraining``, and the first task
is learned like the others afterwards. An epoch of it shuffles all examples of both together.

Symbols: theta ``params``, phi the features, (V, c) ``extra``, lr ``lr``.

Source: the baseline Rep in Xiong, Ren, Zeng, Urtasun, "Learning to Remember from a Multi-Task
Teacher", 2019 (arXiv:1910.04650).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import tree
from cljax.losses import cross_entropy, masked_mean
from cljax.method import Method, Problem
from cljax.methods.groups.pretraining import (
    PlainOptions,
    epochs_for,
    optimizer_of,
    pretraining_of,
)
from cljax.nets.inits import fan_in_uniform
from cljax.nets.masked import masked
from cljax.types import Array, Batch, Info, Params, Phase, PyTree, Spec, Variables
from cljax.update_rules.episodes import check_held, held_rows

__all__ = ["Extra", "Rep", "State"]


class Extra(NamedTuple):
    """A linear layer for the H held classes, PyTorch's at first."""

    kernel: Array  # [D, H], V
    bias: Array  # [H], c


class State(NamedTuple):
    """``extra`` and ``early``, pretraining's optimiser, are of pretraining alone."""

    params: Params
    model_state: PyTree
    extra: Extra
    early: PyTree


class Rep(PlainOptions, Method):
    """Pretraining on the source task and all held classes jointly, then gradient descent.

    Paper: Xiong et al. 2019 (arXiv:1910.04650). Pseudo-code and symbols: ``cljax.methods.rep``.

    Example:
        >>> import cljax
        >>> run = cljax.run(cljax.Rep(lr=0.3), cljax.streams.toy("held-out"), seeds=1, net="mlp:16")
        >>> float(run.metric("LA")[0]) > 0.6
        True
    """

    def fit(self, problem: Problem) -> None:
        check_held("rep", problem.spec)

    def init(self, problem: Problem, key: Array) -> State:
        model, spec = problem
        params, model_state = variables = problem.variables(key)
        source, number = _joint(spec)
        num_held = int(number.max()) + 1 - len(source)
        x = jax.tree.map(lambda a: jnp.zeros((1, *a.shape), a.dtype), spec.example)
        features = jax.eval_shape(lambda: model.apply(variables, x, False)[0].features)
        width = features.shape[-1]
        drawn = fan_in_uniform(width)
        of_kernel, of_bias = jax.random.split(jax.random.fold_in(key, 1))
        extra = Extra(
            drawn(of_kernel, (width, num_held), features.dtype),
            drawn(of_bias, (num_held,), features.dtype),
        )
        early = optimizer_of(pretraining_of(spec)).init((params, extra))
        return State(params, model_state, extra, early)

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        spec = problem.spec
        rows = epochs_for(pretraining_of(spec), held_rows(spec).reshape(-1))
        joint = Phase(
            "pretrain", rows, lambda state, batch, key: (),
            functools.partial(self._pretrain, problem), before=True, augment=True,
        )  # fmt: skip
        return (joint,)

    def _pretrain(
        self, problem: Problem, state: State, batch: Batch, draws: tuple[()]
    ) -> tuple[State, Info]:
        model, spec = problem
        how, (source, number) = pretraining_of(spec), _joint(spec)
        y = jnp.asarray(number)[batch.y]

        def objective(learned: tuple[Params, Extra]) -> tuple[Array, PyTree]:
            params, extra = learned
            variables = Variables(params, state.model_state)
            output, model_state = masked(model, variables, batch.x, batch.mask)
            more = output.features @ extra.kernel + extra.bias[None]
            logits = jnp.concatenate([output.logits[:, source], more], axis=1)
            return masked_mean(cross_entropy(logits, y), batch.mask), model_state

        learned = (state.params, state.extra)
        (loss, model_state), grads = jax.value_and_grad(objective, has_aux=True)(learned)
        by = optimizer_of(how, batch.clock.step)
        updates, early = by.update(grads, state.early, learned)
        params, extra = jax.tree.map(jnp.add, learned, updates)
        some = jnp.any(batch.mask)  # momentum and decay alone are no step
        after = State(params, model_state, extra, early)
        return tree.select(some, after, state), Info(loss)


def _joint(spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """The source task's outputs [n], and the joint output of each label, -1 where it has none."""
    assert spec.train_y is not None
    source = np.flatnonzero(spec.class_mask[0])
    held = spec.train_y[held_rows(spec)[:, 0]]
    labels = np.concatenate([source, held[~np.isin(held, source)]])
    number = np.full(max(labels.max(), spec.train_y.max()) + 1, -1, np.int32)
    number[labels] = np.arange(len(labels), dtype=np.int32)
    return source, number
