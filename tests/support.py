"""A small problem that every method can run: three tasks, four classes, six inputs."""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

import cljax
from cljax.engine import learn as engine
from cljax.engine.options import Running, Training
from cljax.method import Method
from cljax.nets.cosine import Head
from cljax.streams.base import Stream, Transform
from cljax.types import Batch, Clock, Learner, Spec

NUM_TASKS, NUM_CLASSES, NUM_INPUTS, BATCH = 3, 4, 6, 4


def learn(method, model, stream, seeds, **options):
    """``cljax.engine.learn.learn``, with the fields of its options and hooks as keywords."""
    made = {}
    for name, cls in (("training", Training), ("running", Running)):
        own = {field.name for field in dataclasses.fields(cls)} & options.keys()
        made[name] = cls(**{name: options.pop(name) for name in own})
    own = set(engine.Hooks._fields) & options.keys()
    made["hooks"] = engine.Hooks(**{name: options.pop(name) for name in own})
    return engine.learn(method, model, stream, seeds, **made, **options)


def share_programs(patched) -> None:
    """Runs of equal methods and shapes on one network and one stream are compiled once."""
    compile_programs, known = engine.compile_programs, {}

    def shared(bind, stream, inputs, evaluations, *, pool, **options):
        leaves, structure = jax.tree.flatten(inputs)
        shapes = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        key = structure, shapes, tuple(e.name for e in evaluations), *options.values()
        if key not in known:
            known[key] = compile_programs(bind, stream, inputs, evaluations, pool=pool, **options)
        return known[key]

    patched.setattr(engine, "compile_programs", shared)


def spec(multi_head: bool = False, own_classes: bool = False) -> Spec:
    """Domain-incremental, or with NUM_CLASSES outputs a task, as heads or in one head."""
    own = multi_head or own_classes
    outputs = NUM_CLASSES * (NUM_TASKS if own else 1)
    owner = np.arange(outputs) // NUM_CLASSES
    mask = owner == np.arange(NUM_TASKS)[:, None] if own else np.ones((NUM_TASKS, outputs), bool)
    example = jax.ShapeDtypeStruct((NUM_INPUTS,), jnp.result_type(float))
    return Spec(example, mask, BATCH, multi_head)


def held_spec() -> Spec:
    """With a head for each task, and two examples of each of eight more classes held out."""
    problem, rows = spec(multi_head=True), np.arange(16, dtype=np.int32)
    labels = problem.num_classes + rows // 2
    return problem._replace(held=rows.reshape(8, 2), train_y=labels)


def bind(
    method: Method, multi_head: bool = False, own_classes: bool = False, head: Head = "linear"
) -> Learner:
    """The learner, its functions compiled, and the same one for equal methods.

    Called eagerly they would be a program an operation; made anew, a program a test.
    """
    try:
        return _bound(method, multi_head, own_classes, head)
    except TypeError:  # a method that has no hash
        return _bound.__wrapped__(method, multi_head, own_classes, head)


@functools.lru_cache(maxsize=64)
def _bound(method: Method, multi_head: bool, own_classes: bool, head: Head) -> Learner:
    problem = spec(multi_head, own_classes)
    learner = method.bind(cljax.nets.mlp(5, head=head)(problem.num_classes), problem)
    init, draw, update = (jax.jit(f) for f in (learner.init, learner.draw, learner.update))
    return learner._replace(init=init, draw=draw, update=update)


def batches(
    num: int,
    seed: int = 0,
    multi_head: bool = False,
    tasks: int = NUM_TASKS,
    own_classes: bool = False,
) -> Batch:
    """``num`` batches as one pytree with a leading axis, tasks in equal stretches."""
    rng = np.random.default_rng(seed)
    dtype = jnp.result_type(float)
    task = np.arange(num) * tasks // num
    y = rng.integers(0, NUM_CLASSES, (num, BATCH)) + (
        task[:, None] * NUM_CLASSES if multi_head or own_classes else 0
    )
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
    chex.assert_trees_all_close(a, b, rtol=0, atol=atol)


def stream(num_tasks: int = NUM_TASKS, per_task: int = 12, tests: int = 9, **changes) -> Stream:
    """Grey images of 2 x 3 pixels whose classes lie apart, each task with its pixels rolled."""
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 256, (NUM_CLASSES, 2, 3))

    def images(count: int):
        y = np.arange(count, dtype=np.int32) % NUM_CLASSES
        noise = rng.normal(0, 12, (count, 2, 3))
        return np.clip(centres[y] + noise, 0, 255).astype(np.uint8), y

    train_x, train_y = images(num_tasks * per_task + 20)
    test_x, test_y = images(tests + num_tasks)

    def apply(tables, x, task):
        flat = x.reshape(x.shape[0], -1)
        return jnp.take_along_axis(flat, tables[task], axis=1).astype(jnp.result_type(float)) / 255

    def subsets(seed: int):
        order = np.random.default_rng(seed).permutation(num_tasks * per_task)
        return tuple(order.reshape(num_tasks, per_task).astype(np.int32))

    rolls = np.stack([np.roll(np.arange(6), t) for t in range(num_tasks)]).astype(np.int32)
    fields = {
        "name": "rolled",
        "train_x": train_x,
        "train_y": train_y,
        "test_x": test_x,
        "test_y": test_y,
        "transform": Transform(rolls, apply),
        "class_mask": np.ones((num_tasks, NUM_CLASSES), bool),
        "test_index": tuple(np.arange(tests + t, dtype=np.int32) for t in range(num_tasks)),
        "subsets": subsets,
        "valid": lambda seed: tuple(np.arange(len(train_y) - 20, len(train_y)) for _ in rolls),
    }
    return Stream(**{**fields, **changes})
