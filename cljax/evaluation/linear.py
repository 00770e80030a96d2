"""Readout: how well a linear layer that is fitted anew tells classes apart by frozen features.

    V <- 0, b <- 0;  ``steps`` times:  V, b <- Adam(V, b; grad mean_i CE(f_i V + b, y_i))
    accuracy = mean_j [ argmax(f'_j V + b) = y'_j ]

What accuracy is lost from one checkpoint to a later one, while the layer is fitted anew at each,
the features have lost: representational forgetting. The layer may use old data, for it is a probe
that never reaches the network.

Symbols: f ``features``, y ``labels``, f' ``features_test``, y' ``labels_test``, V ``kernel``,
b ``bias``. Adam has the decay rates 0.9 and 0.999 and eps 1e-8.

Source: "Learning to Remember from a Multi-Task Teacher", the readout (500 steps of Adam at rate
0.1). It does not say how V and b begin, nor how large a batch is: here zeros, and all examples.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array as AnyArray
from jaxtyping import Bool, Float, Int

from cljax.errors import UserError, check_positive, check_rate, in_words
from cljax.losses import cross_entropy, masked_mean
from cljax.optimizers import make_optimizer
from cljax.types import Array, PyTree

__all__ = ["ReadoutResult", "readout"]

Params = dict[str, Array]  # "kernel" [D, C], "bias" [C]


class ReadoutResult(NamedTuple):
    """What a readout finds."""

    accuracy: Array  # [] a fraction of the valid test examples
    loss: Array  # [] nats, mean over the valid training examples, with the fitted layer
    params: Params  # "kernel" [D, C], "bias" [C]


def readout(
    features: Float[AnyArray, "N D"],
    labels: Int[AnyArray, " N"],
    features_test: Float[AnyArray, "M D"],
    labels_test: Int[AnyArray, " M"],
    *,
    num_classes: int,
    mask: Bool[AnyArray, " N"] | None = None,
    mask_test: Bool[AnyArray, " M"] | None = None,
    outputs: Bool[AnyArray, " C"] | None = None,
    steps: int = 500,
    lr: Array | float = 0.1,
    batch_size: int | None = None,
    key: Array | None = None,
) -> ReadoutResult:
    """Fits a linear layer on frozen features, and tests it on others.

    One ``lax.scan``; goes under ``jit`` with static counts, and under ``vmap`` over checkpoints,
    seeds and rates. As exact as the features, at least float32.

    Args:
      labels, labels_test: in [0, C).
      num_classes: C, the outputs of the layer.
      mask, mask_test: examples that count; None: all. The others change nothing.
      outputs: classes that take part in the softmax; None: all.
      steps: of Adam. lr: their size; may be traced.
      batch_size: examples a step, drawn with replacement by ``key``; None: all of them.

    Raises:
      UserError: for counts below 1, fewer than two classes, lengths that differ, a label out of
        range, a rate that is not finite, or a batch size without a key.

    Example:
      ``jax.vmap(lambda f, g: readout(f, y, g, y_test, num_classes=5))(f_of_each, g_of_each)``
    """
    _check(features, labels, features_test, labels_test, mask, mask_test, num_classes)
    check_positive(steps=steps)
    check_rate(lr=lr)
    if batch_size is not None:
        check_positive(batch_size=batch_size)
        if key is None:
            raise UserError(
                f"batch_size is {batch_size}, but drawing batches needs a key; pass one."
            )
        kind = getattr(key, "dtype", None)
        if kind is None or not (kind == np.uint32 or jnp.issubdtype(kind, jax.dtypes.prng_key)):
            raise UserError(f"key is {in_words(key)}, but it must be a jax.random.key(seed).")
    dtype = jnp.promote_types(jnp.result_type(features), jnp.float32)
    x, mask = _masked(features, mask, dtype)
    x_test, mask_test = _masked(features_test, mask_test, dtype)
    y, where = jnp.asarray(labels), None if outputs is None else jnp.asarray(outputs)[None]
    adam = make_optimizer("adam", jnp.asarray(lr, dtype))

    def loss(params: Params, x: Array, y: Array, mask: Array) -> Array:
        return masked_mean(cross_entropy(_logits(params, x), y, where), mask)

    def step(
        carry: tuple[Params, PyTree], rows: Array | None
    ) -> tuple[tuple[Params, PyTree], None]:
        params, opt_state = carry
        batch = (x, y, mask) if rows is None else (x[rows], y[rows], mask[rows])
        updates, opt_state = adam.update(jax.grad(loss)(params, *batch), opt_state, params)
        return (jax.tree.map(jnp.add, params, updates), opt_state), None

    rows = None
    if batch_size is not None:
        assert key is not None
        valid = jnp.argsort(~mask, stable=True)  # first the examples that count, in their order
        count = jnp.maximum(jnp.sum(mask), 1)
        rows = valid[jax.random.randint(key, (steps, batch_size), 0, count)]
    zeros = {"kernel": jnp.zeros((x.shape[1], num_classes), dtype)}
    zeros["bias"] = jnp.zeros(num_classes, dtype)
    (params, _), _ = jax.lax.scan(step, (zeros, adam.init(zeros)), rows, length=steps)
    scores = _logits(params, x_test)
    if where is not None:
        scores = jnp.where(where, scores, -jnp.inf)
    right = jnp.argmax(scores, axis=-1) == jnp.asarray(labels_test)
    return ReadoutResult(
        masked_mean(right.astype(dtype), mask_test), loss(params, x, y, mask), params
    )


def _logits(params: Params, x: Array) -> Array:
    return x @ params["kernel"] + params["bias"][None]


def _masked(features: AnyArray, mask: AnyArray | None, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Features that are finite wherever the mask is False, and the mask itself."""
    x = jnp.asarray(features, dtype)
    if mask is None:
        return x, jnp.ones(x.shape[0], bool)
    mask = jnp.asarray(mask)
    return jnp.where(mask[:, None], x, 0.0), mask


