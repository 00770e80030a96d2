"""The contract of a penalty: a regulariser that combines with any gradient method.

    class Mine(Penalty):
        strength: Rate = positional(default=1.0)
        "Weight of the penalty."

        def init(self, params): ...             # its own state P, by default ()
        def value(self, state, params): ...     # [], added to the loss

``observe`` follows each step, ``consolidate`` ends a task. All are pure functions of the penalty's
options and of what they are given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import UserError, in_words
from cljax.options import Options
from cljax.types import Array, Batch, Info, Network, Params, Phase, PyTree, StepPlan, Variables

__all__ = ["Penalty", "check_penalty", "penalised", "penalty_phases", "penalty_state"]


class Penalty(Options):
    """A regulariser; see the module."""

    @property
    def name(self) -> str:
        """Its name on the command line and in tables."""
        return self.kind

    @property
    def needs_classes(self) -> str:
        """As a method's: why the targets must be classes; "" where any numbers will do."""
        return ""

    def init(self, params: Params) -> PyTree:
        """The penalty's own state before the first update."""
        return ()

    def begin(self, variables: Variables) -> PyTree:
        """``init``, for penalties that remember the model state as well."""
        return self.init(variables.params)

    def value(self, state: PyTree, params: Params) -> Array:
        """What is added to the loss, [] nats."""
        return jnp.zeros(())

    def distil(self, state: PyTree, params: Params, batch: Batch, network: Network) -> Array:
        """What is added to the loss as well, [] nats, for penalties on outputs."""
        return jnp.zeros(())

    def share(self, state: PyTree) -> Array | float:
        """What the method's own loss is multiplied by, []."""
        return 1.0

    def observe(self, state: PyTree, params: Params, grads: Params, updates: Params) -> PyTree:
        """After a step from ``params`` by ``updates``; ``grads`` are of the loss alone."""
        return state

    def consolidate(
        self, state: PyTree, params: Params, batch: Batch, network: Network, key: Array
    ) -> PyTree:
        """A step of the phase at the end of a task; ``batch.clock.last`` marks the last one."""
        return state

    def plan(self, task: int, rows: StepPlan) -> StepPlan | None:
        """The steps of that phase, as a ``Phase``'s; by default one, on the task's last batch."""
        return StepPlan(*(column[-1:] for column in rows))


def check_penalty(penalty: Any) -> None:
    """Raises UserError unless this is a penalty, or None."""
    if penalty is not None and not isinstance(penalty, Penalty):
        raise UserError(
            f"penalty is {in_words(penalty)}, but it must be a penalty, such as "
            "cljax.penalties.EWC(100.0)."
        )


def penalty_state(penalty: Penalty | None, variables: Variables) -> PyTree:
    """What a method keeps for its penalty in its state's field ``penalty``."""
    return () if penalty is None else penalty.begin(variables)


def penalised(
    grads: Params, penalty: Penalty, kept: PyTree, params: Params, batch: Batch, network: Network
) -> Params:
    """Gradient of the loss, which is ``grads``, with what the penalty makes of it."""
    batch = batch._replace(x=tree.blank(batch.x, batch.mask))

    def added(params: Params) -> Array:
        return penalty.value(kept, params) + penalty.distil(kept, params, batch, network)

    pull, share = jax.grad(added)(params), penalty.share(kept)
    return jax.tree.map(lambda g, p: share * g + p, grads, pull)


def penalty_phases(
    penalty: Penalty | None, network: Callable[[PyTree], Network]
) -> tuple[Phase, ...]:
    """The phase that consolidates a penalty at the end of a task; reads ``params``, ``penalty``."""
    if penalty is None:
        return ()

    def draw(state: PyTree, batch: Batch, key: Array) -> Array:
        return key

    def update(state: PyTree, batch: Batch, key: Array) -> tuple[PyTree, Info]:
        batch = batch._replace(x=tree.blank(batch.x, batch.mask))
        kept = penalty.consolidate(
            state.penalty, state.params, batch, network(state.model_state), key
        )
        return state._replace(penalty=kept), Info(jnp.zeros(()))

    return (Phase("consolidate", penalty.plan, draw, update),)
