"""Fixed representation: the first task teaches the features, later ones only their own outputs.

    update(batch of task 0):   theta, phi_0 = one step on CE(theta, phi; batch)
    update(batch of task s):   phi_s        = one step on CE(theta, phi; batch)

The cross-entropy is over all outputs seen: of a softmax, so that new rows learn against the old,
frozen ones, or, mean over outputs, of sigmoids, where each row learns for itself. There is no
memory. From task 1 on BatchNorm's statistics are frozen as well, and normalise.

Symbols: phi_s the head's rows of task s, theta all other parameters.

Source: the baseline "fixed representation" of Rebuffi, Kolesnikov, Sperl, Lampert, "iCaRL", CVPR
2017 (arXiv:1611.07725), section 4.1, with a linear head on all classes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cljax.errors import UserError
from cljax.method import Method, Problem
from cljax.methods.groups.sessions import LossOptions
from cljax.methods.incremental import blanked, seen_outputs, training
from cljax.types import Array, Batch, Info, Output, Params, Phase, PyTree, Variables

__all__ = ["FixedRep", "State"]


class State(NamedTuple):
    """Parameters, statistics and the optimiser's state."""

    params: Params
    model_state: PyTree
    opt_state: PyTree


class FixedRep(LossOptions, Method):
    """Features of the first task, frozen, and a linear head that grows.

    Paper: Rebuffi et al., CVPR 2017 (arXiv:1611.07725), section 4.1. Pseudo-code and symbols:
    ``cljax.methods.fixed_rep``.

    Example:
        >>> import cljax
        >>> method = cljax.FixedRep(lr=0.3)
        >>> run = cljax.run(method, cljax.streams.toy("class"), seeds=1, net="mlp:16")
        >>> float(run.metric("LA")[0]) > 0.7  # each task is learned, if not told from the others
        True
    """

    def fit(self, problem: Problem) -> None:
        super().fit(problem)
        if problem.model.head is None:
            raise UserError(
                "fixed-rep freezes all but the head, but this network does not say which of its "
                "parameters that is; give its Model a head (see cljax.types.Model)."
            )

    def init(self, problem: Problem, key: Array) -> State:
        params, model_state = problem.variables(key)
        return State(params, model_state, self.opt_state(params))

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: tuple[()]
    ) -> tuple[State, Info]:
        """One gradient step on what may still learn; ``info.loss`` is in nats."""
        model, class_mask = problem.model, problem.spec.class_mask
        assert model.head is not None
        batch, task = blanked(batch), batch.clock.task
        seen, first = seen_outputs(class_mask, task), task == 0
        shared = model.head(state.params, jnp.zeros(class_mask.shape[1], bool))  # no output's rows
        learns = jax.tree.map(
            lambda rows, body: rows & (first | ~body),
            model.head(state.params, jnp.asarray(class_mask)[task]),
            shared,
        )

        def forward(variables: Variables, x: PyTree, mask: Array) -> tuple[Output, PyTree]:
            train = lambda: training(model)(variables, x, mask)
            if not jax.tree.leaves(variables.model_state):
                return train()
            return jax.lax.cond(first, train, lambda: model.apply(variables, x, False))

        def objective(params: Params, output: Output) -> Array:
            return self.mean_loss(problem.spec, output.logits, batch, seen)

        state, value = self.descend(state, batch, objective, forward=forward, learns=learns)
        return state, Info(value)

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        return self.fresh_optimizer()
