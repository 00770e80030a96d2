"""Meta-training of a learned update rule: truncated windows of episodes, student beside teacher.

    step t of an episode, from (x_a, y_a) of old tasks and (x_b, y_b) of the new one:
        w   = w  - alpha grad CE(w; x_a + x_b)                       teacher, sees both
        w^  = w^ - alpha delta(w^, grad CE(w^; x_b), tape; theta) grad CE(w^; x_b)       student
        L_t = rho mean Huber(phi(x_a + x_b; w) - phi(x_a + x_b; w^))
    window:     theta = Adam(theta, grad mean_t L_t)         through its own S steps, once
    per-step:   theta = Adam(theta, grad L_t)                through the last s steps, every step

Both go back to where the window began; what came before is a constant, kept as it is. Per step,
theta moves within the window, and the s steps are pulled back with the present theta from the
states as they were stored. An episode ends where L_t passes tau; its other steps are masked.

Symbols: w ``teacher``, w^ ``student``, phi ``features``, theta ``theta``, alpha ``lr``, rho
``rho``, tau and S ``level``, E ``lanes``, K the largest S.

Source: Xiong, Ren, Zeng, Urtasun, "Learning to Remember from a Multi-Task Teacher", 2019
(arXiv:1910.04650), algorithm 1 (per-step); several episodes at once and one update a window are
extensions. Gradients and activations that the rule sees are constants unless ``order`` is 2, and
so are the weights that it sees unless ``detach`` is False, which the paper leaves open.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from cljax.inner_loop import InnerStep, scan
from cljax.losses import cross_entropy
from cljax.types import Array, Model, Output, Params, PyTree, Variables
from cljax.update_rules.curriculum import Level
from cljax.update_rules.gate import Gate, learned_step

__all__ = [
    "EpisodeBatch", "Estimator", "Shown", "StudentTeacher", "Window", "huber", "per_step", "taken",
    "window",
]  # fmt: skip

Estimator: TypeAlias = Literal["window", "per-step"]


class Shown(NamedTuple):
    """Examples as the network sees them; old tasks' first, then the new one's."""

    x: Array  # [..., n, ...]
    y: Array  # [..., n] int32, outputs
    outputs: Array  # [..., n, C] bool, those that an example competes over


class EpisodeBatch(NamedTuple):
    """E episodes under way; every leaf has a leading axis E."""

    teacher: Params
    student: Params
    carry: PyTree  # of the gate
    step: Array  # [E] int32, inner steps of this part of the episode
    done: Array  # [E] bool, waits for the end of the window


class StudentTeacher(NamedTuple):
    """What stays the same: the networks and how they learn."""

    model: Model
    gate: Gate
    lr: Array | float  # alpha, of teacher and student
    old: int  # examples of old tasks in each step's n
    longest: int  # inner steps of an episode
    order: Literal[1, 2] = 1
    detach: bool = True
    remat: bool = False  # recompute each step in the backward pass
    no_loop: bool = False  # leave no compiled loop: convolutions on CPUs are slow in one


class Window(NamedTuple):
    """What a window gives: the meta-gradient or the rule after it, lanes, and what was seen."""

    lanes: EpisodeBatch
    losses: Array  # [K, E], 0 where a step does not count
    live: Array  # [K, E] bool, the steps that count


def huber(gap: Array) -> Array:
    """Mean Huber loss [] of differences: quadratic within 1, linear beyond."""
    import optax  # here, so that methods work without it

    return jnp.mean(optax.losses.huber_loss(gap))


def window(
    pair: StudentTeacher,
    theta: PyTree,
    lanes: EpisodeBatch,
    shown: Shown,
    level: Level,
    rho: Array,
) -> tuple[PyTree, Window]:
    """One window, and the gradient of its mean loss in theta.

    Args:
      shown: leaves [K, E, n, ...]; the first ``level.steps`` steps are taken.

    Returns:
      The gradient, like theta, and the window. Where an episode leaves the finite numbers the
      gradient is zero: one theta for all lanes is worth more speed than such a window.
    """

    # Episodes that wait see zeros: what their examples hold must not reach the others' gradient.
    clear = lambda a: jnp.where(lanes.done.reshape(1, -1, *(1,) * (a.ndim - 2)), 0, a)
    shown = shown._replace(x=jax.tree.map(clear, shown.x))

    def objective(theta: PyTree) -> tuple[Array, Window]:
        seen = taken(pair, theta, lanes, shown, level, rho)
        return jnp.sum(seen.losses) / jnp.maximum(jnp.sum(seen.live), 1), seen

    grads, seen = jax.grad(objective, has_aux=True)(theta)
    return _finite_or_nothing(grads), seen


def taken(
    pair: StudentTeacher,
    theta: PyTree,
    lanes: EpisodeBatch,
    shown: Shown,
    level: Level,
    rho: Array,
) -> Window:
    """A window's steps with the rule as it is; arguments as of ``window``."""

    def body(
        lanes: EpisodeBatch, xs: tuple[Array, Shown]
    ) -> tuple[EpisodeBatch, tuple[Array, Array]]:
        k, batch = xs

        def step(lanes: EpisodeBatch) -> tuple[EpisodeBatch, tuple[Array, Array]]:
            each = lambda lane, own: _step(pair, theta, lane, own, rho)
            after, loss = jax.vmap(each)(lanes, batch)
            return _after(pair, lanes, after, loss, level.threshold)

        return jax.lax.cond(k < level.steps, step, _skipped, lanes)

    steps = jnp.arange(shown.y.shape[0])
    if pair.remat:
        body = jax.checkpoint(body, prevent_cse=pair.no_loop)  # type: ignore[arg-type]
    after, (losses, live) = scan(
        body, lanes, (steps, shown), unroll_steps=True if pair.no_loop else 1
    )
    return Window(after, losses, live)


