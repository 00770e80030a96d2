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

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from cljax import tree
from cljax.errors import (
    check_above_zero,
    check_flag,
    check_known,
    check_positive,
    check_rate,
    given,
)
from cljax.losses import classification_loss
from cljax.memory import ring
from cljax.memory.reservoir import of_stream
from cljax.methods.algebra import gradients
from cljax.methods.algebra.dual import solve_qp
from cljax.methods.common import initial, logits_predictor
from cljax.optimizers import Optimizer, make_optimizer
from cljax.types import (
    Array,
    Batch,
    Examples,
    Info,
    Learner,
    Method,
    Model,
    Needs,
    Params,
    PyTree,
    Spec,
)

__all__ = ["Draws", "State", "agem", "agem_coefficients", "draw", "gem", "gem_coefficients"]


class State(NamedTuple):
    """The network, its optimiser, and the ring of stored examples."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    memory: ring.Ring


class Draws(NamedTuple):
    """A-GEM's reference examples, leaves [G, 1, R, ...], and their mask; ``()`` without a draw."""

    reference: Any
    mask: Any


def draw(
    state: State,
    batch: Batch,
    key: Array,
    *,
    glances: int = 1,
    reference_size: int | None = None,
    skip_first_task: bool = False,
) -> Draws:
    """Draws A-GEM's reference examples from the memories of past tasks, without replacement.

    Where they hold fewer than ``reference_size``, all of them are drawn.
    """
    if reference_size is None:
        return Draws((), ())
    usable = ring.valid(state.memory) & past(state.memory, batch, skip_first_task)[:, None]
    flat = usable.reshape(-1)
    # The largest of independent values are a draw without replacement; the unusable come last.
    values = jnp.where(flat, jax.random.uniform(key, (glances, 1, flat.size)), -1.0)
    rows = jax.lax.top_k(values, min(reference_size, flat.size))[1]
    data = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[rows], state.memory.data)
    return Draws(data, flat[rows])


def past(memory: ring.Ring, batch: Batch, skip_first_task: bool = False) -> Array:
    """[T] bool, the tasks other than the current one that have examples stored."""
    tasks = jnp.arange(memory.age.shape[0])
    return (memory.age > 0) & (tasks != batch.clock.task) & (tasks >= int(skip_first_task))


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


def gem(
    *,
    lr: Array | float = 0.03,
    per_task: int = 10,
    margin: Array | float = 0.5,
    ridge: Array | float = 1e-3,
    glances: int = 1,
    optimizer: Optimizer = "sgd",
    clip_norm: float | None = None,
    ring_rule: ring.Rule = "textbook",
    algebra: Literal["general", "low-rank"] = "general",
) -> Method:
    """Gradient episodic memory: a projected gradient step (Lopez-Paz and Ranzato 2017).

    Args:
      lr: step size; an optax optimiser of your own brings its own. May be traced.
      per_task: examples stored of each task, its last ones (m).
      margin: lower bound of the dual variables, favours past tasks (gamma). May be traced.
      ridge: added to the diagonal of the dual problem. May be traced.
      glances: steps on each incoming batch.
      optimizer: sgd, momentum (0.9), adam, or an ``optax.GradientTransformation``.
      clip_norm: bound of the norm of every gradient before the projection; None disables.
      ring_rule: textbook, or truncate as in the reference code.
      algebra: low-rank keeps the first layer's gradients as factors; the same step to rounding,
        faster.

    Raises:
      UserError: for a count below 1, a negative margin or ridge, a value that is not finite, or
        an unknown choice.
    """
    options = dict(locals())
    check_rate(margin=margin, ridge=ridge)
    direction = functools.partial(gem_coefficients, margin=margin, ridge=ridge)
    bind = _binder(
        lr, per_task, glances, optimizer, clip_norm, ring_rule, algebra, direction,
        reference_size=None, skip_first_task=False,
    )  # fmt: skip
    needs = Needs(boundaries=True, task_ids_train=True)
    return Method("gem", bind, needs, options, make=gem)


