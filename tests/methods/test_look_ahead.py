"""Meta-gradients as sums along the inner loop, and the products of pairs of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

import cljax
from cljax.inner_loop import LoopOptions
from cljax.methods.algebra import pairs
from cljax.methods.algebra.first_order import meta_gradients
from cljax.methods.algebra.look_ahead import LookAhead, meta_loss
from cljax.types import Examples


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("meta_reduce", "inner_relu", "inner_clip", "unroll_steps", "held"),
    [("mean", True, None, 1, 4), ("mean", False, 0.05, 1, 3), ("sum", True, 0.05, True, 2),
     ("last", False, None, 1, 4), ("last", True, 0.05, True, 2), ("mean", True, None, 1, 0)],
)  # fmt: skip
def test_sums_along_the_loop_are_the_derivatives_of_the_meta_loss(
    meta_reduce, inner_relu, inner_clip, unroll_steps, held
):
    """Against reverse-mode differentiation through the whole loop, in float64."""
    batch, model = support.at(support.batches(1), 0), cljax.nets.mlp(5)(4)
    loss_fn = cljax.losses.classification_loss(model, support.spec())
    params = model.init(jax.random.key(0), batch.x).params
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
    # Rates of either sign, so that relu shuts some of them.
    alpha = jax.tree.unflatten(
        jax.tree.structure(params),
        [
            0.3 * jax.random.normal(k, a.shape)
            for k, a in zip(keys, jax.tree.leaves(params), strict=True)
        ],
    )
    examples = Examples(batch.x, batch.y, batch.task)
    chunks = jax.tree.map(lambda a: a[:, None], examples)
    inner = (chunks, (jnp.arange(4) < held)[:, None])
    how = LookAhead(1, inner_clip, inner_relu, meta_reduce, LoopOptions(unroll_steps=unroll_steps))
    args = (params, alpha, {}, inner, (examples, jnp.arange(4) != 1))
    made = meta_gradients(*args, loss_fn=loss_fn, how=how)
    by_grad = jax.value_and_grad(meta_loss, argnums=(0, 1), has_aux=True)
    (loss, _), grads = by_grad(*args, loss_fn=loss_fn, how=how)
    support.assert_close((made.loss, made.params, made.alpha), (loss, *grads), 1e-14)
    assert (max(float(jnp.abs(a).max()) for a in jax.tree.leaves(made.alpha)) > 1e-4) == (held > 0)


@pytest.mark.parametrize("shape", [(1, 0, 1), (3, 2, 113), (4, 0, 112), (2, 3, 300)])
def test_products_of_pairs_are_those_of_all_rows_and_columns(shape):
    num_last, num_others, size = shape
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.normal(size=(size, 3)))
    values = jnp.asarray(rng.normal(size=(num_last, num_last + num_others, 3)))

    @jax.jit
    def products(x):
        made = pairs.of_rows(x, num_last)
        return made.turns, pairs.times(made, matrix), pairs.transposed_times(made, values, size)

    for share in (0.0, 0.01, 0.3, 1.0):
        x = rng.normal(size=(num_others + num_last, size)) * (rng.random(size) < share)
        turns, times, back = products(jnp.asarray(x))
        rows = x[num_others:, None] * x[None]
        assert turns == -(-np.any(x[num_others:], axis=0).sum() // min(size, 112))
        np.testing.assert_allclose(times, rows @ matrix, atol=1e-12)
        np.testing.assert_allclose(back, np.einsum("kbd,kbh->dh", rows, values), atol=1e-12)
