"""Exemplars of a few classes in small networks: the gradient through training on them, phases."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cljax.memory import exemplars as store
from cljax.memory import learned as pixels
from cljax.memory.bilevel import Bilevel, Judged, outer_gradient
from cljax.memory.policy import ExemplarPolicy
from cljax.method import Problem
from cljax.methods.with_exemplars import View
from cljax.nets import from_linen, mlp
from cljax.nets.batchnorm import BatchNorm
from cljax.types import Batch, Clock, Spec

CLASSES, PER_CLASS, SIZE = 3, 2, 4
NET = mlp(5)
LINEAR = mlp()  # its features are its inputs


class Convolving(nn.Module):
    """A convolution, BatchNorm and a head."""

    num_outputs: int

    @nn.compact
    def __call__(self, x, train, member=None):
        x = x.reshape(x.shape[0], 2, 2, 1)
        x = nn.Conv(3, (2, 2), param_dtype=x.dtype)(x)
        x = nn.relu(BatchNorm(param_dtype=x.dtype)(x, train, member)).mean(axis=(1, 2))
        return nn.Dense(self.num_outputs, param_dtype=x.dtype, name="head")(x), x


def convolving(num_outputs):
    return from_linen(Convolving(num_outputs), head="head")


@functools.cache
def problem(net=NET):
    """A two-layer network, exemplars of three classes, a validation batch, inner slots of 5."""
    with jax.enable_x64(True):
        example = jax.ShapeDtypeStruct((SIZE,), jnp.float64)
        show = lambda x, task, key=None: x / 8 - 0.1
        spec = Spec(example, np.ones((1, CLASSES), bool), 4, stored=example, show=show)
        model, rng = net(CLASSES), np.random.default_rng(0)
        variables = model.init(jax.random.key(0), jnp.zeros((2, SIZE)))
        budget = store.budget_of(spec.class_mask, per_class=PER_CLASS)
        kept = pixels.empty(spec, budget, rounding="nearest")
        values = jnp.asarray(8 * rng.normal(size=kept.pixels.shape))
        y = jnp.arange(CLASSES * PER_CLASS, dtype=jnp.int32) // PER_CLASS
        kept = kept._replace(pixels=values, x=values, y=y, mask=jnp.ones(6, bool))
        x = jnp.asarray(rng.normal(size=(5, SIZE)))
        labels = jnp.array([0, 1, 2, 0, 1], jnp.int32)
        judged = Judged(x, labels, jnp.arange(5) != 3, jnp.ones(CLASSES, bool))
        slots = jnp.array([[0, 2, 4], [1, 3, 5], [0, 3, 4], [1, 2, 5], [0, 2, 5]])
        return model, spec, variables, kept, judged, slots, jnp.ones(slots.shape, bool)


@functools.cache
def compiled(steps: int, net=NET, rate: float = 0.5, **options):
    """``(task, variables, kept, judged, mask) -> (loss, gradient)`` after so many inner steps."""
    model, spec, _, _, _, slots, _ = problem(net)
    how = Bilevel(steps, rate, **options)

    @jax.jit
    def run(task, variables, kept, judged, mask):
        inner = slots[:steps], mask[:steps]
        return outer_gradient(Problem(model, spec), variables, kept, *inner, judged, task, how)

    return run


def judge(
    steps: int, *, net=NET, task=0, variables=None, kept=None, judged=None, mask=None, **options
):
    """Loss and gradient after so many inner steps, with parts of the problem replaced."""
    _, _, *whole, _, every = problem(net)
    given, whole = (variables, kept, judged, mask), (*whole, every)
    parts = (own if new is None else new for new, own in zip(given, whole, strict=True))
    return compiled(steps, net, **options)(jnp.int32(task), *parts)


def phases_of_the_second_task(policy: ExemplarPolicy, net=LINEAR):
    """Two tasks of two classes, two exemplars each: updates by name, a state, the budget."""
    example = jax.ShapeDtypeStruct((SIZE,), jnp.float64)
    owners = np.arange(4) // 2 == np.arange(2)[:, None]
    show = lambda x, task, key=None: x / 8 - 0.1
    spec = Spec(example, owners, 5, stored=example, show=show)
    model, rng = net(4), np.random.default_rng(0)
    budget = store.budget_of(owners, per_class=2)
    kept, x = policy.init(model, spec, budget), jnp.asarray(8 * rng.normal(size=(8, SIZE)))
    y = jnp.arange(8, dtype=jnp.int32) // 2
    kept = kept._replace(x=x, y=y, task=y // 2, mask=jnp.ones(8, bool), chosen=x)
    variables = model.init(jax.random.key(0), jnp.zeros((2, SIZE)))
    phases = {p.name: jax.jit(p.update) for p in policy.phases(model, spec, budget)}
    return phases, View(*variables, kept), budget


def moment(step: int, epoch: int, index, x, y) -> Batch:
    """A batch of the second task, whose last row is padding."""
    task, step, epoch = (jnp.int32(i) for i in (1, step, epoch))
    clock = Clock(task, epoch, step, jnp.bool_(False), jnp.bool_(False))
    mask = jnp.arange(len(y)) < len(y) - 1
    return Batch(x, y, jnp.ones_like(y), mask, jnp.asarray(index, jnp.int32), clock)
