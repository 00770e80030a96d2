"""Meta-BGD: C-MAML's meta-gradient inside Bayesian gradient descent.

    update(batch):                                        # B examples of the current task
      for each of G glances:
        S = 0;  Q = 0
        for each of N samples:
          eps ~ N(0, I);  phi = mu + sigma * eps          # phi = (theta, alpha)
          bm  = R replayed examples ++ the batch
          theta_0 = theta
          for i in 1..K:                                  # K chunks of the batch, in random order
            theta_i = theta_{i-1} - alpha * clip(grad CE(theta_{i-1}; chunk_i))
            L_i     = CE(theta_i; bm)
          d   = grad_phi mean_i L_i, its part of theta clipped
          S  += B * d / N;  Q += B * d * eps / N
        mu    = mu - eta * sigma^2 * S
        sigma = sigma * sqrt(1 + (sigma Q / 2)^2) - sigma^2 Q / 2          # the old sigma
      the batch is offered to the memory once, in its first pass, after sample 1 of glance 1
      drew from it

Symbols: mu ``params`` and ``alpha``, sigma ``params_std`` and ``alpha_std``, eta ``lr``,
alpha_0 ``alpha_init``, G ``glances``, N ``mc_samples``, K ``inner_steps``, R ``replay_size``,
M ``capacity``. B counts the valid examples of the batch. Predictions use mu.

Source: Gupta, Yadav, Paull, "La-MAML: Look-ahead Meta Learning for Continual Learning", NeurIPS
2020 (arXiv:2007.13904), where it is a baseline; Zeno, Golan, Hoffer, Soudry, "Task Agnostic
Continual Learning Using Online Variational Bayes", 2018 (arXiv:1803.10123), for BGD.

Differs from the paper, as its released code does: the inner rates have a mean and a standard
deviation like the parameters (``bayes_alpha``) instead of being constant, and their gradient is
not clipped. Differs from the code: the reservoir rule is the textbook one and replay is without
replacement unless asked; K chunks that leave some empty become fewer steps.

Chunks of padding are no steps, and running statistics are as in La-MAML, once a sample.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from cljax import keys, tree
from cljax.inner_loop import split
from cljax.method import Cost, Method, Problem
from cljax.methods import lamaml
from cljax.methods.algebra.first_order import loop_for, meta_gradients
from cljax.methods.algebra.look_ahead import LookAhead
from cljax.methods.groups.replay import ReplayOptions, beside
from cljax.options import Bound, Count, Positive, Rate
from cljax.types import Array, Batch, Examples, Info, Params, PyTree

__all__ = ["Draws", "MetaBGD", "State"]


class State(NamedTuple):
    """``alpha`` and the standard deviations have the structure and shapes of ``params``."""

    params: Params  # mean of theta
    alpha: Params  # mean of the inner rates
    params_std: Params
    alpha_std: Params  # 0 where the rates are fixed
    model_state: PyTree
    memory: PyTree


class Draws(NamedTuple):
    """Every random choice of one update."""

    params_eps: Params  # leaves [G, N, ...], standard normal
    alpha_eps: Params  # leaves [G, N, ...], standard normal
    order: Array  # [G, N, B] int32, a permutation of the batch for each sample
    replay: Examples  # leaves [G, N, R, ...], contents
    replay_mask: Array  # [G, N, R] bool
    slots: PyTree  # what the memory draws for each example: of a reservoir its slot, [B] int32


class MetaBGD(ReplayOptions, Method, name="meta-bgd"):
    """Meta-BGD: Bayesian gradient descent on C-MAML's meta-loss.

    Paper: Gupta, Yadav, Paull, NeurIPS 2020 (arXiv:2007.13904); BGD: Zeno et al. 2018
    (arXiv:1803.10123). Pseudo-code, symbols and what differs: ``cljax.methods.metabgd``.

    Example:
        >>> import cljax
        >>> run = cljax.run(cljax.MetaBGD(mc_samples=1), cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.7
        True
    """

    lr: Rate = 50.0
    """Step size of the means (eta); a mean moves by lr * std^2 * gradient."""
    std_init: Positive = 0.02
    """Initial standard deviation of every parameter."""
    mc_samples: Count = 2
    """Samples of the parameters that each step averages over."""
    alpha_init: Rate = 0.1
    """Initial value of every per-parameter inner rate (alpha_0)."""
    bayes_alpha: bool = True
    """Learn the inner rates like the parameters; else they stay at alpha_init."""
    replay_size: Count = 10
    """Replayed examples in each meta-batch."""
    glances: Count = 3
    """Steps on each incoming batch."""
    inner_steps: Count = 3
    """Chunks the batch is cut into, the last one smaller if it does not divide."""
    order: Literal["first", "second"] = "second"
    """First or second order meta-gradients."""
    clip_norm: Bound | None = 2.0
    """Bound of the global norm of the parameters' meta-gradient; None disables."""
    inner_clip: Bound | None = 2.0
    """Bound of each element of an inner gradient; None disables."""
    inner_relu: bool = False
    """Inner steps use relu(alpha), so that a negative rate does not ascend."""

    def init(self, problem: Problem, key: Array) -> State:
        params, model_state = problem.variables(key)
        return State(
            params,
            tree.full_like(params, self.alpha_init),
            tree.full_like(params, self.std_init),
            tree.full_like(params, self.std_init if self.bayes_alpha else 0.0),
            model_state,
            self.empty(problem),
        )

    def draw(self, problem: Problem, state: State, batch: Batch, key: Array) -> Draws:
        """Makes the random choices of one update.

        The first sample of the first glance replays from the memory without the batch, all later
        ones from the memory with it.
        """
        key_params, key_alpha, key_replay = jax.random.split(key, 3)
        lead = (self.glances, self.mc_samples)
        # La-MAML's draws, with every sample taking the place of a glance.
        source = lamaml.State(
            state.params, state.model_state, state.alpha, state.memory, None, batch.clock.task
        )
        replaying = lamaml.LaMAML(
            replay_size=self.replay_size, glances=self.glances * self.mc_samples,
            memory=self.memory, reservoir_rule=self.reservoir_rule,
            with_replacement=self.with_replacement,
        )  # fmt: skip
        drawn = replaying.draw(problem, source, batch, key_replay)
        order, replay, mask = jax.tree.map(
            lambda a: a.reshape(*lead, *a.shape[1:]), (drawn.order, drawn.replay, drawn.replay_mask)
        )
        params_eps, alpha_eps = (_normal(k, state.params, lead) for k in (key_params, key_alpha))
        return Draws(params_eps, alpha_eps, order, replay, mask, drawn.slots)

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: Draws
    ) -> tuple[State, Info]:
        """G steps of Bayesian gradient descent on a batch, then the batch enters the memory.

        ``info.loss`` is the mean meta-loss of all samples, in nats.
        """
        current = Examples(batch.x, batch.y, batch.task)
        num_samples = draws.order.shape[1]
        num_valid = jnp.sum(batch.mask)
        loss_fn, order = problem.loss_fn, 1 if self.order == "first" else 2
        how = LookAhead(order, self.inner_clip, self.inner_relu, loop=loop_for(problem, order))

        def glance(carry: Any, drawn: Any) -> tuple[Any, Array]:
            mean, std, model_state = carry

            def sample(carry: Any, drawn: Any) -> tuple[Any, Array]:
                model_state, slope, curvature = carry
                eps, permutation, replay, replay_mask = drawn
                params, alpha = jax.tree.map(lambda m, s, e: m + s * e, mean, std, eps)
                shuffled = jax.tree.map(lambda a: a[permutation], (current, batch.mask))
                inner = _chunks(shuffled, self.inner_steps)
                meta = beside((replay, replay_mask), shuffled)
                loss, d_params, d_alpha, model_state = meta_gradients(
                    params, alpha, model_state, inner, meta, loss_fn=loss_fn, how=how
                )
                d = (tree.clip_norm(d_params, self.clip_norm), d_alpha)
                # A posterior weighs every example, so gradients are sums over the batch, not means.
                slope = tree.add_scaled(slope, d, num_valid / num_samples)
                d_eps = jax.tree.map(jnp.multiply, d, eps)
                curvature = tree.add_scaled(curvature, d_eps, num_valid / num_samples)
                return (model_state, slope, curvature), loss

            zeros = tree.full_like(mean, 0.0)
            (model_state, slope, curvature), losses = jax.lax.scan(
                sample, (model_state, zeros, zeros), drawn
            )
            mean = jax.tree.map(lambda m, s, d: m - self.lr * s**2 * d, mean, std, slope)
            std = jax.tree.map(_new_std, std, curvature)
            return (mean, std, model_state), losses

        ((params, alpha), (params_std, alpha_std), model_state), losses = jax.lax.scan(
            glance,
            ((state.params, state.alpha), (state.params_std, state.alpha_std), state.model_state),
            ((draws.params_eps, draws.alpha_eps), draws.order, draws.replay, draws.replay_mask),
        )
        memory = self.stored(state.memory, batch, draws.slots)
        state = State(params, alpha, params_std, alpha_std, model_state, memory)
        return state, Info(jnp.mean(losses))

    def cost(self, problem: Problem) -> Cost:
        size = problem.spec.batch_size
        num_steps, _ = _cut(size, self.inner_steps)
        samples = self.glances * self.mc_samples
        return Cost(
            samples * 2 * num_steps, samples * (size + num_steps * (self.replay_size + size))
        )


