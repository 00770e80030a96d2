"""Dark experience replay: the memory keeps what the network said, and holds it to that.

    update(batch):
      for each of G glances:
        L     = CE(theta; batch) + alpha * mean_{(x, z) in R examples} |h(x) - z|^2 / C
        L     = L + beta * CE(theta; R other examples)                        # DER++
        theta = theta - lr * clip(grad L)
      the batch is offered to the memory, with z = h(its x) before the first step

h are the network's outputs, C of them, of all classes. The two draws are independent.

Symbols: theta ``params``, G ``glances``, R ``replay_size``, M ``capacity``, z ``logits``.

Source: Buzzega, Boschini, Porrello, Abati, Calderara, "Dark Experience for General Continual
Learning: a Strong, Simple Baseline", NeurIPS 2020 (arXiv:2004.07211), Algorithms 1
and 2.

Differs from the paper, as its released code does: the squared distance is a mean over outputs, not
a sum. Examples are offered again in every epoch (``offer``). Differs from the code: images are
stored as the network saw them, augmented or not, and are not augmented anew. Under BatchNorm the
batch and each draw are normalised by their own statistics, which the running ones follow in turn.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from cljax.errors import UserError
from cljax.losses import masked_mean, row_losses
from cljax.method import Cost, Method, Problem
from cljax.methods.groups.descent import Descent, DescentOptions
from cljax.methods.groups.replay import OfferOptions
from cljax.nets.masked import masked
from cljax.options import Count, Rate
from cljax.states import Contents
from cljax.types import Array, Batch, Examples, Info, Params, PyTree, Variables

__all__ = ["DER", "Answered", "DERpp", "Draws", "LogitMemory", "State"]


class Answered(NamedTuple):
    """Inputs with the outputs that the network gave when they came."""

    x: PyTree  # [..., *example]
    logits: Any  # [..., C]


class LogitMemory(NamedTuple):
    """A memory of any kind whose inputs are ``Answered``; it shows them without the outputs."""

    rows: Any

    @property
    def contents(self) -> Contents | None:
        """The examples in it."""
        contents = self.rows.contents
        return contents and contents._replace(x=contents.x.x)


class State(NamedTuple):
    """``penalty`` is the penalty's own state, ``()`` without one."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    penalty: PyTree
    memory: LogitMemory


class Draws(NamedTuple):
    """Every random choice of one update; N is 1 draw for the logits, or 2, then for the labels."""

    replay: Examples  # leaves [G, N, R, ...], inputs ``Answered``
    replay_mask: Array  # [G, N, R] bool
    slots: PyTree  # what the memory draws for each example: of a reservoir its slot, [B] int32


