"""MIR: replay of those stored examples that a step on the batch alone would harm most.

    update(batch):
      for each of G glances:
        theta' = theta - lr * clip(grad CE(theta; batch))          # the virtual step
        s_i    = CE(theta'; x_i) - CE(theta; x_i)                  # of N candidates from the memory
        bm     = the R candidates with the largest s ++ the batch
        theta  = theta - lr * clip(grad CE(theta; bm))
      the batch is offered to the memory

Symbols: theta ``params``, lr ``virtual_lr`` and ``lr``, G ``glances``, N ``candidates``,
R ``replay_size``, M ``capacity``.

Source: Aljundi, Caccia, Belilovsky, Caccia, Lin, Charlin, Tuytelaars, "Online Continual Learning
with Maximally Interfered Retrieval", NeurIPS 2019 (arXiv:1908.04742), Algorithm 1 (ER-MIR) with
the score MI-1.

Differs: the virtual step is plain gradient descent, whatever the optimiser. Candidates are scored
in evaluation mode: under BatchNorm by the running statistics, which the virtual step does not
reach. A penalty pulls at the step itself, not at the virtual one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import UserError
from cljax.method import Cost, Problem
from cljax.methods.er import ER, Draws, State
from cljax.methods.groups.descent import Descent
from cljax.options import Count, Rate
from cljax.types import Array, Batch, Examples, Variables

__all__ = ["MIR", "Draws", "State"]


class MIR(ER, name="mir"):
    """Maximally interfered retrieval: experience replay of the examples at risk (Aljundi 2019).

    Paper: Aljundi et al., NeurIPS 2019 (arXiv:1908.04742). Pseudo-code, symbols and what differs:
    ``cljax.methods.mir``.

    Example:
        >>> import cljax
        >>> method = cljax.MIR(lr=0.3, glances=3)
        >>> run = cljax.run(method, cljax.streams.toy("class"), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    candidates: Count = 50
    """Stored examples drawn for each step, of which the most interfered are replayed (N)."""
    virtual_lr: Rate | None = None
    """Step size of the virtual step; None is lr."""

    def fit(self, problem: Problem) -> None:
        super().fit(problem)
        if self.candidates > self.capacity:
            raise UserError(
                f"candidates is {self.candidates}, but the memory has {self.capacity} places; draw "
                "at most as many, or raise capacity."
            )

    def check(self) -> None:
        super().check()
        if self.candidates < self.replay_size:
            raise UserError(
                f"candidates is {self.candidates}, but {self.replay_size} of them are replayed; "
                "draw at least as many, or lower replay_size."
            )

    def sample(self, memory: object, key: Array) -> tuple[Examples, Array]:
        """The candidates, leaves [N, ...], and which of them are valid, [N] bool."""
        return self.store.sample(memory, self.candidates, key, replace=self.with_replacement)

    def chosen(
        self, problem: Problem, at: Descent, batch: Batch, examples: Examples, mask: Array
    ) -> tuple[Examples, Array]:
        """The R candidates whose loss the virtual step raises most, leaves [R, ...]."""
        variables = Variables(at.params, at.model_state)
        rate = self.lr if self.virtual_lr is None else self.virtual_lr
        _, grads = problem.value_and_grad(variables, batch)
        moved = tree.add_scaled(at.params, tree.clip_norm(grads, self.clip_norm), -rate)
        network = problem.network(at.model_state)
        blank = examples._replace(x=tree.blank(examples.x, mask))
        harm = network.losses(variables._replace(params=moved), blank)
        harm = harm - network.losses(variables, blank)
        _, rows = jax.lax.top_k(jnp.where(mask, harm, -jnp.inf), self.replay_size)
        return jax.tree.map(lambda a: a[rows], (examples, mask))

    def cost(self, problem: Problem) -> Cost:
        """Gradients of the virtual step too; the candidates' losses are forward passes alone."""
        own = super().cost(problem)
        assert own.gradients is not None and own.examples is not None
        virtual = self.glances * problem.spec.batch_size
        return Cost(own.gradients + self.glances, own.examples + virtual)