def _new_std(std: Array, curvature: Array) -> Array:
    """The last line of a glance, where sqrt(1 + h^2) - h = exp(-arcsinh h) does not cancel."""
    new = std * jnp.exp(-jnp.arcsinh(std * curvature / 2))
    # Rounding never makes a deviation 0, and one that is 0 (fixed rates) stays so.
    return jnp.maximum(new, jnp.minimum(std, jnp.finfo(std.dtype).tiny))


def _normal(key: Array, like: Params, lead: tuple[int, ...]) -> Params:
    leaves, structure = jax.tree.flatten(like)
    drawn = [
        keys.flat(jax.random.normal, k, (*lead, *a.shape), a.dtype)
        for k, a in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def _cut(batch_size: int, inner_steps: int) -> tuple[int, int]:
    """Number and size of the chunks; fewer than ``inner_steps`` where some would be empty."""
    size = -(-batch_size // inner_steps)
    return -(-batch_size // size), size


def _chunks(batch: PyTree, inner_steps: int) -> PyTree:
    """Leaves ``[B, ...]`` as ``[K, ceil(B/K), ...]``; the mask's padding is False."""
    batch_size = jax.tree.leaves(batch)[0].shape[0]
    num_steps, size = _cut(batch_size, inner_steps)
    pad = num_steps * size - batch_size
    padded = jax.tree.map(lambda a: jnp.pad(a, [(0, pad)] + [(0, 0)] * (a.ndim - 1)), batch)
    return split(padded, num_steps)
