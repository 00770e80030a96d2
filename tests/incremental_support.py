"""Class-incremental problems small enough to compute by hand: a linear network, mixed batches."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import support
from support import learn

from cljax.method import Method
from cljax.nets import from_linen, mlp
from cljax.nets.batchnorm import BatchNorm
from cljax.nets.cosine import Head
from cljax.types import Batch, Clock, Evaluation, Learner, Phase

NC = support.NUM_CLASSES
C = NC * support.NUM_TASKS
LINEAR = mlp()(C)  # its features are its inputs
COSINE = mlp(5, head="cosine")(C)


class Normalised(nn.Module):
    """A layer, BatchNorm and a head."""

    @nn.compact
    def __call__(self, x, train, member=None):
        x = nn.Dense(5, param_dtype=x.dtype)(x)
        x = nn.relu(BatchNorm(param_dtype=x.dtype)(x, train, member))
        return nn.Dense(C, param_dtype=x.dtype)(x), x


NORMALISED = from_linen(Normalised(), head="Dense_1")


def bind(method: Method, model=LINEAR) -> Learner:
    return method.bind(model, support.spec(own_classes=True))


def batch(tasks, current: int | None = None, seed: int = 0, epoch: int = 0, masked=()) -> Batch:
    """A batch with a row of each of ``tasks``, learned while ``current`` is."""
    rng = np.random.default_rng(seed)
    task, current = np.array(tasks), max(tasks) if current is None else current
    mask = ~np.isin(np.arange(len(task)), masked)
    clock = Clock(
        jnp.asarray(current, jnp.int32), jnp.asarray(epoch, jnp.int32), jnp.zeros((), jnp.int32),
        jnp.ones((), bool), jnp.zeros((), bool),
    )  # fmt: skip
    return Batch(
        jnp.asarray(rng.normal(size=(len(task), support.NUM_INPUTS))),
        jnp.asarray(rng.integers(0, NC, len(task)) + NC * task, jnp.int32),
        jnp.asarray(task, jnp.int32), jnp.asarray(mask), jnp.arange(len(task)), clock,
    )  # fmt: skip


def step(learner: Learner, state, batch: Batch):
    draws = learner.draw(state, batch, jax.random.key(0))
    return jax.jit(learner.update)(state, batch, draws)


def phase(learner: Learner, name: str) -> Phase:
    return next(phase for phase in learner.phases if phase.name == name)


def weights(params):
    """Kernel and bias of the linear network, as NumPy arrays."""
    return tuple(np.asarray(params["Dense_0"][name]) for name in ("kernel", "bias"))


def gradient(x, d_logits):
    """Of the linear network, from the loss's gradient in the logits."""
    return x.T @ d_logits, d_logits.sum(axis=0)


def softmax(z, where):
    e = np.where(where, np.exp(z), 0.0)
    return e / e.sum(axis=1, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def one_hot(y):
    return np.eye(C)[np.asarray(y)]


def seen(task: int):
    """[C] bool, the outputs of tasks up to ``task``."""
    return np.arange(C) < NC * (task + 1)


def sigmoid_gradient(w, x, y, task):
    """Of the sigmoid cross-entropy, mean over the outputs seen and over examples."""
    where = seen(task)
    d = np.where(where, sigmoid(x @ w[0] + w[1]) - one_hot(y), 0.0)
    return gradient(x, d / (where.sum() * len(x)))


def softmax_gradient(w, x, y, task):
    where = seen(task)
    return gradient(x, (softmax(x @ w[0] + w[1], where) - np.where(where, one_hot(y), 0)) / len(x))


def assert_weights(params, w, atol=1e-12):
    for ours, theirs in zip(weights(params), w, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def assert_padding_is_harmless(method: Method, model=LINEAR):
    """NaN in a masked row changes nothing."""
    learner = bind(method, model)
    state = learner.init(jax.random.key(0))
    clean = batch([0, 1, 1, 0], masked=[2])
    poisoned = clean._replace(x=clean.x.at[2].set(jnp.nan))
    after = [step(learner, state, own)[0] for own in (clean, poisoned)]
    support.assert_close(*after)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after[1].params))


def stream(per_class: int = 24, **changes):
    """Three tasks with two classes each, which lie apart."""
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 256, (6, 2, 3))

    def images(count):
        y = np.repeat(np.arange(6), count).astype(np.int32)
        noise = rng.normal(0, 8, (len(y), 2, 3))
        return np.clip(centres[y] + noise, 0, 255).astype(np.uint8), y

    (x, y), (test_x, test_y) = images(per_class), images(8)
    of_task = lambda y: [np.flatnonzero(y // 2 == t).astype(np.int32) for t in range(3)]
    same = np.tile(np.arange(6, dtype=np.int32), (3, 1))
    shuffled = lambda seed: tuple(np.random.default_rng(seed).permutation(r) for r in of_task(y))
    fields = {
        "train_x": x, "train_y": y, "test_x": test_x, "test_y": test_y, "scenario": "class",
        "class_mask": np.arange(6) // 2 == np.arange(3)[:, None], "subsets": shuffled,
        "test_index": tuple(of_task(test_y)), "valid": lambda seed: tuple(of_task(y)),
        "transform": support.stream().transform._replace(tables=same),
    }  # fmt: skip
    return support.stream(**{**fields, **changes})


def learned(method: Method, *predictors: str, epochs: int = 20, head: Head = "linear"):
    """A run on the stream: its final state, and each predictor's accuracy over all classes."""
    asked = [Evaluation(name, name, "class") for name in predictors or ("logits",)]
    net = mlp(16, head=head)(6)
    history = learn(method, net, stream(), [0], batch_size=8, epochs=epochs, evaluations=asked)
    final = {name: float(m[0, -1].mean()) for name, m in history.evaluations.items()}
    return history.states[0], final
