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

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import check_finite
from cljax.losses import masked_mean
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
    check_finite(strength=strength, temperature=temperature)

    def init(params: Params) -> State:
        return State(params, jnp.zeros((), jnp.int32))

    def distil(state: State, params: Params, batch: Batch, network: Network) -> Array:
        old = network.logits(Variables(state.teacher, network.model_state), batch.x) / temperature
        new = network.logits(Variables(params, network.model_state), batch.x) / temperature
        class_mask = network.spec.class_mask
        past = jnp.arange(len(class_mask)) < state.tasks
        total = jnp.zeros(())
        if network.spec.multi_head:
            for task, outputs in enumerate(class_mask):
                own = _divergence(old, new, jnp.asarray(outputs))
                total = total + jnp.where(past[task], masked_mean(own, batch.mask), 0.0)
        else:
            outputs = jnp.any(past[:, None] & jnp.asarray(class_mask), axis=0)
            # Before the first task ends there are no old outputs; any finite value will do.
            outputs = outputs | (state.tasks == 0)
            own = masked_mean(_divergence(old, new, outputs), batch.mask)
            total = jnp.where(state.tasks > 0, own, 0.0)
        return strength * temperature**2 * total

    def consolidate(
        state: State, params: Params, batch: Batch, network: Network, key: Array
    ) -> State:
        return State(params, state.tasks + 1)

    return Penalty(
        init, _zero, nothing_observed, consolidate, distil=distil, name="lwf", options=options
    )


def _divergence(old: Array, new: Array, outputs: Array | np.ndarray) -> Array:
    """``KL(softmax(old) || softmax(new))`` of each row over some outputs, [B]."""
    where = jnp.broadcast_to(outputs[None], old.shape)
    log_old = old - jax.nn.logsumexp(old, axis=-1, where=where, keepdims=True)
    log_new = new - jax.nn.logsumexp(new, axis=-1, where=where, keepdims=True)
    terms = jnp.where(where, jnp.exp(jnp.where(where, log_old, 0.0)) * (log_old - log_new), 0.0)
    return jnp.sum(terms, axis=-1)


def _zero(state: State, params: Params) -> Array:
    return jnp.zeros(())