def per_step(
    pair: StudentTeacher,
    theta: PyTree,
    opt_state: PyTree,
    optimizer: Any,
    lanes: EpisodeBatch,
    shown: Shown,
    level: Level,
    rho: Array,
) -> tuple[PyTree, PyTree, Window]:
    """One window with an update of theta after every step (algorithm 1 to the letter).

    Args:
      optimizer: optax's, of theta.
      shown: leaves [K, E, n, ...]; the first ``level.steps`` steps are taken.

    Returns:
      theta, the optimiser's state, and the window.
    """
    num_steps = shown.y.shape[0]
    news = jax.tree.map(lambda a: a[:, :, pair.old :], shown)
    first = jax.tree.map(lambda a: a[0], news)
    seen = jax.eval_shape(functools.partial(_gradients, pair), lanes, first)
    entry = (lanes.student, lanes.carry, seen)  # what a step is pulled back through later
    store = jax.tree.map(lambda a: jnp.zeros((num_steps, *a.shape), a.dtype), entry)

    def body(at: tuple[Any, ...], xs: tuple[Array, Shown]) -> tuple[Any, tuple[Array, Array]]:
        k, batch = xs

        def step(at: tuple[Any, ...]) -> tuple[Any, tuple[Array, Array]]:
            theta, opt_state, lanes, store = at
            gradients = _gradients(pair, lanes, jax.tree.map(lambda a: a[:, pair.old :], batch))
            entry = (lanes.student, lanes.carry, gradients)
            each = lambda lane, gradient, own: _step_and_slope(
                pair, theta, lane, gradient, own, rho
            )
            after, loss, slope = jax.vmap(each)(lanes, gradients, batch)
            after, (loss, live) = _after(pair, lanes, after, loss, level.threshold)
            # What a lane that does not count holds must not reach the others' gradient.
            clear = lambda leaf: jnp.where(_spread(live, leaf), leaf, 0)
            entry = jax.tree.map(clear, entry)
            store = jax.tree.map(lambda all_, one: all_.at[k].set(one), store, entry)
            grads = _pulled_back(pair, theta, store, news, k, jax.tree.map(clear, slope))
            theta, opt_state = _moved(optimizer, theta, opt_state, grads, live)
            return (theta, opt_state, after, store), (loss, live)

        def skipped(at: tuple[Any, ...]) -> tuple[Any, tuple[Array, Array]]:
            return at, _skipped(at[2])[1]

        return jax.lax.cond(k < level.steps, step, skipped, at)

    (theta, opt_state, after, _), (losses, live) = scan(
        body, (theta, opt_state, lanes, store), (jnp.arange(num_steps), shown),
        unroll_steps=True if pair.no_loop else 1,
    )  # fmt: skip
    return theta, opt_state, Window(after, losses, live)


def _gradients(pair: StudentTeacher, lanes: EpisodeBatch, new: Shown) -> PyTree:
    """What the rule sees of each lane, leaves [E, ...]: gradients and activations."""
    each = lambda lane, own: _rule(pair, None).gradient(lane.student, lane.carry, own)[0]
    return jax.vmap(each)(lanes, new)


def _step_and_slope(
    pair: StudentTeacher, theta: PyTree, lane: EpisodeBatch, gradient: PyTree, shown: Shown,
    rho: Array,
) -> tuple[EpisodeBatch, Array, Params]:  # fmt: skip
    """One inner step of one episode, its loss [], and the loss's gradient in the student."""
    student, carry = _rule(pair, theta).apply(lane.student, lane.carry, gradient)
    teacher = _taught(pair, lane.teacher, shown)
    loss, slope = jax.value_and_grad(lambda student: _loss(pair, teacher, student, shown, rho))(
        student
    )
    return lane._replace(teacher=teacher, student=student, carry=carry), loss, slope