def agem(
    *,
    lr: Array | float = 0.03,
    per_task: int = 10,
    reference_size: int | None = 64,
    glances: int = 1,
    optimizer: Optimizer = "sgd",
    clip_norm: float | None = None,
    skip_first_task: bool = False,
    ring_rule: ring.Rule = "textbook",
    algebra: Literal["general", "low-rank"] = "general",
) -> Method:
    """Averaged GEM: one reference gradient stands for all past tasks (Chaudhry et al. 2019).

    Args:
      lr: step size; an optax optimiser of your own brings its own. May be traced.
      per_task: examples stored of each task, its last ones.
      reference_size: stored examples drawn for the reference gradient, all different; None takes
        the mean of the past tasks' gradients on all of their memories, as the code of La-MAML does.
      glances: steps on each incoming batch.
      optimizer: sgd, momentum (0.9), adam, or an ``optax.GradientTransformation``.
      clip_norm: bound of the norm of every gradient before the projection; None disables.
      skip_first_task: the first task never constrains, as in the code of La-MAML.
      ring_rule: textbook, or truncate as in the reference code.
      algebra: low-rank keeps the first layer's gradients as factors; the same step to rounding,
        faster.

    Raises:
      UserError: for a count below 1, a rate that is not finite, or an unknown choice.
    """
    options = dict(locals())
    check_positive(**given(reference_size=reference_size))
    check_flag(skip_first_task=skip_first_task)
    bind = _binder(
        lr, per_task, glances, optimizer, clip_norm, ring_rule, algebra, agem_coefficients,
        reference_size=reference_size, skip_first_task=skip_first_task,
    )  # fmt: skip
    needs = Needs(boundaries=True, task_ids_train=True)
    return Method("agem", bind, needs, options, make=agem)


def _binder(
    lr: Any,
    per_task: int,
    glances: int,
    optimizer: Optimizer,
    clip_norm: float | None,
    ring_rule: ring.Rule,
    algebra: str,
    direction: Any,
    *,
    reference_size: int | None,
    skip_first_task: bool,
) -> Any:
    """What GEM and A-GEM share: all but the coefficients of the step."""
    check_positive(per_task=per_task, glances=glances)
    check_rate(lr=lr)
    check_above_zero(**given(clip_norm=clip_norm))
    check_known("ring_rule", ring_rule, ("textbook", "truncate"))
    check_known("algebra", algebra, ("general", "low-rank"))
    step = make_optimizer(optimizer, lr)

    def bind(model: Model, spec: Spec) -> Learner:
        loss_fn = classification_loss(model, spec)
        low_rank = algebra == "low-rank"
        gradients_of = gradients.low_rank(model, spec) if low_rank else gradients.general(loss_fn)

        def init(key: Array) -> State:
            params, model_state = initial(model, spec, key)
            memory = ring.init(of_stream(spec), spec.num_tasks, per_task)
            return State(params, model_state, step.init(params), memory)

        def update(state: State, batch: Batch, draws: Draws) -> tuple[State, Info]:
            current = Examples(batch.x, batch.y, batch.task)
            memory = ring.add(state.memory, current, batch.clock.task, batch.mask, ring_rule)
            own = gradients.Group(*jax.tree.map(lambda a: a[None], (current, batch.mask)))
            some = jnp.any(batch.mask)

            def glance(carry: Any, drawn: Draws) -> tuple[Any, Array]:
                params, model_state, opt_state = carry
                if reference_size is None:
                    reference = gradients.Group(memory.data, ring.valid(memory))
                    active = past(memory, batch, skip_first_task)
                else:
                    reference = gradients.Group(drawn.reference, drawn.mask)
                    active = jnp.any(drawn.mask, axis=1)
                made = gradients_of(params, model_state, (reference, own))
                seen = reference._replace(mask=reference.mask & active[:, None])
                model_state = gradients.followed(loss_fn, params, model_state, (seen, own))
                scale = jnp.ones_like(made.loss)
                if clip_norm is not None:
                    norm = jnp.sqrt(jnp.maximum(jnp.diag(made.gram), 0.0))  # below 0: rounding
                    scale = jnp.minimum(1.0, clip_norm / (norm + 1e-6))
                chosen = direction(made.gram * scale[:, None] * scale[None], active)
                turned = made.combine(chosen * scale)
                updates, opt_state = step.update(turned, opt_state, params)
                params = jax.tree.map(jnp.add, params, updates)
                after = tree.select(some, (params, model_state, opt_state), carry)
                return after, made.loss[-1]

            carry = (state.params, state.model_state, state.opt_state)
            (params, model_state, opt_state), losses = jax.lax.scan(
                glance, carry, draws, length=glances
            )
            return State(params, model_state, opt_state, memory), Info(jnp.mean(losses))

        num = spec.num_tasks * per_task if reference_size is None else reference_size
        return Learner(
            init,
            functools.partial(
                draw,
                glances=glances,
                reference_size=reference_size,
                skip_first_task=skip_first_task,
            ),
            update,
            {"logits": logits_predictor(model)},
            gradients_per_update=glances * (1 + (spec.num_tasks if reference_size is None else 1)),
            examples_per_update=glances * (num + spec.batch_size),
        )

    return bind