def _check(
    features: AnyArray,
    labels: AnyArray,
    features_test: AnyArray,
    labels_test: AnyArray,
    mask: AnyArray | None,
    mask_test: AnyArray | None,
    num_classes: int,
) -> None:
    """Raises UserError unless the arrays fit each other."""
    check_positive(num_classes=num_classes)
    if num_classes < 2:
        raise UserError(f"num_classes is {num_classes}, but a readout tells at least 2 apart.")
    shape, shape_test = jnp.shape(features), jnp.shape(features_test)
    if len(shape) != 2 or len(shape_test) != 2 or shape[1] != shape_test[1]:
        raise UserError(
            f"The features have shapes {list(shape)} and {list(shape_test)}, but they must be "
            "[N, D] and [M, D]."
        )
    check_positive(training_examples=shape[0], test_examples=shape_test[0])
    for name, own, length, valid in (
        ("labels", labels, shape[0], mask),
        ("labels_test", labels_test, shape_test[0], mask_test),
    ):
        for kind, array in ((name, own), ("mask" + name[len("labels") :], valid)):
            if array is not None and jnp.shape(array) != (length,):
                raise UserError(
                    f"{kind} has shape {list(jnp.shape(array))}, but there are {length} rows of "
                    "features; give one for each."
                )
        if isinstance(own, Tracer) or isinstance(valid, Tracer):
            continue
        if np.asarray(own).dtype.kind not in "iubf":
            raise UserError(f"{name} is {in_words(own)}, but it must be an array of numbers.")
        seen = np.asarray(own) if valid is None else np.asarray(own)[np.asarray(valid)]
        if seen.size and not (0 <= seen.min() and seen.max() < num_classes):
            raise UserError(
                f"{name} run from {seen.min()} to {seen.max()}, but they must be 0 to "
                f"{num_classes - 1}; number the classes anew."
            )
