"""La-MAML, Sync La-MAML and C-MAML: look-ahead meta-updates on a stream.

    update(batch):                                        # B examples of the current task
      for each of G glances:
        bm      = R replayed examples ++ the batch        # the meta-batch, the same for all steps
        theta_0 = theta
        for i in 1..K:                                    # K chunks of the batch, in random order
          theta_i = theta_{i-1} - A(alpha) * grad CE(theta_{i-1}; chunk_i)
          L_i     = CE(theta_i; bm)
        dW, dA  = clip(grad_theta mean_i L_i), clip(grad_alpha mean_i L_i)
        alpha   = alpha - alpha_lr * dA                   # La-MAML, Sync
        theta   = theta - relu(alpha) * dW                # La-MAML: the rates just updated
        theta   = theta - lr * dW                         # Sync, C-MAML
      the batch is offered to the memory once, in its first pass, after glance 1 drew from it

Symbols: theta ``params``, alpha ``alpha``, alpha_0 ``alpha_init``, eta ``alpha_lr``, beta ``lr``,
G ``glances``, K ``inner_steps``, R ``replay_size``, M ``capacity``;
A(alpha) is relu(alpha) or alpha.

Source: Gupta, Yadav, Paull, "La-MAML: Look-ahead Meta Learning for Continual Learning", NeurIPS
2020 (arXiv:2007.13904), Algorithms 1 and 2, equations 5 to 8.

Differs from the paper, as its released code does: the meta-loss is the mean over inner steps
(``meta_reduce``), not the last step's; the memory is written in the first pass only; on MNIST
the inner step uses relu(alpha) (``inner_relu``), and K = B single examples. Differs from the
code: the reservoir rule is the textbook one and replay is without replacement unless asked.

Padding is no step: the valid rows of a batch come first in a glance's order, chunks hold B/K rows,
and the mean is over the chunks that hold a valid one. So n valid rows of B give the update of a
batch of n in chunks of B/K.

Under BatchNorm, which no source has, each chunk and each meta-batch is normalised by its own
statistics. The running ones, which predictions use, follow the meta-batch, old and new examples
together, once a glance, as theta_K sees it. The chunks, often of one example, do not reach them.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from cljax import keys, tree
from cljax.errors import UserError
from cljax.inner_loop import split
from cljax.method import Cost, Method, Problem
from cljax.methods.algebra.first_order import loop_for, meta_gradients
from cljax.methods.algebra.look_ahead import LookAhead, Reduce
from cljax.methods.algebra.low_rank import low_rank_meta_gradients
from cljax.methods.groups.descent import PenaltyOptions
from cljax.methods.groups.replay import ReplayOptions, beside
from cljax.options import Bound, Count, Rate
from cljax.penalty import penalised
from cljax.types import Array, Batch, Examples, Info, Params, PyTree, Variables

__all__ = [
    "CMAML", "Draws", "LaMAML", "State", "SyncLaMAML", "draw_order", "num_inner_steps",
]  # fmt: skip


class State(NamedTuple):
    """``alpha`` has the structure and shapes of ``params``."""

    params: Params
    model_state: PyTree
    alpha: Params
    memory: PyTree
    old_memory: PyTree  # memory when the current task began, if replayed
    task: Array  # [] int32, the task of the last update
    penalty: PyTree = ()  # the penalty's own state, if there is one


class Draws(NamedTuple):
    """Every random choice of one update."""

    order: Array  # [G, B] int32, a permutation of the batch for each glance, padding last
    replay: Examples  # leaves [G, R, ...], contents, so that recorded draws go straight in
    replay_mask: Array  # [G, R] bool
    slots: PyTree  # what the memory draws for each example: of a reservoir its slot, [B] int32


def draw_order(key: Array, glances: int, mask: Array) -> Array:
    """Permutations [G, B] int32 of a batch's rows, those outside ``mask`` [B] last."""
    ranks = keys.flat(jax.random.uniform, key, (glances, mask.shape[0]))
    return jnp.argsort(jnp.where(mask[None], ranks, 2.0), axis=1).astype(jnp.int32)


def num_inner_steps(inner_steps: int | None, batch_size: int) -> int:
    """K: a divisor of the batch, or an example a step.

    Raises:
      UserError: for another number.
    """
    steps = batch_size if inner_steps is None else inner_steps
    if batch_size % steps:
        raise UserError(
            f"inner_steps is {steps}, which does not divide the batch of {batch_size} examples; "
            "choose a divisor of the batch size."
        )
    return steps


