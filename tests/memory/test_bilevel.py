"""The gradient through an inner loop: finite differences, closed forms, statistics, masks."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mnemonics_support import NET, convolving, judge, problem

from cljax.errors import UserError
from cljax.memory.bilevel import Bilevel, outer_gradient
from cljax.method import Problem
from cljax.nets import mlp
from cljax.nets.batchnorm import BatchNorm
from cljax.nets.transfer import with_scales
from cljax.types import Variables


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


NORMS = pytest.mark.parametrize("norm", ["frozen", "batch"])


@pytest.mark.parametrize(
    ("steps", "net", "norm"),
    [
        (1, NET, "frozen"),
        (3, NET, "frozen"),
        (1, convolving, "frozen"),
        (1, convolving, "batch"),
        (3, convolving, "batch"),
    ],
)
def test_the_gradient_in_every_pixel_is_that_of_finite_differences(steps, net, norm):
    kept, mask = problem(net)[3], np.ones((5, 3), bool)
    mask[0, 1] = False
    loss, grads = judge(steps, mask=mask, net=net, inner_norm=norm)
    assert np.isfinite(loss) and grads.shape == kept.pixels.shape
    step = 1e-5

    def value(values):
        return judge(steps, kept=kept._replace(pixels=values), mask=mask, net=net, inner_norm=norm)

    for slot, place in np.ndindex(*kept.pixels.shape):
        nudge = np.zeros(kept.pixels.shape)
        nudge[slot, place] = step
        ahead, behind = (value(kept.pixels + sign * nudge)[0] for sign in (1, -1))
        numeric = (ahead - behind) / (2 * step)
        np.testing.assert_allclose(grads[slot, place], numeric, rtol=1e-5, atol=1e-9)
    assert float(jnp.abs(grads).max()) > 1e-4


def test_other_ways_to_the_same_gradient():
    loss, plain = judge(3)
    for options in ({"remat": True}, {"last": 3}, {"inner_norm": "batch"}):
        other, grads = judge(3, **options)
        np.testing.assert_allclose(other, loss, rtol=1e-13)
        np.testing.assert_allclose(grads, plain, rtol=0, atol=1e-14)
    _, truncated = judge(3, last=1)
    assert float(jnp.abs(truncated - plain).max()) > 1e-4
    # Slots 0, 3 and 4 are in the last inner step, the others only in earlier ones.
    np.testing.assert_array_equal(truncated[jnp.array([1, 2, 5])], 0.0)
    assert bool((truncated[jnp.array([3, 4])] != 0).any(axis=1).all())


def test_one_step_aligns_the_gradients_of_exemplars_and_validation():
    """dL_V / dE = -alpha d/dE <grad L(theta; E), grad L_V(theta')>, both at hand."""
    model, spec, variables, kept, judged, slots, _ = problem()

    def loss(params, x, y, mask):
        logits = model.apply(Variables(params, {}), x, False)[0].logits
        own = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
        each = jax.nn.logsumexp(logits, axis=1) - own
        return jnp.sum(jnp.where(mask, each, 0.0)) / jnp.sum(mask)

    def of_exemplars(params, values):
        x = spec.show(values[slots[0]], None)
        return loss(params, x, kept.y[slots[0]], jnp.ones(3, bool))

    @jax.jit
    def by_hand(params, values):
        first = jax.grad(of_exemplars)(params, values)
        after = jax.tree.map(lambda p, g: p - 0.5 * g, params, first)
        judges = jax.grad(loss)(after, judged.x, judged.y, judged.mask)

        def alignment(values):
            grads = jax.grad(of_exemplars)(params, values)
            pairs = zip(*map(jax.tree.leaves, (grads, judges)), strict=True)
            return sum(jnp.vdot(a, b) for a, b in pairs)

        return -0.5 * jax.grad(alignment)(values)

    expected = by_hand(variables.params, kept.pixels)
    np.testing.assert_allclose(judge(1)[1], expected, rtol=1e-10, atol=1e-14)


def test_an_inner_loop_that_stands_still_teaches_nothing():
    for steps, rate in ((3, 0.0), (0, 0.5)):
        np.testing.assert_array_equal(judge(steps, rate=rate)[1], 0.0)


def test_masked_exemplars_and_those_of_the_head_alone():
    mask = np.arange(3)[None] < np.full((5, 1), 2)
    _, grads = judge(3, mask=mask)
    np.testing.assert_array_equal(grads[jnp.array([4, 5])], 0.0)
    _, head = judge(3, inner_params="head")
    _, whole = judge(3)
    assert float(jnp.abs(head - whole).max()) > 1e-4 and float(jnp.abs(head).max()) > 1e-4
    # The features do not move, so an exemplar's pull reaches the head through them alone.
    with pytest.raises(UserError, match="does not say which"):
        judge(1, inner_params="head", net=lambda n: mlp(5)(n)._replace(head=None))


def cosine(num_outputs):
    """A cosine head on the inputs, which are all there is of features."""
    return mlp(head="cosine")(num_outputs)


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_features_of_zero_are_harmless_in_empty_slots_and_in_padding(gradient):
    """Second derivatives of x / |x| at 0, where a mask multiplies an infinity or NaN."""
    _, _, _, kept, judged, _, _ = problem(cosine)
    options = {"net": cosine, "mask": np.arange(3)[None] < np.full((5, 1), 2), "gradient": gradient}
    blank = kept._replace(pixels=kept.pixels.at[4:].set(0.8))  # which the network sees as 0
    expected = judge(3, **options)
    for content in (0.0, jnp.nan):
        padded = judged._replace(x=judged.x.at[3].set(content))
        found = judge(3, kept=blank, judged=padded, **options)
        assert np.isfinite(found[0]) and float(jnp.abs(found[1]).max()) > 1e-6
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


def test_the_implicit_gradient_points_the_same_way_near_the_end_of_training():
    """Not where the inner loop has ended, so nearly; ``test_implicit`` has the exact case."""
    model, spec, variables, kept, judged, _, _ = problem(mlp())
    many = jnp.tile(jnp.arange(6)[None], (400, 1))

    def grads(**options):
        how = Bilevel(400, 0.3, **options)
        run = lambda kept: outer_gradient(
            Problem(model, spec), variables, kept, many, jnp.ones(many.shape, bool), judged,
            jnp.int32(0), how,
        )  # fmt: skip
        return jax.jit(run)(kept)[1]

    # Early stopping after t steps of size a acts as a damping of about 1 / (a t).
    near = grads(gradient="implicit", damping=1 / 120, solver_steps=30)
    exact = grads()
    cosine = jnp.vdot(near, exact) / (jnp.linalg.norm(near) * jnp.linalg.norm(exact))
    assert cosine > 0.9


@NORMS
def test_the_validation_loss_keeps_to_running_statistics(norm):
    """Each judge counts for itself: its loss is not that of another batch's statistics."""
    _, _, variables, _, judged, _, _ = problem(convolving)
    of = lambda **parts: judge(1, net=convolving, inner_norm=norm, **parts)
    whole = of()[0]
    alone = [of(judged=judged._replace(mask=jnp.arange(5) == i)) for i in (0, 1, 2, 4)]
    np.testing.assert_allclose(whole, np.mean([loss for loss, _ in alone]), rtol=1e-12)
    shifted = jax.tree.map(lambda a: a + 0.5, variables.model_state)
    moved = of(variables=Variables(variables.params, shifted))
    assert abs(float(moved[0] - whole)) > 1e-3


@NORMS
def test_inner_steps_by_running_statistics_or_by_the_batchs_own(norm):
    """Three steps, the second without one of its exemplars."""
    model, spec, (params, state), kept, judged, slots, _ = problem(convolving)

    def loss(params, x, y, train):
        logits = model.apply(Variables(params, state), x, train)[0].logits
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(y)), y])

    @jax.jit
    def by_hand(params):
        for rows in (slots[0], slots[1][:2], slots[2]):
            x = spec.show(kept.pixels[rows], None)
            grads = jax.grad(loss)(params, x, kept.y[rows], norm == "batch")
            params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
        return loss(params, judged.x[real], judged.y[real], False)

    real = np.flatnonzero(judged.mask)
    expected = by_hand(params)
    poisoned = kept._replace(pixels=kept.pixels.at[5].set(1e6))  # the one left out
    mask = np.arange(15).reshape(5, 3) != 5
    found, grads = judge(3, kept=poisoned, mask=mask, net=convolving, inner_norm=norm)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_array_equal(grads[5], 0.0)