def _pulled_back(
    pair: StudentTeacher, theta: PyTree, store: PyTree, news: Shown, k: Array, slope: Params
) -> PyTree:
    """Gradient in theta of a loss with this slope [E, ...] in the student after step k.

    Args:
      store: of each step, students, carries and gradients, leaves [K, E, ...].
      news: of each step, the examples of new tasks.
    """

    def sweep(i: Array, at: tuple[PyTree, Params, PyTree]) -> tuple[PyTree, Params, PyTree]:
        total, slope, carried = at
        student, carry, gradients, batch = jax.tree.map(lambda a: a[k - i], (*store, news))

        def again(theta: PyTree, student: Params, carry: PyTree) -> tuple[Params, PyTree]:
            def one(student: Params, carry: PyTree, gradient: PyTree, own: Shown) -> Any:
                rule = _rule(pair, theta)
                if pair.order == 2:
                    gradient, carry = rule.gradient(student, carry, own)
                return rule.apply(student, carry, gradient)

            return jax.vmap(one)(student, carry, gradients, batch)

        back = jax.vjp(again, theta, student, carry)[1]
        more, slope, carried = back((slope, carried))
        return jax.tree.map(jnp.add, total, more), slope, carried

    zeros = jax.tree.map(jnp.zeros_like, theta)
    none = jax.tree.map(lambda a: jnp.zeros_like(a[0]), store[1])
    return jax.lax.fori_loop(0, k + 1, sweep, (zeros, slope, none))[0]


def _moved(
    optimizer: Any, theta: PyTree, opt_state: PyTree, grads: PyTree, live: Array
) -> tuple[PyTree, PyTree]:
    """theta and the optimiser's state after a step on the mean over the lanes that count."""
    count = jnp.maximum(jnp.sum(live), 1)
    grads = jax.tree.map(lambda g: g / count, _finite_or_nothing(grads))
    updates, moved = optimizer.update(grads, opt_state, theta)
    some = jnp.any(live)
    pick = lambda new, old: jnp.where(some, new, old)
    theta = jax.tree.map(lambda p, u: jnp.where(some, p + u, p), theta, updates)
    return theta, jax.tree.map(pick, moved, opt_state)


def _rule(pair: StudentTeacher, theta: PyTree) -> InnerStep:
    def loss(output: Output, batch: Shown) -> Array:
        return jnp.mean(cross_entropy(output.logits, batch.y, batch.outputs))

    return learned_step(
        pair.gate,
        theta,
        loss,
        pair.model,
        pair.lr,
        detach=pair.detach,
    )


def _step(
    pair: StudentTeacher, theta: PyTree, lane: EpisodeBatch, shown: Shown, rho: Array
) -> tuple[EpisodeBatch, Array]:
    """One inner step of one episode, and its loss []."""
    rule = _rule(pair, theta)
    new = jax.tree.map(lambda a: a[pair.old :], shown)
    result, carry = rule.gradient(lane.student, lane.carry, new)
    if pair.order == 1:
        result = jax.lax.stop_gradient(result)
    student, carry = rule.apply(lane.student, carry, result)
    teacher = _taught(pair, lane.teacher, shown)
    loss = _loss(pair, teacher, student, shown, rho)
    return lane._replace(teacher=teacher, student=student, carry=carry), loss


def _taught(pair: StudentTeacher, teacher: Params, shown: Shown) -> Params:
    """The teacher after a plain step on old and new examples; no derivative goes through it."""

    def loss(params: Params) -> Array:
        logits = pair.model.apply(Variables(params, {}), shown.x, False)[0].logits
        return jnp.mean(cross_entropy(logits, shown.y, shown.outputs))

    teacher = jax.lax.stop_gradient(teacher)
    grads = jax.grad(loss)(teacher)
    return jax.tree.map(lambda p, g: p - pair.lr * g, teacher, grads)


def _loss(
    pair: StudentTeacher, teacher: Params, student: Params, shown: Shown, rho: Array
) -> Array:
    features = lambda params: pair.model.apply(Variables(params, {}), shown.x, False)[0].features
    return rho * huber(jax.lax.stop_gradient(features(teacher)) - features(student))


def _after(
    pair: StudentTeacher,
    before: EpisodeBatch,
    after: EpisodeBatch,
    loss: Array,
    threshold: Array,
) -> tuple[EpisodeBatch, tuple[Array, Array]]:
    """Episodes after a step: those that were done, or are not finite, stay where they were."""
    live = ~before.done & jnp.isfinite(loss)
    kept: Callable[..., Array] = lambda new, old: jnp.where(_spread(live, new), new, old)
    step = before.step + ~before.done
    # A loss that is not a number is not below the threshold either.
    ended = ~(loss <= threshold) | (step >= pair.longest)
    moved = jax.tree.map(kept, after, before)
    return moved._replace(step=step, done=before.done | ended), (jnp.where(live, loss, 0.0), live)


def _skipped(lanes: EpisodeBatch) -> tuple[EpisodeBatch, tuple[Array, Array]]:
    dtype = jax.tree.leaves(lanes.student)[0].dtype
    return lanes, (jnp.zeros(lanes.done.shape, dtype), jnp.zeros(lanes.done.shape, bool))


def _finite_or_nothing(grads: PyTree) -> PyTree:
    """The gradient, or zeros if any of it is not finite."""
    sound = jnp.all(jnp.stack([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]))
    return jax.tree.map(lambda g: jnp.where(sound, g, 0.0), grads)


def _spread(flag: Array, leaf: Array) -> Array:
    """[E] beside leaves [E, ...]."""
    return flag.reshape(-1, *(1,) * (leaf.ndim - 1))
