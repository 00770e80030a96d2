"""A small problem that every method can run: three tasks, four classes, six inputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import cljax
from cljax.types import Batch, Clock, Learner, Method, Spec

NUM_TASKS, NUM_CLASSES, NUM_INPUTS, BATCH = 3, 4, 6, 4


def spec(multi_head: bool = False) -> Spec:
    """Domain-incremental, or with disjoint heads of NUM_CLASSES outputs a task."""
    outputs = NUM_CLASSES * (NUM_TASKS if multi_head else 1)
    owner = np.arange(outputs) // NUM_CLASSES
    mask = owner == np.arange(NUM_TASKS)[:, None] if multi_head else np.ones((NUM_TASKS, outputs), bool)
    example = jax.ShapeDtypeStruct((NUM_INPUTS,), jnp.result_type(float))
    return Spec(example, mask, BATCH, multi_head)


def bind(method: Method, multi_head: bool = False) -> Learner:
    problem = spec(multi_head)
    return method.bind(cljax.nets.mlp(5)(problem.num_classes), problem)


def batches(num: int, seed: int = 0, multi_head: bool = False, tasks: int = NUM_TASKS) -> Batch:
    """``num`` batches as one pytree with a leading axis, tasks in equal stretches."""
    rng = np.random.default_rng(seed)
    dtype = jnp.result_type(float)
    task = np.arange(num) * tasks // num
    y = rng.integers(0, NUM_CLASSES, (num, BATCH)) + (task[:, None] * NUM_CLASSES if multi_head else 0)
    clock = Clock(
        jnp.asarray(task, jnp.int32),
        jnp.zeros(num, jnp.int32),
        jnp.arange(num, dtype=jnp.int32),
        jnp.ones(num, bool),
        jnp.asarray(np.append(np.diff(task) > 0, True)),
    )
    return Batch(
        jnp.asarray(rng.normal(size=(num, BATCH, NUM_INPUTS)), dtype),
        jnp.asarray(y, jnp.int32),
        jnp.asarray(np.repeat(task[:, None], BATCH, 1), jnp.int32),
        jnp.ones((num, BATCH), bool),
        jnp.asarray(rng.integers(0, 1000, (num, BATCH)), jnp.int32),
        clock,
    )


def at(tree, i):
    return jax.tree.map(lambda a: a[i], tree)


def run(learner: Learner, batches: Batch, seed: int = 0, state=None):
    """A Python loop of compiled updates; the final state and the losses."""
    key, update, draw = jax.random.key(seed), jax.jit(learner.update), jax.jit(learner.draw)
    state = learner.init(key) if state is None else state
    losses = []
    for i in range(batches.y.shape[0]):
        batch = at(batches, i)
        state, info = update(state, batch, draw(state, batch, jax.random.fold_in(key, i)))
        losses.append(info.loss)
    return state, jnp.stack(losses)


def assert_close(a, b, atol=0.0):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), a, b)