def test_batch_statistics_far_from_zero_have_second_derivatives_in_float32():
    """A variance as the mean square less the squared mean would have lost them."""
    rng = np.random.default_rng(0)
    x, weight, along = rng.normal(size=(3, 8, 2)) + [[[300.0]], [[0.0]], [[0.0]]]

    def product(dtype):
        norm, start = BatchNorm(param_dtype=dtype), jnp.asarray(x, dtype)
        variables = norm.init(jax.random.key(0), start, True)

        def loss(x):
            y, _ = norm.apply(variables, x, True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y) * weight.astype(dtype))

        return jax.jit(lambda x, v: jax.jvp(jax.grad(loss), (x,), (v,))[1])(
            start, jnp.asarray(along, dtype)
        )

    small, wide = product("float32"), product("float64")
    assert small.dtype == jnp.float32
    np.testing.assert_allclose(small, wide, rtol=0, atol=1e-3 * float(jnp.abs(wide).max()))


def test_networks_without_what_is_asked_for_are_refused():
    unsaid = lambda num: convolving(num)._replace(grouped=None)
    with pytest.raises(UserError, match="has no grouped"):
        judge(1, net=unsaid, inner_norm="batch")
    judge(1, net=unsaid)


def test_the_inner_loop_compiles_to_no_loop_and_no_grouped_convolution():
    """Gradients of convolutions are slow in loops on CPUs, and everywhere in groups."""
    model, spec, variables, kept, judged, slots, every = problem(convolving)
    value = lambda kept: outer_gradient(
        Problem(model, spec),
        variables,
        kept,
        slots[:3],
        every[:3],
        judged,
        jnp.int32(0),
        Bilevel(3, 0.5),
    )
    text = jax.jit(value).lower(kept).as_text()
    assert "while" not in text
    assert set(re.findall(r"group_count = (\d+)", text)) == {"1"}


def test_under_weight_transfer_the_inner_loop_moves_scales_and_not_kernels():
    """A loop on kernels alone, or on scales alone, with the rest of the network, by hand."""
    net = lambda num: with_scales(convolving(num))
    model, spec, variables, kept, judged, slots, _ = problem(net)

    def loss(params, x, y):
        logits = model.apply(Variables(params, variables.model_state), x, False)[0].logits
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(y)), y])

    @jax.jit
    def by_hand(transferred):
        params, real = variables.params, np.flatnonzero(judged.mask)
        for rows in slots[:2]:
            grads = jax.grad(loss)(params, spec.show(kept.pixels[rows], None), kept.y[rows])
            grads["weights"]["Conv_0"]["kernel"] *= 1 - transferred
            grads["scales"]["Conv_0"]["kernel"] *= transferred
            params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
        return loss(params, judged.x[real], judged.y[real])

    found = [float(judge(2, net=net, task=task)[0]) for task in (0, 1)]
    np.testing.assert_allclose(found, [by_hand(0.0), by_hand(1.0)], rtol=1e-12)
    assert abs(found[0] - found[1]) > 1e-6
