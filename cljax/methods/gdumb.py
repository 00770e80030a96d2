"""GDumb: a greedy memory, and a dumb learner that is trained on it from scratch to be tested.

    update(batch):       the batch is offered to the memory, and nothing is learned
    before each test:    theta = a new network
      for each of E passes over the memory, in batches of b and a new order:
        theta = theta - rate * Opt(grad CE(theta; batch of the memory))

    rate, pass by pass:  lr / 10 once, then cycles of 1, 2, 4, ... passes, in each of them from lr
                         down to min_lr along half a cosine

Symbols: theta ``params``, E ``passes``, b ``memory_batch``, M ``capacity``.

Source: Prabhu, Torr, Dokania, "GDumb: A Simple Approach that Questions Our Progress in Continual
Learning", ECCV 2020: its sampler, and its learner, by SGD in batches of 16 at rates from 0.05 to
0.0005 with warm restarts (Loshchilov, Hutter 2017, arXiv:1608.03983), whose cycles begin with 1
pass and double, after 1 of warm-up.

The memory is balanced by class alone: where tasks share their classes, it keeps those of the first.

Differs: the learner goes through all its passes, without early stopping; images are stored as the
network saw them, augmented or not, and are neither augmented anew nor mixed (CutMix). It is trained
at the end of each task, not for the last test alone; in between, tests see the one before. Ours are
the number of passes, the warm-up at a tenth of the rate, and no momentum or decay.
"""

from __future__ import annotations

import functools
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import tree
from cljax.losses import masked_mean
from cljax.memory.memories import Remembered
from cljax.method import Method, Problem
from cljax.methods.groups.replay import ReplayOptions
from cljax.optimizers import Optimizer, Transformation, make_optimizer
from cljax.options import Bound, Count, Natural, Positive, StaticRate
from cljax.types import (
    Array,
    Batch,
    Examples,
    Info,
    Params,
    Phase,
    PyTree,
    StepPlan,
    Variables,
)

__all__ = ["Draws", "GDumb", "State"]

_WARM_UP = 0.1  # of the rate


