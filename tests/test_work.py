"""Counted operations and bytes, by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import support

import cljax
from cljax import resolve
from cljax.engine.work import counted, of_update
from cljax.nets.convolve import convolve


def test_products_by_hand():
    a, b = jnp.ones((3, 4)), jax.ShapeDtypeStruct((4, 5), jnp.float32)
    assert counted(lambda a, b: jnp.sin(a @ b), a, b) == (2 * 3 * 4 * 5, 4 * (12 + 20 + 15))
    once = jax.jit(lambda a, b: a @ b)  # inside another program
    assert counted(once, a, b).flops == 120
    loop = lambda a: jax.lax.scan(lambda c, _: (c @ a, None), a, length=7)[0]
    assert counted(loop, jnp.ones((2, 2))).flops == 7 * 16
    sets = jax.vmap(jnp.matmul)
    assert counted(sets, jnp.ones((6, 3, 4)), jnp.ones((6, 4, 5))).flops == 6 * 120
    either = lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a, lambda: a @ a @ a)
    assert counted(either, jnp.ones((2, 2))).flops in (16, 32)


def test_a_networks_forward_and_backward():
    model = resolve.net("cnn:8,6:5")(4)
    x = jnp.ones((2, 8, 8, 3))
    variables = model.init(jax.random.key(0), x)
    forward = lambda p: jnp.sum(model.apply(variables._replace(params=p), x, True)[0].logits)
    images = 2
    places = {"first": 4 * 4 * 27 * 8, "rest": 2 * 2 * 72 * 6 + 24 * 5 + 5 * 4}
    assert counted(forward, variables.params).flops == 2 * images * sum(places.values())
    found = counted(jax.grad(forward), variables.params).flops
    # The first layer has no gradient of its inputs.
    assert found == 2 * images * (2 * places["first"] + 3 * places["rest"])


def test_a_convolution_and_both_its_gradients():
    x, kernel = jnp.ones((3, 6, 5, 8)), jnp.ones((3, 3, 8, 4))
    once = 2 * 3 * 6 * 5 * kernel.size
    assert counted(lambda x, k: convolve(x, k, 1, 1), x, kernel).flops == once
    both = lambda x, k: jax.grad(lambda x, k: jnp.sum(convolve(x, k, 1, 1) ** 2), (0, 1))(x, k)
    assert counted(both, x, kernel).flops == 3 * once
    # As XLA's own, which a program of one's own may have.
    own = lambda x, k: jax.lax.conv(
        x.transpose(0, 3, 1, 2), k.transpose(3, 2, 0, 1), (1, 1), "SAME"
    )
    assert counted(own, x, kernel).flops == once


def test_an_update():
    spec, model = support.spec(), cljax.nets.mlp(5)(support.NUM_CLASSES)
    weights = support.NUM_INPUTS * 5 + 5 * support.NUM_CLASSES
    learner = cljax.ER(replay_size=3, glances=2, capacity=6).bind(model, spec)
    first = support.NUM_INPUTS * 5
    rows = 2 * (3 + support.BATCH)
    assert of_update(learner, spec).flops == 2 * rows * (3 * weights - first)
    assert np.isfinite(of_update(learner, spec).moved)
