"""A mini-batch of three tasks of two classes each, and iTAML's update as a plain loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cljax.types import Batch, Clock, Spec

TASKS, EACH, INPUTS, SIZE = 3, 2, 4, 12
OWNER = np.arange(TASKS * EACH) // EACH == np.arange(TASKS)[:, None]


def spec(shape=(INPUTS,)) -> Spec:
    return Spec(jax.ShapeDtypeStruct(shape, jnp.float64), OWNER, SIZE)


def batch(task=2, tasks=(0, 2, 2, 0, 2, 2, 2, 0, 2, 2), seed=0, shape=(INPUTS,)) -> Batch:
    """Rows of the given tasks in a mini-batch of SIZE, the rest of it padding with labels of 0."""
    rng = np.random.default_rng(seed)
    count = len(tasks)
    owner = np.zeros(SIZE, np.int32)
    owner[:count] = tasks
    y = np.where(np.arange(SIZE) < count, owner * EACH + rng.integers(0, EACH, SIZE), 0)
    clock = Clock(*(jnp.int32(v) for v in (task, 0, 0)), jnp.bool_(True), jnp.bool_(False))
    return Batch(
        jnp.asarray(rng.normal(size=(SIZE, *shape))), jnp.asarray(y, jnp.int32),
        jnp.asarray(owner), jnp.arange(SIZE) < count, jnp.full(SIZE, -1), clock,
    )  # fmt: skip


def head(params):
    return params["Dense_1"]["kernel"]


class Plain:
    """Algorithm 1 with slices, loops and optax, for the small perceptron."""

    def __init__(self, params, optimizer, lr, **options):
        self.params, self.lr, self.options = params, lr, options
        self.optimizer = optimizer
        make = lambda: optimizer.init(params)
        per_task = options.get("optimizer_state", "per-task") == "per-task"
        self.paper = options["mode"] == "paper"
        self.states = (
            [make() for _ in range(TASKS)] if self.paper and per_task else [make()] * TASKS
        )

    def loss(self, params, x, y, outputs):
        hidden = jax.nn.relu(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None])
        z = (hidden @ head(params))[:, outputs]
        targets = jax.nn.one_hot(y, TASKS * EACH)[:, outputs]
        return optax.sigmoid_binary_cross_entropy(z, targets).mean()

    def freeze(self, tree, rows):
        return {**tree, "Dense_1": {"kernel": jnp.where(rows[None], head(tree), 0.0)}}

    def __call__(self, one, eta):
        kind, base, psi = self.options.get("loss_outputs", "own"), self.params, self.params
        seen = np.arange(TASKS * EACH) // EACH <= int(one.clock.task)
        found = []
        for task in range(TASKS):
            rows = np.flatnonzero(np.asarray(one.mask & (one.task == task)))
            if not len(rows):
                continue
            outputs = np.flatnonzero(OWNER[task] if kind == "own" else seen)
            psi = base if self.paper else psi
            fresh = self.paper and self.options.get("optimizer_state") == "fresh"
            state = self.optimizer.init(base) if fresh else self.states[task]
            learns = jnp.asarray(seen if kind == "seen" else OWNER[task])
            frozen = self.paper or kind == "seen-frozen"
            for _ in range(self.options.get("inner_steps", 1)):
                grads = jax.grad(self.loss)(psi, one.x[rows], one.y[rows], outputs)
                grads = self.freeze(grads, learns) if frozen else grads
                towards, state = self.optimizer.update(grads, state, psi)
                towards = self.freeze(towards, learns) if frozen else towards
                psi = jax.tree.map(lambda p, d: p - self.lr * d, psi, towards)
            if self.paper and self.options.get("optimizer_state", "per-task") == "per-task":
                self.states[task] = state
            elif not fresh:
                self.states = [state] * TASKS
            found.append(psi)
        if self.options["mode"] == "released":
            found = found[-1:]
        mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found)
        self.params = jax.tree.map(lambda m, b: eta * m + (1 - eta) * b, mean, base)