class State(NamedTuple):
    """The learner of the last test, and the memory."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    memory: PyTree
    order: Array  # [M] int32, slots in the order of the current pass, those with examples first


class Draws(NamedTuple):
    """Every random choice of one update."""

    slots: PyTree  # what the memory draws for each example


class GDumb(ReplayOptions, Method, name="gdumb"):
    """GDumb: a greedily balanced memory, and a network trained on it alone (Prabhu et al. 2020).

    Paper: Prabhu, Torr, Dokania, ECCV 2020. Pseudo-code, symbols and what differs:
    ``cljax.methods.gdumb``.

    Example:
        >>> import cljax
        >>> method = cljax.GDumb(capacity=40, passes=64)
        >>> run = cljax.run(method, cljax.streams.toy("class"), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    replay_size: ClassVar[int] = 1  # nothing is replayed beside a batch
    with_replacement: ClassVar[bool] = False
    optimizer_at_border: ClassVar[Literal["reset"]] = "reset"

    memory: Remembered = "greedy"
    """What is stored: greedy, reservoir, ring or balanced, with options after a colon, as in
    ring:per=class; or package.module:Memory, in Python a ``cljax.memory.Memory``."""
    lr: Positive = 0.05
    """Rate at the beginning of each cycle; an optax optimiser of your own brings its own."""
    min_lr: Positive = 0.0005
    """Rate that each cycle falls to."""
    passes: Count = 256
    """Of the learner over the memory (E); 256 is a pass of warm-up and eight whole cycles."""
    warm_up: Natural = 1
    """Passes at a tenth of the rate before the first cycle."""
    first_cycle: Count = 1
    """Passes of the first cycle."""
    cycle_factor: Count = 2
    """How many times as long each cycle is as the one before."""
    memory_batch: Count = 16
    """Examples of the memory in each step of the learner (b)."""
    optimizer: Optimizer = "sgd"
    """Sgd, momentum (0.9), adam, radam, or an ``optax.GradientTransformation``."""
    weight_decay: StaticRate = 0.0
    """Adds so many parameters to the gradient (L2)."""
    clip_norm: Bound | None = None
    """Bound of the global norm of the gradient; None disables."""

    def check(self) -> None:
        super().check()
        make_optimizer(self.optimizer, self.lr, weight_decay=self.weight_decay)

    def init(self, problem: Problem, key: Array) -> State:
        memory = self.empty(problem)
        order = jnp.arange(memory.contents.mask.size, dtype=jnp.int32)
        params, model_state = problem.variables(key)
        return State(params, model_state, self._step(0).init(params), memory, order)

    def draw(self, problem: Problem, state: State, batch: Batch, key: Array) -> Draws:
        return Draws(self.slots(state.memory, batch, key))

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: Draws
    ) -> tuple[State, Info]:
        """Stores a batch; ``info.loss`` is that of the last learner on it, in evaluation mode."""
        network = problem.network(state.model_state)
        examples = Examples(tree.blank(batch.x, batch.mask), batch.y, batch.task)
        losses = network.losses(Variables(state.params, state.model_state), examples)
        memory = self.stored(state.memory, batch, draws.slots)
        return state._replace(memory=memory), Info(masked_mean(losses, batch.mask))

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        """A new network, then its passes over the memory; their plans name no example."""
        fresh = Phase(
            "new-learner",
            lambda task, rows: _plan(task, 1, 1),
            lambda state, batch, key: problem.variables(key),
            self._begin,
        )
        learner = Phase(
            "learner",
            lambda task, rows: _plan(task, self.passes, self._num_steps(problem)),
            functools.partial(self._order, problem),
            functools.partial(self._learn, problem),
        )
        return fresh, learner

    def rate(self, number: Array | int) -> Array:
        """The rate [] of a pass by its number [] from 0."""
        import optax  # here, so that other methods work without it

        parts, begins = [], []
        if self.warm_up:
            parts.append(optax.constant_schedule(_WARM_UP * self.lr))
        begin, length = self.warm_up, self.first_cycle
        while begin < self.passes:
            parts.append(optax.cosine_decay_schedule(self.lr, length, self.min_lr / self.lr))
            begins.append(begin)
            begin, length = begin + length, length * self.cycle_factor
        return jnp.asarray(optax.join_schedules(parts, begins[1 - len(parts) :])(number))

    def _step(self, number: Array | int) -> Transformation:
        return make_optimizer(self.optimizer, self.rate(number), weight_decay=self.weight_decay)

    def _num_steps(self, problem: Problem) -> int:
        """Steps of a pass over a filled memory; those past its examples change nothing."""
        mask = jax.eval_shape(lambda: self.empty(problem).contents.mask)
        return -(-mask.size // self.memory_batch)

    def _begin(self, state: State, batch: Batch, network: Variables) -> tuple[State, Info]:
        opt_state = self._step(0).init(network.params)
        return State(*network, opt_state, state.memory, state.order), Info(jnp.zeros(()))

    def _order(self, problem: Problem, state: State, batch: Batch, key: Array) -> Array:
        """[M] int32, a new order at the beginning of a pass, else that of the state."""
        mask = state.memory.contents.mask.reshape(-1)
        ranks = jnp.where(mask, jax.random.uniform(key, mask.shape), 2.0)
        begins = batch.clock.step % self._num_steps(problem) == 0
        return jnp.where(begins, jnp.argsort(ranks).astype(jnp.int32), state.order)

    def _learn(
        self, problem: Problem, state: State, batch: Batch, order: Array
    ) -> tuple[State, Info]:
        contents, size = state.memory.contents, self.memory_batch
        place = batch.clock.step % self._num_steps(problem) * size + jnp.arange(size)
        inside, slots = place < order.size, order[jnp.minimum(place, order.size - 1)]
        flat = lambda a: a.reshape(-1, *a.shape[contents.mask.ndim :])[slots]
        x, y, task, mask = jax.tree.map(flat, tuple(contents[:4]))
        shown = batch._replace(x=x, y=y, task=task, mask=mask & inside)
        (loss, model_state), grads = problem.value_and_grad(state, shown)
        grads = tree.clip_norm(grads, self.clip_norm)
        by = self._step(batch.clock.epoch)
        updates, opt_state = by.update(grads, state.opt_state, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        after = State(params, model_state, opt_state, state.memory, order)
        some = jnp.any(shown.mask)  # decay and momentum alone are no step
        return tree.select(some, after, state._replace(order=order)), Info(loss)


def _plan(task: int, passes: int, steps: int) -> StepPlan:
    """Updates that take nothing of the stream: ``steps`` in each pass, which is their epoch."""
    count = passes * steps
    none, never = np.zeros((count, 1), np.int32), np.zeros(count, bool)
    epoch = np.repeat(np.arange(passes, dtype=np.int32), steps)
    last = np.arange(count) == count - 1
    current = np.full(count, task, np.int32)
    return StepPlan(none, none, none > 0, current, epoch, never, last)
