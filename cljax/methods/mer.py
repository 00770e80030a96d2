"""Meta-experience replay: sequential steps on single examples, drawn together by Reptile.

    update(z):                                      # one example at a time
      theta_A = theta
      for each of s sweeps:
        theta_W = theta
        for u in the sweep's sequence of z and R replayed examples:
          theta = theta - lr * clip(grad CE(theta; u))
        theta = theta_W + beta * (theta - theta_W)        # within a sweep
      theta = theta_A + gamma * (theta - theta_A)         # across sweeps
      z is offered to the memory

``algorithm="1"``: z comes first, and both Reptile steps. ``"6"``: z comes last, and only the step
within a sweep, by gamma. ``"7"``: one sweep with z at a random place and its loss ``z_scale``
times as large; the stream's first example is only stored.

Symbols: theta ``params``, s ``sweeps``, R ``replay_size``, M ``capacity``, beta ``beta``,
gamma ``gamma``.

Source: Riemer et al., "Learning to Learn without Forgetting by Maximizing Transfer and Minimizing
Interference", ICLR 2019 (arXiv:1810.11910), algorithms 1, 6 and 7, and the released code. A batch
of B examples is B updates one after the other. The code released with La-MAML clips too.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.method import Cost, Method, Problem
from cljax.methods.groups.replay import ReplayOptions
from cljax.options import Bound, Count, Rate
from cljax.types import Array, Batch, Examples, Info, Params, PyTree

__all__ = ["MER", "Algorithm", "Draws", "State"]

Algorithm = Literal["1", "6", "7"]


class State(NamedTuple):
    """The network and the reservoir of stored examples."""

    params: Params
    model_state: PyTree
    memory: PyTree


class Draws(NamedTuple):
    """Every random choice of one update, in the order of the steps. N = R + 1.

    The replay is drawn from the memory as the batch found it, and from the batch's own examples
    where they have entered since.
    """

    sequence: Examples  # leaves [B, s, N, ...], what each step learns from
    mask: Array  # [B, s, N] bool, False: no step
    scale: Array  # [B, s, N], factor of each step's loss
    slots: PyTree  # what the memory draws for each example: of a reservoir its slot, [B] int32


class MER(ReplayOptions, Method, name="mer"):
    """Meta-experience replay: Reptile over sequences of single examples (algorithms 1, 6, 7).

    Paper: Riemer et al., ICLR 2019 (arXiv:1810.11910). Pseudo-code and symbols:
    ``cljax.methods.mer``.

    Example:
        >>> import cljax
        >>> run = cljax.run(cljax.MER(lr=0.1), cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    lr: Rate = 0.03
    """Step size on every single example (alpha in the paper)."""
    beta: Rate = 0.03
    """Share of the way that a sweep's Reptile step goes, in algorithm 1."""
    gamma: Rate = 1.0
    """Share of the way that the outer Reptile step goes."""
    sweeps: Count = 10
    """Sequences for each incoming example (s); algorithm 7 has one."""
    replay_size: Count = 10
    """Replayed examples in each sequence."""
    algorithm: Algorithm = "1"
    """Of the paper: 1 with both Reptile steps, 6 with one and the example last, 7 with the example
    at a random place, weighed by z_scale."""
    z_scale: Rate = 1.0
    """Factor of the incoming example's loss, in algorithm 7."""
    clip_norm: Bound | None = None
    """Bound of the global norm of each gradient; None disables."""

    def init(self, problem: Problem, key: Array) -> State:
        return State(*problem.variables(key), self.empty(problem))

    def draw(self, problem: Problem, state: State, batch: Batch, key: Array) -> Draws:
        """Makes the random choices of the updates on a batch: the sequence of every sweep."""
        key_slots, key_examples = jax.random.split(key)
        current = Examples(batch.x, batch.y, batch.task)
        slots = self.slots(state.memory, batch, key_slots)

        def one(memory: PyTree, entry: Any) -> tuple[PyTree, Any]:
            z, valid, offer, slot, key = entry
            keys = jax.random.split(key, self._num_sweeps)
            sequence, mask, scale = jax.vmap(lambda key: self._sweep(memory, z, key))(keys)
            single = jax.tree.map(lambda a: a[None], (z, offer, slot))
            memory = self.store.offer(memory, *single)
            return memory, (sequence, mask & valid, scale)

        entries = (
            current, batch.mask, self.offered(batch), slots,
            jax.random.split(key_examples, len(batch.mask)),
        )  # fmt: skip
        if len(batch.mask) == 1:  # the usual case, without a copy of the memory
            drawn = one(state.memory, jax.tree.map(lambda a: a[0], entries))[1]
            drawn = jax.tree.map(lambda a: a[None], drawn)
        else:
            drawn = jax.lax.scan(one, state.memory, entries)[1]
        sequence, mask, scale = drawn
        return Draws(sequence, mask, scale, slots)

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: Draws
    ) -> tuple[State, Info]:
        """One update for each example of the batch; ``info.loss`` is the mean loss of all steps."""
        loss_fn, both = problem.loss_fn, self.algorithm == "1"

        def step(carry: Any, entry: Any) -> tuple[Any, Array]:
            params, model_state = carry
            example, valid, scale = entry
            single = jax.tree.map(lambda a: a[None], example)

            def loss(params: Params) -> tuple[Array, PyTree]:
                losses, model_state_after = loss_fn(params, model_state, single, valid[None])
                return scale * losses[0], model_state_after

            # Outside the mask loss and gradient are 0, and statistics stay.
            (value, model_state), grads = jax.value_and_grad(loss, has_aux=True)(params)
            params = tree.add_scaled(params, tree.clip_norm(grads, self.clip_norm), -self.lr)
            return (params, model_state), value

        def sweep(carry: Any, entries: Any) -> tuple[Any, Array]:
            (params, model_state), losses = jax.lax.scan(step, carry, entries)
            share = self.beta if both else self.gamma
            return (_towards(carry[0], params, share), model_state), losses

        def example(carry: Any, entries: Any) -> tuple[Any, Array]:
            (params, model_state), losses = jax.lax.scan(sweep, carry, entries)
            if both:
                params = _towards(carry[0], params, self.gamma)
            return (params, model_state), losses

        (params, model_state), losses = jax.lax.scan(
            example, (state.params, state.model_state), (draws.sequence, draws.mask, draws.scale)
        )
        memory = self.stored(state.memory, batch, draws.slots)
        mean = jnp.sum(losses) / jnp.maximum(jnp.sum(draws.mask), 1)
        return State(params, model_state, memory), Info(mean)

    def cost(self, problem: Problem) -> Cost:
        steps = problem.spec.batch_size * self._num_sweeps * (self.replay_size + 1)
        return Cost(steps, steps)

    @property
    def _num_sweeps(self) -> int:
        return 1 if self.algorithm == "7" else self.sweeps

    def _sweep(self, memory: PyTree, z: Examples, key: Array) -> tuple[Examples, Array, Array]:
        """A sequence of z and replayed examples, leaves [N, ...], its mask and its scale, [N]."""
        key_replay, key_place = jax.random.split(key)
        replay, mask = self.sample(memory, key_replay)
        first = jax.tree.map(
            lambda new, old: jnp.concatenate([new[None], old.astype(new.dtype)]), z, replay
        )
        stored, mask = mask, jnp.concatenate([jnp.ones(1, bool), mask])
        # Where each entry of (z, replay...) stands in the sequence: z is entry 0.
        if self.algorithm == "1":
            order = jnp.arange(self.replay_size + 1)
        elif self.algorithm == "6":
            order = jnp.roll(jnp.arange(self.replay_size + 1), -1)
        else:
            order = jnp.argsort(jnp.where(mask, jax.random.uniform(key_place, mask.shape), 2.0))
        sequence, mask = jax.tree.map(lambda a: a[order], (first, mask))
        if self.algorithm == "7":
            mask = mask & jnp.any(stored)
        scale = jnp.where(order == 0, self.z_scale if self.algorithm == "7" else 1.0, 1.0)
        return sequence, mask, scale


def _towards(start: Params, end: Params, share: Array | float) -> Params:
    return jax.tree.map(lambda a, b: a + share * (b - a), start, end)
