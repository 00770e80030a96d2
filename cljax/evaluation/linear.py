"""Readout: how well a linear layer that is fitted anew tells classes apart by frozen features.

    V <- 0, b <- 0;  ``steps`` times:  V, b <- Adam(V, b; grad mean_i CE(f_i V + b, y_i))
    accuracy = mean_j [ argmax(f'_j V + b) = y'_j ]

What accuracy is lost from one checkpoint to a later one, while the layer is fitted anew at each,
the features have lost: representational forgetting. The layer may use old data, for it is a probe
that never reaches the network.

Symbols: f ``train.x``, y ``train.labels``, f' ``test.x``, y' ``test.labels``, V ``kernel``, b
``bias``. Adam has the decay rates 0.9 and 0.999 and eps 1e-8.

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
from jaxtyping import Bool

from cljax.errors import UserError, check_positive, check_rate, in_words
from cljax.losses import cross_entropy, masked_mean
from cljax.optimizers import make_optimizer
from cljax.types import Array, Features, PyTree

__all__ = ["ReadoutResult", "readout"]

Params = dict[str, Array]  # "kernel" [D, C], "bias" [C]


class ReadoutResult(NamedTuple):
    """What a readout finds."""

    accuracy: Array  # [] a fraction of the valid test examples
    loss: Array  # [] nats, mean over the valid training examples, with the fitted layer
    params: Params  # "kernel" [D, C], "bias" [C]


def readout(
    train: Features,
    test: Features,
    *,
    num_classes: int,
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
      train: what the layer is fitted on, labels in [0, C). Examples outside the mask change
        nothing.
      test: what it is tested on, likewise.
      num_classes: C, the outputs of the layer.
      outputs: classes that take part in the softmax; None: all.
      steps: of Adam. lr: their size; may be traced.
      batch_size: examples a step, drawn with replacement by ``key``; None: all of them.

    Raises:
      UserError: for counts below 1, fewer than two classes, lengths that differ, a label out of
        range, a rate that is not finite, or a batch size without a key.

    Example:
      ``jax.vmap(lambda f, g: readout(Features(f, y), Features(g, y_test), num_classes=5))(f, g)``
    """
    _check(train, test, num_classes)
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
    dtype = jnp.promote_types(jnp.result_type(train.x), jnp.float32)
    x, mask = _masked(train, dtype)
    x_test, mask_test = _masked(test, dtype)
    y, where = jnp.asarray(train.labels), None if outputs is None else jnp.asarray(outputs)[None]
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
    right = jnp.argmax(scores, axis=-1) == jnp.asarray(test.labels)
    return ReadoutResult(
        masked_mean(right.astype(dtype), mask_test), loss(params, x, y, mask), params
    )


def _logits(params: Params, x: Array) -> Array:
    return x @ params["kernel"] + params["bias"][None]


def _masked(features: Features, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Features that are finite wherever the mask is False, and the mask itself."""
    x = jnp.asarray(features.x, dtype)
    if features.mask is None:
        return x, jnp.ones(x.shape[0], bool)
    mask = jnp.asarray(features.mask)
    return jnp.where(mask[:, None], x, 0.0), mask


def _check(train: Features, test: Features, num_classes: int) -> None:
    """Raises UserError unless the arrays fit each other."""
    check_positive(num_classes=num_classes)
    if num_classes < 2:
        raise UserError(f"num_classes is {num_classes}, but a readout tells at least 2 apart.")
    for name, given in (("train", train), ("test", test)):
        if not isinstance(given, Features):
            raise UserError(
                f"{name} is {in_words(given)}, but it must be a cljax.types.Features(x, labels)."
            )
    shape, shape_test = jnp.shape(train.x), jnp.shape(test.x)
    if len(shape) != 2 or len(shape_test) != 2 or shape[1] != shape_test[1]:
        raise UserError(
            f"The features have shapes {list(shape)} and {list(shape_test)}, but they must be "
            "[N, D] and [M, D]."
        )
    check_positive(training_examples=shape[0], test_examples=shape_test[0])
    _check_labels("train", train, num_classes)
    _check_labels("test", test, num_classes)


def _check_labels(name: str, features: Features, num_classes: int) -> None:
    """Raises UserError unless each row has a label in [0, C) and an entry of the mask."""
    (length, _), labels, mask = jnp.shape(features.x), features.labels, features.mask
    for kind, array in (("labels", labels), ("mask", mask)):
        if array is not None and jnp.shape(array) != (length,):
            raise UserError(
                f"{name}.{kind} has shape {list(jnp.shape(array))}, but there are {length} rows of "
                "features; give one for each."
            )
    if isinstance(labels, Tracer) or isinstance(mask, Tracer):
        return
    if np.asarray(labels).dtype.kind not in "iubf":
        raise UserError(f"{name}.labels is {in_words(labels)}, but it must be an array of numbers.")
    seen = np.asarray(labels) if mask is None else np.asarray(labels)[np.asarray(mask)]
    if seen.size and not (0 <= seen.min() and seen.max() < num_classes):
        raise UserError(
            f"{name}.labels run from {seen.min()} to {seen.max()}, but they must be 0 to "
            f"{num_classes - 1}; number the classes anew."
        )
