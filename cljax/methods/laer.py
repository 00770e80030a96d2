"""La-ER: experience replay whose per-parameter rates are learned by look-ahead.

    update(batch):
      for each of G glances:
        bm      = R replayed examples ++ the batch
        theta_K = K inner steps from theta, rates alpha       # as La-MAML, first order
        alpha   = alpha - alpha_lr * clip(grad_alpha CE(theta_K; bm))
        theta   = theta - relu(alpha) * clip(grad CE(theta; bm))     # at the weights before them
      the batch is offered to the memory

Symbols: theta ``params``, alpha ``alpha``, alpha_0 ``alpha_init``, eta ``alpha_lr``,
G ``glances``, K ``inner_steps``, R ``replay_size``, M ``capacity``.

Source: Gupta, Yadav, Paull, "La-MAML", NeurIPS 2020 (arXiv:2007.13904), section 5.2, the ablation
named La-ER, and its released code: the last inner step's loss alone, raw rates and clipped
gradient elements in the inner steps, and (``offer="every-epoch"``) examples offered again in
every epoch.

Padding is no step, as in La-MAML. Under BatchNorm the running statistics follow bm at theta; the
look-ahead does not reach them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.inner_loop import split
from cljax.losses import masked_mean
from cljax.method import Cost, Method, Problem
from cljax.methods.algebra.first_order import loop_for, meta_gradients
from cljax.methods.algebra.look_ahead import LookAhead
from cljax.methods.groups.replay import OfferOptions, beside
from cljax.methods.lamaml import Draws, draw_order, num_inner_steps
from cljax.options import Bound, Count, Rate
from cljax.types import Array, Batch, Examples, Info, Params, PyTree

__all__ = ["Draws", "LaER", "State"]


class State(NamedTuple):
    """``alpha`` has the structure and shapes of ``params``."""

    params: Params
    model_state: PyTree
    alpha: Params
    memory: PyTree


class LaER(OfferOptions, Method, name="la-er"):
    """La-ER: replay with per-parameter rates that are learned by look-ahead.

    Paper: Gupta, Yadav, Paull, NeurIPS 2020 (arXiv:2007.13904), section 5.2. Pseudo-code and
    symbols: ``cljax.methods.laer``.

    Example:
        >>> import cljax
        >>> method = cljax.LaER(alpha_init=0.5, glances=2)
        >>> run = cljax.run(method, cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    alpha_init: Rate = 0.1
    """Initial value of every per-parameter learning rate (alpha_0)."""
    alpha_lr: Rate = 0.1
    """Step size of the learning rates (eta)."""
    glances: Count = 1
    """Updates on each incoming batch."""
    inner_steps: Count | None = None
    """Look-ahead steps, a divisor of the batch; None is one an example."""
    clip_norm: Bound | None = 2.0
    """Bound of the global norm of both gradients; None disables."""
    inner_clip: Bound | None = 2.0
    """Bound of each element of an inner gradient; None disables."""

    def fit(self, problem: Problem) -> None:
        super().fit(problem)
        num_inner_steps(self.inner_steps, problem.spec.batch_size)

    def init(self, problem: Problem, key: Array) -> State:
        params, model_state = problem.variables(key)
        alpha = tree.full_like(params, self.alpha_init)
        return State(params, model_state, alpha, self.empty(problem))

    def draw(self, problem: Problem, state: State, batch: Batch, key: Array) -> Draws:
        """Every glance draws anew, from the memory without the batch, and an order of the batch."""
        key_order, key_rest = jax.random.split(key)
        key_replay, key_slots = jax.random.split(key_rest)
        keys = jax.random.split(key_replay, self.glances)
        replay, mask = jax.vmap(lambda key: self.sample(state.memory, key))(keys)
        slots = self.slots(state.memory, batch, key_slots)
        return Draws(draw_order(key_order, self.glances, batch.mask), replay, mask, slots)

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: Draws
    ) -> tuple[State, Info]:
        """G glances at a batch, then the batch enters the memory; see the module.

        ``info.loss`` is the mean over glances of the loss at the weights before each, in nats.
        """
        current, loss_fn = Examples(batch.x, batch.y, batch.task), problem.loss_fn
        inner_steps = num_inner_steps(self.inner_steps, problem.spec.batch_size)
        how = LookAhead(
            1, self.inner_clip, inner_relu=False, meta_reduce="last", loop=loop_for(problem, 1)
        )

        def glance(carry: Any, drawn: Any) -> tuple[Any, Array]:
            params, alpha, model_state = carry
            permutation, replay, replay_mask = drawn
            shuffled = jax.tree.map(lambda a: a[permutation], (current, batch.mask))
            inner = split(shuffled, inner_steps)
            meta, meta_mask = beside((replay, replay_mask), shuffled)
            meta_mask = meta_mask & jnp.any(batch.mask)  # replay alone is no step
            d_alpha = meta_gradients(
                params, alpha, model_state, inner, (meta, meta_mask), loss_fn=loss_fn, how=how
            ).alpha
            alpha = tree.add_scaled(alpha, tree.clip_norm(d_alpha, self.clip_norm), -self.alpha_lr)

            def replayed(params: Params) -> tuple[Array, PyTree]:
                losses, model_state_after = loss_fn(params, model_state, meta, meta_mask)
                return masked_mean(losses, meta_mask), model_state_after

            (loss, model_state), d_params = jax.value_and_grad(replayed, has_aux=True)(params)
            d_params = tree.clip_norm(d_params, self.clip_norm)
            params = jax.tree.map(lambda p, a, d: p - jax.nn.relu(a) * d, params, alpha, d_params)
            return (params, alpha, model_state), loss

        (params, alpha, model_state), losses = jax.lax.scan(
            glance,
            (state.params, state.alpha, state.model_state),
            (draws.order, draws.replay, draws.replay_mask),
        )
        memory = self.stored(state.memory, batch, draws.slots)
        return State(params, model_state, alpha, memory), Info(jnp.mean(losses))

    def cost(self, problem: Problem) -> Cost:
        size = problem.spec.batch_size
        steps = num_inner_steps(self.inner_steps, size)
        return Cost(self.glances * (steps + 2), self.glances * (2 * self.replay_size + 3 * size))