class LaMAML(ReplayOptions, PenaltyOptions, Method, name="lamaml"):
    """La-MAML: learnable per-parameter rates, applied asynchronously (Algorithm 2).

    Paper: Gupta, Yadav, Paull, NeurIPS 2020 (arXiv:2007.13904). Pseudo-code, symbols and what
    differs: ``cljax.methods.lamaml``.

    Example:
        >>> import cljax
        >>> method = cljax.LaMAML(alpha_lr=0.03, glances=10)
        >>> run = cljax.run(method, cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    alpha_init: Rate = 0.1
    """Initial value of every per-parameter learning rate (alpha_0)."""
    alpha_lr: Rate | None = 0.1
    """Step size of the learning rates (eta); None keeps them fixed."""
    lr: Rate | None = None
    """Step size of the parameters (beta); None steps with relu(alpha)."""
    glances: Count = 5
    """Meta-updates on each incoming batch."""
    inner_steps: Count | None = None
    """Inner steps of a meta-update, a divisor of the batch; None is one an example."""
    order: Literal["first", "second"] = "first"
    """First or second order meta-gradients."""
    clip_norm: Bound | None = 2.0
    """Bound of the global norm of each meta-gradient; None disables."""
    inner_clip: Bound | None = None
    """Bound of each element of an inner gradient; None disables."""
    inner_relu: bool = True
    """Inner steps use relu(alpha), so that a rate at or below 0 stays there."""
    meta_reduce: Reduce = "mean"
    """How the losses after the inner steps make the meta-loss."""
    replay_source: Literal["live", "old-tasks"] = "live"
    """The live memory, or its copy from when the task began (old tasks only)."""
    algebra: Literal["general", "low-rank"] = "general"
    """Low-rank uses that the first layer's one-example gradients are of rank one; the same update
    to rounding, faster; needs first order, one-example steps, no inner clip."""

    def check(self) -> None:
        super().check()
        if self.algebra == "low-rank" and (self.order != "first" or self.inner_clip is not None):
            raise UserError(
                f"algebra is low-rank with order={self.order} and inner_clip={self.inner_clip}, "
                "but it needs first-order meta-gradients and no inner clipping."
            )

    def fit(self, problem: Problem) -> None:
        super().fit(problem)
        size = problem.spec.batch_size
        steps = num_inner_steps(self.inner_steps, size)
        if self.algebra == "low-rank" and steps != size:
            raise UserError(
                f"algebra is low-rank with inner_steps={steps}, but it needs one example a step, "
                f"{size} steps here."
            )
        if self.algebra == "low-rank":
            low_rank_meta_gradients(*problem)  # needs a network that declares its first product

    def init(self, problem: Problem, key: Array) -> State:
        params, model_state = problem.variables(key)
        memory, task = self.empty(problem), jnp.zeros((), jnp.int32)
        old_memory = memory if self.replay_source == "old-tasks" else None
        alpha = tree.full_like(params, self.alpha_init)
        penalty_state = self.penalty_state(Variables(params, model_state))
        return State(params, model_state, alpha, memory, old_memory, task, penalty_state)

    def draw(self, problem: Problem, state: State, batch: Batch, key: Array) -> Draws:
        """The first glance replays from the memory without the batch, later ones with it.

        Or all from the memory as the task began, where the state holds one.
        """
        key_order, key_replay, key_slots = jax.random.split(key, 3)
        slots = self.slots(state.memory, batch, key_slots)
        first, later = state.memory, self.stored(state.memory, batch, slots)
        if state.old_memory is not None:
            # While the first task lasts there is no older one, and replay is live.
            old = tree.select(state.task == batch.clock.task, state.old_memory, state.memory)
            live = batch.clock.task == 0
            first, later = tree.select(live, first, old), tree.select(live, later, old)
        each = jax.random.split(key_replay, self.glances)
        sample = jax.vmap(self.sample, in_axes=(None, 0))
        drawn = sample(first, each[:1])
        if self.glances > 1:
            drawn = jax.tree.map(lambda *a: jnp.concatenate(a), drawn, sample(later, each[1:]))
        examples, mask = drawn
        return Draws(draw_order(key_order, self.glances, batch.mask), examples, mask, slots)

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: Draws
    ) -> tuple[State, Info]:
        """One call of Algorithm 2: G meta-updates on a batch, then it enters the memory.

        ``info.loss`` is the mean meta-loss of the glances, in nats.
        """
        current = Examples(batch.x, batch.y, batch.task)
        inner_steps = num_inner_steps(self.inner_steps, problem.spec.batch_size)
        network, low_rank = problem.network, self.algebra == "low-rank"
        general = functools.partial(meta_gradients, loss_fn=problem.loss_fn)
        gradients = low_rank_meta_gradients(*problem) if low_rank else general
        order = 1 if self.order == "first" else 2
        how = LookAhead(
            order, self.inner_clip, self.inner_relu, self.meta_reduce, loop_for(problem, order)
        )

        def glance(carry: Any, drawn: Any) -> tuple[Any, Array]:
            params, alpha, model_state, penalty_state = carry
            permutation, replay, replay_mask = drawn
            shuffled = jax.tree.map(lambda a: a[permutation], (current, batch.mask))
            inner = split(shuffled, inner_steps)
            # Current examples in the glance's order, as the recorded meta-batches have them.
            meta = beside((replay, replay_mask), shuffled)
            value, d_params, d_alpha, statistics = gradients(
                params, alpha, model_state, inner, meta, how=how
            )
            total, penalty = d_params, self.penalty
            if penalty is not None:
                total = penalised(
                    d_params, penalty, penalty_state, params, batch, network(model_state)
                )
            total, d_alpha = (tree.clip_norm(d, self.clip_norm) for d in (total, d_alpha))
            if self.alpha_lr is not None:
                alpha = tree.add_scaled(alpha, d_alpha, -self.alpha_lr)
            if self.lr is None:
                after = jax.tree.map(lambda p, a, d: p - jax.nn.relu(a) * d, params, alpha, total)
            else:
                after = tree.add_scaled(params, total, -self.lr)
            if penalty is not None:
                moved = jax.tree.map(jnp.subtract, after, params)
                observed = penalty.observe(penalty_state, params, d_params, moved)
                # On a batch of padding the penalty alone is no step.
                after, penalty_state = tree.select(
                    jnp.any(batch.mask), (after, observed), (params, penalty_state)
                )
            return (after, alpha, statistics, penalty_state), value

        (params, alpha, model_state, penalty_state), losses = jax.lax.scan(
            glance,
            (state.params, state.alpha, state.model_state, state.penalty),
            (draws.order, draws.replay, draws.replay_mask),
        )
        old_memory = state.old_memory
        if old_memory is not None:
            old_memory = tree.select(batch.clock.task == state.task, old_memory, state.memory)
        memory = self.stored(state.memory, batch, draws.slots)
        state = State(
            params, model_state, alpha, memory, old_memory, batch.clock.task, penalty_state
        )
        return state, Info(jnp.mean(losses))

    def cost(self, problem: Problem) -> Cost:
        size, glances = problem.spec.batch_size, self.glances
        steps = num_inner_steps(self.inner_steps, size)
        return Cost(glances * 2 * steps, glances * (size + steps * (self.replay_size + size)))


class SyncLaMAML(LaMAML, name="sync-lamaml"):
    """Sync La-MAML: learnable rates in the inner steps, one outer rate (Section 4.3).

    Paper: Gupta, Yadav, Paull, NeurIPS 2020 (arXiv:2007.13904). Pseudo-code, symbols and what
    differs: ``cljax.methods.lamaml``.

    Example:
        >>> import cljax
        >>> method = cljax.SyncLaMAML(alpha_init=0.1, lr=0.3)
        >>> run = cljax.run(method, cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    lr: Rate | None = 0.1
    """Step size of the parameters (beta)."""


class CMAML(LaMAML, name="cmaml"):
    """C-MAML: the same meta-update with one fixed inner and one outer rate (Algorithm 1).

    Paper: Gupta, Yadav, Paull, NeurIPS 2020 (arXiv:2007.13904). Pseudo-code, symbols and what
    differs: ``cljax.methods.lamaml``.

    Example:
        >>> import cljax
        >>> method = cljax.CMAML(alpha_init=0.1, lr=0.3)
        >>> run = cljax.run(method, cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    alpha_lr: ClassVar[None] = None
    lr: Rate | None = 0.1
    """Step size of the parameters (beta)."""