class DERpp(OfferOptions, DescentOptions, Method, name="der++"):
    """Dark experience replay with labels: logits and labels of stored examples (Buzzega et al.).

    Paper: Buzzega et al., NeurIPS 2020 (arXiv:2004.07211). Pseudo-code, symbols and what differs:
    ``cljax.methods.der``.

    Example:
        >>> import cljax
        >>> method = cljax.DERpp(lr=0.3, glances=3)
        >>> run = cljax.run(method, cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    lr: Rate = 0.03
    """Step size; an optax optimiser of your own brings its own."""
    alpha: Rate = 0.1
    """Weight of the distance between the outputs on stored examples and the stored logits."""
    beta: Rate | None = 0.5
    """Weight of the loss on the labels of other stored examples; None draws none, which is der."""
    glances: Count = 1
    """Steps on each incoming batch."""
    offer: Literal["first-pass", "every-epoch"] = "every-epoch"
    """Offer examples to the memory when first seen, or again in every epoch, with new logits."""

    def empty(self, problem: Problem) -> LogitMemory:
        spec = problem.spec
        params = jax.eval_shape(problem.variables, jax.random.key(0)).params
        logits = jax.ShapeDtypeStruct((spec.num_classes,), jax.tree.leaves(params)[0].dtype)
        answered = spec._replace(example=Answered(spec.example, logits))
        return LogitMemory(self.store.init(answered, self.capacity))

    def sample(self, memory: LogitMemory, key: Array) -> tuple[Examples, Array]:
        return super().sample(memory.rows, key)

    def slots(self, memory: LogitMemory, batch: Batch, key: Array) -> PyTree:
        return super().slots(memory.rows, batch, key)

    def init(self, problem: Problem, key: Array) -> State:
        return State(*self.start(problem, key), self.empty(problem))

    def draw(self, problem: Problem, state: State, batch: Batch, key: Array) -> Draws:
        """Every glance draws anew, from the memory without the batch."""
        key_replay, key_slots = jax.random.split(key)
        keys = jax.random.split(key_replay, (self.glances, self._num_draws))
        sample = lambda key: self.sample(state.memory, key)
        replay, mask = jax.vmap(jax.vmap(sample))(keys)
        return Draws(replay, mask, self.slots(state.memory, batch, key_slots))

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: Draws
    ) -> tuple[State, Info]:
        spec, current = problem.spec, Examples(batch.x, batch.y, batch.task)
        width = draws.replay.x.logits.shape[-1]
        if width != spec.num_classes:
            raise UserError(
                f"The memory holds logits of {width} outputs, but the network has "
                f"{spec.num_classes}; start with an empty memory."
            )

        part = lambda drawn, n: jax.tree.map(lambda a: a[n], drawn)

        def glance(at: Descent, drawn: tuple[Examples, Array]) -> tuple[Descent, Any]:
            def objective(params: Params) -> tuple[Array, Any]:
                def outputs(model_state: PyTree, x: PyTree, mask: Array) -> tuple[Array, PyTree]:
                    variables = Variables(params, model_state)
                    made, after = masked(problem.model, variables, x, mask, repeat=True)
                    return made.logits, after

                logits, model_state = outputs(at.model_state, batch.x, batch.mask)
                losses = row_losses(spec, logits, current, batch.mask)
                total = masked_mean(losses, batch.mask)
                old, mask = part(drawn, 0)
                again, model_state = outputs(model_state, old.x.x, mask)
                apart = jnp.mean((again - old.x.logits) ** 2, axis=1)
                total += self.alpha * masked_mean(apart, mask)
                if self.beta is not None:
                    old, mask = part(drawn, 1)
                    again, model_state = outputs(model_state, old.x.x, mask)
                    losses = row_losses(spec, again, old._replace(x=old.x.x), mask)
                    total += self.beta * masked_mean(losses, mask)
                return total, (model_state, logits)

            after, loss, logits = self.descend_on(problem, at, objective, batch)
            return after, (loss, logits)

        drawn = (draws.replay, draws.replay_mask)
        after, (losses, logits) = jax.lax.scan(glance, Descent(*state[:4]), drawn)
        answered = batch._replace(x=Answered(batch.x, logits[0]))
        memory = LogitMemory(self.stored(state.memory.rows, answered, draws.slots))
        return State(*after, memory), Info(jnp.mean(losses))

    def cost(self, problem: Problem) -> Cost:
        examples = self._num_draws * self.replay_size + problem.spec.batch_size
        return Cost(self.glances, self.glances * examples)

    @property
    def _num_draws(self) -> int:
        return 1 if self.beta is None else 2


class DER(DERpp, name="der"):
    """Dark experience replay: stored examples are held to the logits that they had.

    Paper: Buzzega et al., NeurIPS 2020 (arXiv:2004.07211). Pseudo-code, symbols and what differs:
    ``cljax.methods.der``.

    Example:
        >>> import cljax
        >>> method = cljax.DER(lr=0.5, glances=5)
        >>> run = cljax.run(method, cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.8
        True
    """

    beta: ClassVar[None] = None

    alpha: Rate = 0.3
    """Weight of the distance between the outputs on stored examples and the stored logits."""
