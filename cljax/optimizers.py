"""Optimisers by name, or a user's own from optax; and RAdam with an exact schedule.

    sgd:    d = u,  u <- momentum u + g
    adam:   d = m_hat / (sqrt(v_hat) + eps)
    radam:  d = r_k m / (sqrt(v) + eps) / (1 - b1^k)  from step 6 on,  m / (1 - b1^k)  before

and the step is - lr d. ``optax.radam`` has the same rule, but computes r_k in float32 with heavy
cancellation (1 % off at k = 6); here r_k is a table made in float64 on the host.

Symbols: g the gradient (with weight decay added), k the step from 1, b1 and b2 the decay rates,
rho_inf = 2 / (1 - b2) - 1,  rho_k = rho_inf - 2 k b2^k / (1 - b2^k).

Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020
(arXiv:1908.03265), algorithm 2; eps as in the authors' code, added to the root of the raw v.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import UserError, check_known, check_rate, check_share, in_words
from cljax.types import Array, Params, PyTree

__all__ = [
    "Optimizer", "RAdamState", "Transformation", "check_transformation", "make_optimizer",
    "scale_by_radam",
]  # fmt: skip

# By name, or any ``optax.GradientTransformation``.
Optimizer: TypeAlias = Literal["sgd", "momentum", "adam", "radam"] | Any
_NAMES = ("sgd", "momentum", "adam", "radam")
_TABLE = 2**15  # steps of the table; from there on r_k is 1 to five digits and stays


class Transformation(NamedTuple):
    """What is asked of an optimiser; optax's have it."""

    init: Callable[[Params], PyTree]
    update: Callable[..., tuple[Params, PyTree]]


class RAdamState(NamedTuple):
    """Steps taken, [] int32, and the first and second moments."""

    count: Array
    mu: Params
    nu: Params


def make_optimizer(
    optimizer: Optimizer,
    lr: Array | float,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> Transformation:
    """An optimiser by name, or a user's own as it is: what it gives is added to the parameters.

    Args:
      optimizer: sgd, momentum, adam or radam; or an optax transformation, which brings its own step
        size, momentum and decay.
      lr: step size.
      momentum: of "momentum". weight_decay: adds so many parameters to the gradient (L2).

    Raises:
      UserError: for an unknown name, or what is no optimiser that steps by a gradient alone.
    """
    check_share(momentum=momentum)
    check_rate(weight_decay=weight_decay)
    if not isinstance(optimizer, str):
        check_transformation(optimizer)
        return optimizer
    check_known("optimizer", optimizer, _NAMES)
    towards = _direction(optimizer, momentum)

    def update(grads: Params, state: PyTree, params: Params) -> tuple[Params, PyTree]:
        if weight_decay:
            grads = jax.tree.map(lambda g, p: g + weight_decay * p, grads, params)
        steps, state = towards.update(grads, state, params)
        size = lambda d: lr.astype(d.dtype) if isinstance(lr, jax.Array) else lr
        return jax.tree.map(lambda d: -size(d) * d, steps), state

    return Transformation(towards.init, update)


def check_transformation(made: Any) -> None:
    """Raises UserError unless ``made`` looks like an optax transformation of gradients alone."""
    if hasattr(made, "gradient_transformation"):  # optax.MultiSteps is an object of its own
        raise UserError(
            f"optimizer is a {type(made).__name__}, but it must be a transformation; give its "
            ".gradient_transformation()."
        )
    if isinstance(made, type) or not all(
        callable(getattr(made, name, None)) for name in ("init", "update")
    ):
        raise UserError(
            f"optimizer is {in_words(made)}, but it must be one of {', '.join(_NAMES)}, or an "
            "optax transformation such as optax.adam(1e-3)."
        )
    ones = {"w": jnp.ones(1)}
    try:
        jax.eval_shape(lambda: made.update(ones, made.init(ones), ones))
    except TypeError as error:
        if "required keyword-only" in str(error):
            raise UserError(
                "The optimiser needs more than a gradient, such as the loss's value or function, "
                "which methods do not give it; choose one such as optax.adam(1e-3)."
            ) from error
    except Exception:  # noqa: BLE001, one made for other parameters, by their names
        return


def _direction(optimizer: str, momentum: float) -> Transformation:
    if optimizer == "sgd":
        return Transformation(lambda params: (), lambda grads, state, params: (grads, state))
    if optimizer == "radam":
        return scale_by_radam()

    def made() -> Any:
        import optax  # here, so that methods work without it

        return optax.trace(momentum) if optimizer == "momentum" else optax.scale_by_adam()

    return Transformation(
        lambda params: made().init(params),
        lambda grads, state, params: made().update(grads, state, params),
    )


def scale_by_radam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Transformation:
    """RAdam's direction, with its scalars from a table made in float64."""
    scale, rectified = _radam_table(b1, b2)

    def init(params: Params) -> RAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return RAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(
        grads: Params, state: RAdamState, params: Params | None = None
    ) -> tuple[Params, RAdamState]:
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
        k = jnp.minimum(state.count, _TABLE - 1)
        size, adapt = jnp.asarray(scale)[k], jnp.asarray(rectified)[k]

        def towards(m: Array, v: Array) -> Array:
            return size.astype(m.dtype) * jnp.where(adapt, m / (jnp.sqrt(v) + eps), m)

        return jax.tree.map(towards, mu, nu), RAdamState(state.count + 1, mu, nu)

    return Transformation(init, update)


def _radam_table(b1: float, b2: float) -> tuple[np.ndarray, np.ndarray]:
    """Of steps 1, 2, ...: the factor of the moments, and whether they are rectified."""
    k = np.arange(1, _TABLE + 1, dtype=np.float64)
    rho_inf = 2 / (1 - b2) - 1
    rho = rho_inf - 2 * k * b2**k / (1 - b2**k)
    rectified = rho >= 5
    safe = np.where(rectified, rho, 5.0)
    factor = (safe - 4) * (safe - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * safe)
    size = np.where(rectified, np.sqrt((1 - b2**k) * factor), 1.0)
    return size / (1 - b1**k), rectified
