"""ER-ACE: new classes are learned among themselves, old ones by replay among all.

    update(batch):
      for each of G glances:
        L     = CE(theta; batch) over its classes and those not seen yet
        L     = L + CE(theta; R replayed examples) over all classes
        theta = theta - lr * clip(grad L)
      the batch is offered to the memory

So the incoming examples do not push down the outputs of old classes that they do not have. With
``unseen="masked"`` the first loss is over the batch's classes alone, and the second over those seen
so far. With ``form="task-aware"`` the first task is learned by plain cross-entropy, without replay.

Symbols: theta ``params``, G ``glances``, R ``replay_size``, M ``capacity``.

Source: Caccia, Aljundi, Asadi, Tuytelaars, Pineau, Belilovsky, "New Insights on Reducing Abrupt
Representation Change in Online Continual Learning", ICLR 2022 (arXiv:2104.05025).

Differs from the paper, as its released code does, in that outputs of unseen classes compete too
(``unseen``). Differs from the code: those are the classes that no example had, in any order, not
the outputs from the largest label on; and there is no cosine classifier, unless the network has
one. Under BatchNorm the batch and the replay are normalised by their own statistics, which the
running ones follow in turn.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from cljax.losses import cross_entropy, head_mask, masked_mean, weighted
from cljax.method import Cost, Method, Problem
from cljax.methods.groups.descent import Descent, DescentOptions
from cljax.methods.groups.replay import OfferOptions
from cljax.nets.masked import masked
from cljax.options import Count, Rate
from cljax.types import Array, Batch, Examples, Info, Needs, Params, PyTree, Variables

__all__ = ["ERACE", "Draws", "State"]


class State(NamedTuple):
    """``penalty`` is the penalty's own state, ``()`` without one."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    penalty: PyTree
    memory: PyTree
    seen: Array  # [C] bool, classes that an example had


class Draws(NamedTuple):
    """Every random choice of one update."""

    replay: Examples  # leaves [G, R, ...]
    replay_mask: Array  # [G, R] bool
    slots: PyTree  # what the memory draws for each example: of a reservoir its slot, [B] int32


class ERACE(OfferOptions, DescentOptions, Method, name="er-ace"):
    """Experience replay with an asymmetric cross-entropy (Caccia et al. 2022).

    Paper: Caccia et al., ICLR 2022 (arXiv:2104.05025). Pseudo-code, symbols and what differs:
    ``cljax.methods.er_ace``.

    Example:
        >>> import cljax
        >>> method = cljax.ERACE(lr=0.5, glances=3)
        >>> run = cljax.run(method, cljax.streams.toy("class"), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    lr: Rate = 0.03
    """Step size; an optax optimiser of your own brings its own."""
    glances: Count = 1
    """Steps on each incoming batch."""
    form: Literal["task-free", "task-aware"] = "task-free"
    """Task-free, or task-aware, which learns the first task by plain cross-entropy without replay,
    as the released code does by default."""
    unseen: Literal["compete", "masked"] = "compete"
    """Outputs of classes not seen yet compete, as in the released code, or are masked."""

    @property
    def needs(self) -> Needs:
        own = super().needs
        return own._replace(boundaries=own.boundaries or self.form == "task-aware")

    @property
    def needs_classes(self) -> str:
        return "masks the outputs of classes"

    @property
    def fixed_loss(self) -> str:
        return "minimises a cross-entropy over some of the classes"

    def init(self, problem: Problem, key: Array) -> State:
        seen = jnp.zeros(problem.spec.num_classes, bool)
        return State(*self.start(problem, key), self.empty(problem), seen)

    def draw(self, problem: Problem, state: State, batch: Batch, key: Array) -> Draws:
        """Every glance draws anew, from the memory without the batch."""
        key_replay, key_slots = jax.random.split(key)
        keys = jax.random.split(key_replay, self.glances)
        replay, mask = jax.vmap(lambda key: self.sample(state.memory, key))(keys)
        return Draws(replay, mask, self.slots(state.memory, batch, key_slots))

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: Draws
    ) -> tuple[State, Info]:
        spec, current = problem.spec, Examples(batch.x, batch.y, batch.task)
        classes = jnp.arange(spec.num_classes)
        present = jnp.any((batch.y[:, None] == classes[None]) & batch.mask[:, None], axis=0)
        seen = state.seen | present
        competing = self.unseen == "compete"
        among_all = jnp.ones_like(seen) if competing else seen
        among_new = present | ~seen if competing else present
        plain = (batch.clock.task == 0) & (self.form == "task-aware")
        among_new = jnp.where(plain, among_all, among_new)

        def glance(at: Descent, drawn: tuple[Examples, Array]) -> tuple[Descent, Array]:
            def objective(params: Params) -> tuple[Array, Any]:
                def mean(
                    model_state: PyTree, examples: Examples, mask: Array, outputs: Array
                ) -> tuple[Array, PyTree]:
                    variables, x = Variables(params, model_state), examples.x
                    made, after = masked(problem.model, variables, x, mask, repeat=True)
                    head = head_mask(spec, examples.task)
                    where = outputs[None] if head is None else outputs[None] & head
                    where = where | ~mask[:, None]  # finite in rows of padding too
                    losses = cross_entropy(made.logits, examples.y, where)
                    return masked_mean(weighted(spec, losses, examples.y), mask), after

                replay, mask = drawn
                new, model_state = mean(at.model_state, current, batch.mask, among_new)
                old, model_state = mean(model_state, replay, mask & ~plain, among_all)
                return new + old, (model_state, ())

            after, loss, _ = self.descend_on(problem, at, objective, batch)
            return after, loss

        drawn = (draws.replay, draws.replay_mask)
        after, losses = jax.lax.scan(glance, Descent(*state[:4]), drawn)
        memory = self.stored(state.memory, batch, draws.slots)
        return State(*after, memory, seen), Info(jnp.mean(losses))

    def cost(self, problem: Problem) -> Cost:
        examples = self.replay_size + problem.spec.batch_size
        return Cost(self.glances, self.glances * examples)
