"""GEM and A-GEM: the gradient is turned so that the losses on past tasks do not rise.

    update(batch):
      the batch enters its task's ring buffer
      for each of G glances:
        g    = clip(grad CE(theta; batch))
        M_p  = clip(grad CE(theta; memory of task p))           for every past task p
        GEM:    if any <M_p, g> < 0:   v = argmin v' (M M' + ridge I) v / 2 + (M g)' v,  v >= margin
                                       g = g + M' v
        A-GEM:  r = mean_p M_p;   if <r, g> < 0:   g = g - <r, g> / <r, r> r
        theta = theta - lr * g

A-GEM takes r from a random draw of all past memories, or (``reference_size=None``) as above. A
step whose dual problem could not be solved is NaN, so that the run reports its seed as diverged.

Symbols: theta ``params``, G ``glances``, m ``per_task``, gamma ``margin``.

Source: Lopez-Paz, Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017
(arXiv:1706.08840), equations 8 to 12; Chaudhry et al., "Efficient Lifelong Learning with A-GEM",
ICLR 2019 (arXiv:1812.00420), equation 11. The code released with La-MAML clips the gradients and
its A-GEM never constrains by the first task (``skip_first_task``).

Under BatchNorm each memory and the batch are normalised by their own statistics; the running ones
follow the memories that constrain, in the order of their tasks, and then the batch, in each glance.
A batch of padding is no step.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.memory import ring
from cljax.memory.protocol import example_of
from cljax.method import Cost, Method, Problem
from cljax.methods.algebra import gradients
from cljax.methods.algebra.dual import solve_qp
from cljax.methods.groups.descent import DescentOptions
from cljax.options import Bound, Count, Rate
from cljax.types import Array, Batch, Examples, Info, Needs, Params, PyTree

__all__ = ["AGEM", "GEM", "Draws", "State", "agem_coefficients", "gem_coefficients"]


class State(NamedTuple):
    """The network, its optimiser, and the ring of stored examples."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    memory: ring.State


class Draws(NamedTuple):
    """A-GEM's reference examples, leaves [G, 1, R, ...], and their mask; ``()`` without a draw."""

    reference: Any
    mask: Any


def gem_coefficients(
    gram: Array, active: Array, *, margin: Array | float, ridge: Array | float
) -> Array:
    """Coefficients [N] of GEM's step in the gradients of N - 1 tasks and, last, of the batch.

    Args:
      gram: [N, N], inner products of those gradients. active: [N - 1] bool.
      ridge: added to the diagonal; 0 also serves gradients of one direction.

    Returns:
      NaN for the tasks where the dual problem was not solved.
    """
    p, b = gram[:-1, :-1], gram[:-1, -1]
    p = p + ridge * jnp.eye(len(b), dtype=gram.dtype)
    violated = jnp.any(active & (b < 0))
    lower = jnp.full_like(b, margin)
    none = jnp.zeros_like(b)
    v = jax.lax.cond(violated, lambda: solve_qp(p, b, lower, active), lambda: none)
    return jnp.append(v, jnp.ones((), gram.dtype))


def agem_coefficients(gram: Array, active: Array) -> Array:
    """Coefficients [N] of A-GEM's step, as ``gem_coefficients``; the reference is their mean."""
    p, b = gram[:-1, :-1], gram[:-1, -1]
    share = active / jnp.maximum(jnp.sum(active), 1)
    along, norm_sq = jnp.sum(share * b), share @ p @ share
    violated = (along < 0) & (norm_sq > 0)
    scale = jnp.where(violated, along / jnp.where(norm_sq > 0, norm_sq, 1.0), 0.0)
    return jnp.append(-scale * share, jnp.ones((), gram.dtype))


