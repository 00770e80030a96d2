"""Experience replay: each step learns from the batch and a draw of the reservoir.

    update(batch):
      for each of G glances:
        bm    = R replayed examples ++ the batch
        theta = theta - lr * clip(grad CE(theta; bm))
      the batch is offered to the memory

``balance="tasks"`` weighs an example by one over the number of its task's examples in bm, so the
loss is the sum over tasks of their means.

Symbols: theta ``params``, G ``glances``, R ``replay_size``, M ``capacity``.

Source: Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019
(arXiv:1902.10486); Riemer et al. 2019 (arXiv:1810.11910), algorithms 4 and 5; the code released
with La-MAML clips the gradient, glances, and offers the batch again in every epoch
(``offer="every-epoch"``).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from cljax.method import Cost, Method, Problem
from cljax.methods.groups.descent import Descent, DescentOptions, mean_weights
from cljax.methods.groups.replay import OfferOptions, beside
from cljax.options import Count, Rate
from cljax.types import Array, Batch, Examples, Info, Params, PyTree

__all__ = ["ER", "Draws", "State", "task_weights"]


class State(NamedTuple):
    """``penalty`` is the penalty's own state, ``()`` without one."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    penalty: PyTree
    memory: PyTree


class Draws(NamedTuple):
    """Every random choice of one update."""

    replay: Examples  # leaves [G, R, ...]
    replay_mask: Array  # [G, R] bool
    slots: PyTree  # what the memory draws for each example: of a reservoir its slot, [B] int32


def task_weights(task: Array, mask: Array) -> Array:
    """Weights ``[B]`` that make a sum the sum over tasks of their examples' means."""
    same = (task[:, None] == task[None]) & mask[None]
    return mask / jnp.maximum(jnp.sum(same, axis=1), 1)


class ER(OfferOptions, DescentOptions, Method, name="er"):
    """Experience replay from a reservoir (Chaudhry et al. 2019, algorithm 1).

    Paper: Chaudhry et al. 2019 (arXiv:1902.10486). Pseudo-code and symbols: ``cljax.methods.er``.

    Example:
        >>> import cljax
        >>> run = cljax.run(cljax.ER(lr=0.5, glances=3), cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    lr: Rate = 0.1
    """Step size; an optax optimiser of your own brings its own."""
    glances: Count = 1
    """Steps on each incoming batch."""
    balance: Literal["examples", "tasks"] = "examples"
    """The loss is the mean over examples, or the sum over tasks of their means."""

    def init(self, problem: Problem, key: Array) -> State:
        return State(*self.start(problem, key), self.empty(problem))

    def draw(self, problem: Problem, state: State, batch: Batch, key: Array) -> Draws:
        """Every glance draws anew, from the memory without the batch."""
        key_replay, key_slots = jax.random.split(key)
        keys = jax.random.split(key_replay, self.glances)
        replay, mask = jax.vmap(lambda key: self.sample(state.memory, key))(keys)
        return Draws(replay, mask, self.slots(state.memory, batch, key_slots))

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: Draws
    ) -> tuple[State, Info]:
        current = Examples(batch.x, batch.y, batch.task)
        weigh = task_weights if self.balance == "tasks" else lambda task, mask: mean_weights(mask)

        def glance(at: Descent, drawn: tuple[Examples, Array]) -> tuple[Descent, Array]:
            replay = self.chosen(problem, at, batch, *drawn)
            examples, mask = beside(replay, (current, batch.mask))
            return self.descend(problem, at, examples, weigh(examples.task, mask), batch)

        after, losses = jax.lax.scan(glance, Descent(*state[:4]), (draws.replay, draws.replay_mask))
        memory = self.stored(state.memory, batch, draws.slots)
        return State(*after, memory), Info(jnp.mean(losses))

    def chosen(
        self, problem: Problem, at: Descent, batch: Batch, examples: Examples, mask: Array
    ) -> tuple[Examples, Array]:
        """Which of the drawn examples a step learns from, and their mask: here all of them."""
        return examples, mask

    def cost(self, problem: Problem) -> Cost:
        examples = self.replay_size + problem.spec.batch_size
        return Cost(self.glances, self.glances * examples)
