"""Learning without forgetting: the old outputs keep what the network said before the task.

    penalty  = strength * tau^2 * E_x KL(softmax(z_old(x) / tau) || softmax(z(x) / tau))
    end of t:  the network becomes the old one

x are the incoming examples, and the softmax runs over the outputs of past tasks: together where
tasks share a head, by task where each has its own. No memory of examples.

Symbols: lambda ``strength``, tau ``temperature``.

Source: Li, Hoiem, "Learning without Forgetting", TPAMI 2017 (arXiv:1606.09282), equations 2 to 4;
the KL divergence differs from their cross-entropy by a constant, and tau^2 keeps the gradient's
size. The old network shares the current one's BatchNorm statistics.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from cljax.errors import check_above_zero, check_rate
from cljax.losses import distillation, masked_mean
from cljax.penalties.common import nothing_observed
from cljax.types import Array, Batch, Network, Params, Penalty, Variables

__all__ = ["State", "lwf"]


class State(NamedTuple):
    """The old network's parameters, and how many tasks it has seen, [] int32."""

    teacher: Params
    tasks: Array


def lwf(strength: Array | float = 1.0, *, temperature: Array | float = 2.0) -> Penalty:
    """LwF: distillation of the previous network on the new task's examples.

    Args:
      strength: weight of the distillation (lambda). May be traced.
      temperature: softens both outputs (tau). May be traced.

    Raises:
      UserError: for a value that is not finite.
    """
    options = dict(locals())
    check_rate(strength=strength)
    check_above_zero(temperature=temperature)

    def init(params: Params) -> State:
        return State(params, jnp.zeros((), jnp.int32))

    def distil(state: State, params: Params, batch: Batch, network: Network) -> Array:
        old = network.logits(Variables(state.teacher, network.model_state), batch.x)
        new = network.logits(Variables(params, network.model_state), batch.x)
        class_mask = network.spec.class_mask
        past = jnp.arange(len(class_mask)) < state.tasks
        total = jnp.zeros(())
        if network.spec.multi_head:
            for task, outputs in enumerate(class_mask):
                own = distillation(new, old, jnp.asarray(outputs), temperature)
                total = total + jnp.where(past[task], masked_mean(own, batch.mask), 0.0)
        else:
            outputs = jnp.any(past[:, None] & jnp.asarray(class_mask), axis=0)
            own = distillation(new, old, outputs, temperature)  # none before the first task ends
            total = masked_mean(own, batch.mask)
        return strength * temperature**2 * total

    def consolidate(
        state: State, params: Params, batch: Batch, network: Network, key: Array
    ) -> State:
        return State(params, state.tasks + 1)

    return Penalty(
        init, _zero, nothing_observed, consolidate, distil=distil, name="lwf", options=options
    )


def _zero(state: State, params: Params) -> Array:
    return jnp.zeros(())