class _Projected(DescentOptions, Method):
    """What GEM and A-GEM share: all but the coefficients of the step."""

    penalty: ClassVar[None] = None

    lr: Rate = 0.03
    """Step size; an optax optimiser of your own brings its own."""
    per_task: Count = 10
    """Examples stored of each task, its last ones (m)."""
    glances: Count = 1
    """Steps on each incoming batch."""
    clip_norm: Bound | None = None
    """Bound of the norm of every gradient before the projection; None disables."""
    reference_size: Count | None = 64
    """Stored examples drawn for the reference gradient, all different; None takes the mean of the
    past tasks' gradients on all of their memories, as the code of La-MAML does."""
    skip_first_task: bool = False
    """The first task never constrains, as in the code of La-MAML."""
    ring_rule: ring.Rule = "textbook"
    """Textbook, or truncate as in the reference code."""
    algebra: Literal["general", "low-rank"] = "general"
    """Low-rank keeps the first layer's gradients as factors; the same step to rounding, faster."""

    @property
    def needs(self) -> Needs:
        return Needs(boundaries=True, task_ids_train=True)

    def fit(self, problem: Problem) -> None:
        self._gradients(problem)  # low-rank needs a network that declares its first product

    def init(self, problem: Problem, key: Array) -> State:
        params, model_state = problem.variables(key)
        spec = problem.spec
        memory = ring.init(example_of(spec), spec.num_tasks, self.per_task)
        return State(params, model_state, self.step.init(params), memory)

    def draw(self, problem: Problem, state: State, batch: Batch, key: Array) -> Draws:
        """Draws A-GEM's reference examples from the memories of past tasks, without replacement.

        Where they hold fewer than ``reference_size``, all of them are drawn.
        """
        if self.reference_size is None:
            return Draws((), ())
        usable = ring.valid(state.memory) & self._past(state.memory, batch)[:, None]
        flat = usable.reshape(-1)
        # The largest of independent values are a draw without replacement; the unusable come last.
        values = jnp.where(flat, jax.random.uniform(key, (self.glances, 1, flat.size)), -1.0)
        rows = jax.lax.top_k(values, min(self.reference_size, flat.size))[1]
        data = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[rows], state.memory.data)
        return Draws(data, flat[rows])

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: Draws
    ) -> tuple[State, Info]:
        """G projected steps on a batch; ``info.loss`` is their mean loss on it, in nats."""
        current = Examples(batch.x, batch.y, batch.task)
        memory = ring.add(state.memory, current, batch.clock.task, batch.mask, self.ring_rule)
        own = gradients.Group(*jax.tree.map(lambda a: a[None], (current, batch.mask)))
        some = jnp.any(batch.mask)
        step, loss_fn, gradients_of = self.step, problem.loss_fn, self._gradients(problem)

        def glance(carry: Any, drawn: Draws) -> tuple[Any, Array]:
            params, model_state, opt_state = carry
            if self.reference_size is None:
                reference = gradients.Group(memory.data, ring.valid(memory))
                active = self._past(memory, batch)
            else:
                reference = gradients.Group(drawn.reference, drawn.mask)
                active = jnp.any(drawn.mask, axis=1)
            made = gradients_of(params, model_state, (reference, own))
            seen = reference._replace(mask=reference.mask & active[:, None])
            model_state = gradients.followed(loss_fn, params, model_state, (seen, own))
            scale = jnp.ones_like(made.loss)
            if self.clip_norm is not None:
                norm = jnp.sqrt(jnp.maximum(jnp.diag(made.gram), 0.0))  # below 0: rounding
                scale = jnp.minimum(1.0, self.clip_norm / (norm + 1e-6))
            chosen = self.coefficients(made.gram * scale[:, None] * scale[None], active)
            turned = made.combine(chosen * scale)
            updates, opt_state = step.update(turned, opt_state, params)
            params = jax.tree.map(jnp.add, params, updates)
            after = tree.select(some, (params, model_state, opt_state), carry)
            return after, made.loss[-1]

        carry = (state.params, state.model_state, state.opt_state)
        (params, model_state, opt_state), losses = jax.lax.scan(
            glance, carry, draws, length=self.glances
        )
        return State(params, model_state, opt_state, memory), Info(jnp.mean(losses))

    def coefficients(self, gram: Array, active: Array) -> Array:
        """Coefficients [N] of the step in the gradients whose products are ``gram`` [N, N]."""
        raise NotImplementedError

    def cost(self, problem: Problem) -> Cost:
        spec, size = problem.spec, self.reference_size
        num = spec.num_tasks * self.per_task if size is None else size
        groups = spec.num_tasks if size is None else 1
        return Cost(self.glances * (1 + groups), self.glances * (num + spec.batch_size))

    def _past(self, memory: ring.State, batch: Batch) -> Array:
        """[T] bool, the tasks other than the current one that have examples stored."""
        tasks, skipped = jnp.arange(memory.age.shape[0]), int(self.skip_first_task)
        return (memory.age > 0) & (tasks != batch.clock.task) & (tasks >= skipped)

    def _gradients(self, problem: Problem) -> gradients.GradientsFn:
        if self.algebra == "low-rank":
            return gradients.low_rank(*problem)
        return gradients.general(problem.loss_fn)


class GEM(_Projected, name="gem"):
    """Gradient episodic memory: a projected gradient step (Lopez-Paz and Ranzato 2017).

    Paper: Lopez-Paz, Ranzato, NeurIPS 2017 (arXiv:1706.08840). Pseudo-code and symbols:
    ``cljax.methods.gem``.

    Example:
        >>> import cljax
        >>> method = cljax.GEM(lr=0.5, glances=2)
        >>> run = cljax.run(method, cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    reference_size: ClassVar[None] = None
    skip_first_task: ClassVar[bool] = False

    margin: Rate = 0.5
    """Lower bound of the dual variables, favours past tasks (gamma)."""
    ridge: Rate = 1e-3
    """Added to the diagonal of the dual problem."""

    def coefficients(self, gram: Array, active: Array) -> Array:
        return gem_coefficients(gram, active, margin=self.margin, ridge=self.ridge)


class AGEM(_Projected, name="agem"):
    """Averaged GEM: one reference gradient stands for all past tasks (Chaudhry et al. 2019).

    Paper: Chaudhry et al., ICLR 2019 (arXiv:1812.00420). Pseudo-code and symbols:
    ``cljax.methods.gem``.

    Example:
        >>> import cljax
        >>> method = cljax.AGEM(lr=0.5, glances=2)
        >>> run = cljax.run(method, cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.6
        True
    """

    def coefficients(self, gram: Array, active: Array) -> Array:
        return agem_coefficients(gram, active)
