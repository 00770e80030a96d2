"""Learning without forgetting: the old outputs keep what the network said before the task.

    loss       = CE / t + (1 - 1 / t) * strength * D                 # in task t, the first is 1
    D          = tau^2 * E_x KL(softmax(z_old(x) / tau) || softmax(z(x) / tau))
    end of t:    the network becomes the old one

x are the incoming examples. z_old are the outputs of past tasks and z those of all tasks so far:
the target of a new output is 0. Where each task has its own head, D is the mean over past tasks, a
softmax for each. No memory of examples.

Symbols: lambda ``strength``, tau ``temperature``.

Source: Li, Hoiem, "Learning without Forgetting", TPAMI 2017 (arXiv:1606.09282), for tasks with
their own heads; for one head and the weights, van de Ven, Tolias, "Generative replay with feedback
connections" (arXiv:1809.10635), whose numbers later tables quote.

Differs: their cross-entropy is this KL divergence but for a constant. Li and Hoiem write CE +
strength * D over the past outputs alone, D the sum over past tasks: ``outputs="past",
weights="one"``. They train the new outputs alone first, decay all weights, and tau^2 is not theirs:
it keeps the gradient's size. The old network predicts with the BatchNorm statistics that it had
as its task ended.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp

from cljax.losses import distillation, masked_mean
from cljax.options import Positive, Rate, positional
from cljax.penalty import Penalty
from cljax.types import Array, Batch, Network, Params, Variables

__all__ = ["LwF", "State"]


class State(NamedTuple):
    """The old network, its statistics included, and how many tasks it has seen, [] int32."""

    teacher: Variables
    tasks: Array


class LwF(Penalty, name="lwf"):
    """LwF: distillation of the previous network on the new task's examples.

    Paper: Li, Hoiem, TPAMI 2017 (arXiv:1606.09282). Pseudo-code, symbols and what differs:
    ``cljax.penalties.lwf``.

    Example:
        >>> import cljax
        >>> method = cljax.Finetune(lr=0.3, penalty=cljax.penalties.LwF())
        >>> run = cljax.run(method, cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("BTI")[0]) > -0.35  # alone, ``Finetune`` loses 0.42
        True
    """

    strength: Rate = positional(default=1.0)
    """Weight of the distillation (lambda)."""
    temperature: Positive = 2.0
    """Softens both outputs (tau)."""
    outputs: Literal["seen", "past"] = "seen"
    """What the new softmax runs over, all outputs so far or those of past tasks, where tasks
    share a head."""
    weights: Literal["share", "one"] = "share"
    """Share is 1 / t of the loss and 1 - 1 / t of the distillation, over past tasks their mean;
    one is their sum with the whole loss."""

    @property
    def needs_classes(self) -> str:
        return "keeps what the old network says of classes"

    def begin(self, variables: Variables) -> State:
        return State(variables, jnp.zeros((), jnp.int32))

    def share(self, state: State) -> Array | float:
        return 1.0 / (state.tasks + 1) if self.weights == "share" else 1.0

    def distil(self, state: State, params: Params, batch: Batch, network: Network) -> Array:
        old = network.logits(state.teacher, batch.x)
        new = network.logits(Variables(params, network.model_state), batch.x)
        class_mask = jnp.asarray(network.spec.class_mask)
        tasks = jnp.arange(len(class_mask))
        past = tasks < state.tasks
        weight = self.strength * jnp.asarray(self.temperature) ** 2
        if network.spec.multi_head:
            total = jnp.zeros(())
            for task, own in enumerate(class_mask):
                apart = distillation(new, old, own, self.temperature)
                total = total + jnp.where(past[task], masked_mean(apart, batch.mask), 0.0)
            # The mean over t - 1 tasks, times 1 - 1 / t.
            return weight * total * (self.share(state) if self.weights == "share" else 1.0)
        before = jnp.any(past[:, None] & class_mask, axis=0)  # none before the first task ends
        now = jnp.any((tasks <= state.tasks)[:, None] & class_mask, axis=0)
        among = now if self.outputs == "seen" else None
        total = masked_mean(distillation(new, old, before, self.temperature, among), batch.mask)
        return weight * total * (1.0 - self.share(state) if self.weights == "share" else 1.0)

    def consolidate(
        self, state: State, params: Params, batch: Batch, network: Network, key: Array
    ) -> State:
        return State(Variables(params, network.model_state), state.tasks + 1)
