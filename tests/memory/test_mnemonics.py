"""Mnemonics: gradients through the inner loop, whose turn it is, what is stored, what is gained."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from incremental_support import learned, stream

import cljax
from cljax.errors import UserError
from cljax.learn import learn
from cljax.memory import exemplars as store
from cljax.memory import learned as pixels
from cljax.memory.bilevel import Bilevel, Judged, outer_gradient
from cljax.memory.mnemonics import mnemonics
from cljax.memory.policies import named
from cljax.memory.turns import geometry_of
from cljax.methods.with_exemplars import View
from cljax.nets import from_linen, mlp
from cljax.nets.batchnorm import BatchNorm
from cljax.nets.transfer import with_scales
from cljax.streams.base import plan
from cljax.types import Batch, Clock, Spec, Variables

CLASSES, PER_CLASS, SIZE = 3, 2, 4
NET = mlp(5)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def problem(net=NET):
    """A two-layer network, exemplars of three classes, a validation batch, inner slots of 5."""
    with jax.enable_x64(True):
        example = jax.ShapeDtypeStruct((SIZE,), jnp.float64)
        show = lambda x, task, key=None: x / 8 - 0.1
        spec = Spec(example, np.ones((1, CLASSES), bool), 4, stored=example, show=show)
        model, rng = net(CLASSES), np.random.default_rng(0)
        variables = model.init(jax.random.key(0), jnp.zeros((2, SIZE)))
        budget = store.budget_of(spec.class_mask, per_class=PER_CLASS)
        kept = pixels.empty(spec, budget, rounding="nearest")
        values = jnp.asarray(8 * rng.normal(size=kept.pixels.shape))
        y = jnp.arange(CLASSES * PER_CLASS, dtype=jnp.int32) // PER_CLASS
        kept = kept._replace(pixels=values, x=values, y=y, mask=jnp.ones(6, bool))
        x = jnp.asarray(rng.normal(size=(5, SIZE)))
        labels = jnp.array([0, 1, 2, 0, 1], jnp.int32)
        judged = Judged(x, labels, jnp.arange(5) != 3, jnp.ones(CLASSES, bool))
        slots = jnp.array([[0, 2, 4], [1, 3, 5], [0, 3, 4], [1, 2, 5], [0, 2, 5]])
        return model, spec, variables, kept, judged, slots, jnp.ones(slots.shape, bool)


def judge(steps: int, kept=None, mask=None, net=NET, **options):
    model, spec, variables, start, judged, slots, every = problem(net)
    how = Bilevel(steps, 0.5, **options)
    mask = every if mask is None else mask
    kept = start if kept is None else kept
    run = jax.jit(
        lambda kept: outer_gradient(
            model, spec, variables, kept, slots[:steps], mask[:steps], judged, jnp.int32(0), how
        )
    )
    return run(kept)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_the_gradient_in_every_pixel_is_that_of_finite_differences(steps):
    kept = problem()[3]
    loss, grads = judge(steps)
    assert np.isfinite(loss) and grads.shape == kept.pixels.shape
    step = 1e-5
    value = jax.jit(lambda values: judge(steps, kept._replace(pixels=values))[0])
    for slot, place in np.ndindex(*kept.pixels.shape):
        nudge = jnp.zeros_like(kept.pixels).at[slot, place].set(step)
        numeric = (value(kept.pixels + nudge) - value(kept.pixels - nudge)) / (2 * step)
        np.testing.assert_allclose(grads[slot, place], numeric, rtol=1e-5, atol=1e-9)


def test_other_ways_to_the_same_gradient():
    loss, plain = judge(5)
    for options in ({"remat": True}, {"last": 5}):
        other, grads = judge(5, **options)
        np.testing.assert_allclose(other, loss, rtol=1e-13)
        np.testing.assert_allclose(grads, plain, rtol=0, atol=1e-14)
    _, truncated = judge(5, last=2)
    assert float(jnp.abs(truncated - plain).max()) > 1e-4
    np.testing.assert_array_equal(truncated[jnp.array([3, 4])], 0.0)
    # Slots 3 and 4 are not in the last two inner steps, slot 2 is.
    assert bool((jnp.abs(truncated[2]) > 0).any())


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

    first = jax.grad(of_exemplars)(variables.params, kept.pixels)
    after = jax.tree.map(lambda p, g: p - 0.5 * g, variables.params, first)
    judges = jax.grad(loss)(after, judged.x, judged.y, judged.mask)

    def alignment(values):
        grads = jax.grad(of_exemplars)(variables.params, values)
        return sum(
            jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (grads, judges)), strict=True)
        )

    expected = -0.5 * jax.grad(alignment)(kept.pixels)
    np.testing.assert_allclose(judge(1)[1], expected, rtol=1e-10, atol=1e-14)


def test_an_inner_loop_that_stands_still_teaches_nothing():
    model, spec, variables, kept, judged, slots, every = problem()
    how = Bilevel(3, 0.0)
    _, grads = outer_gradient(
        model, spec, variables, kept, slots[:3], every[:3], judged, jnp.int32(0), how
    )
    np.testing.assert_array_equal(grads, 0.0)


def test_masked_exemplars_and_those_of_the_head_alone():
    mask = problem()[6].at[:, 2].set(False)
    _, grads = judge(3, mask=mask)
    np.testing.assert_array_equal(grads[jnp.array([4, 5])], 0.0)
    _, head = judge(3, inner_params="head")
    _, whole = judge(3)
    assert float(jnp.abs(head - whole).max()) > 1e-4 and float(jnp.abs(head).max()) > 1e-4
    # The features do not move, so an exemplar's pull reaches the head through them alone.
    with pytest.raises(UserError, match="does not say which"):
        judge(1, inner_params="head", net=lambda n: mlp(5)(n)._replace(head=None))


def test_the_implicit_gradient_points_the_same_way_near_the_end_of_training():
    """Not where the inner loop has ended, so nearly; ``test_implicit`` has the exact case."""
    model, spec, variables, kept, judged, slots, every = problem(mlp())
    many = jnp.tile(jnp.arange(6)[None], (400, 1))

    def grads(**options):
        how = Bilevel(400, 0.3, **options)
        return outer_gradient(
            model, spec, variables, kept, many, jnp.ones(many.shape, bool), judged, jnp.int32(0),
            how,
        )[1]  # fmt: skip

    # Early stopping after t steps of size a acts as a damping of about 1 / (a t).
    near = grads(gradient="implicit", damping=1 / 120, solver_steps=30)
    exact = grads()
    cosine = jnp.vdot(near, exact) / (jnp.linalg.norm(near) * jnp.linalg.norm(exact))
    assert cosine > 0.9


class Convolving(nn.Module):
    """A convolution, BatchNorm and a head."""

    @nn.compact
    def __call__(self, x, train, member=None):
        x = x.reshape(x.shape[0], 2, 2, 1)
        x = nn.Conv(3, (2, 2), param_dtype=x.dtype)(x)
        x = nn.relu(BatchNorm(param_dtype=x.dtype)(x, train, member)).mean(axis=(1, 2))
        return nn.Dense(CLASSES, param_dtype=x.dtype, name="head")(x), x


def convolving(num_outputs):
    return from_linen(Convolving(), head="head")


def test_the_inner_loop_keeps_to_running_statistics_and_compiles_to_no_loop():
    """BatchNorm is in evaluation mode in inner and outer loss; gradients of convolutions are slow
    in loops on CPUs."""
    model, spec, variables, kept, judged, slots, every = problem(convolving)

    def value(variables):
        return outer_gradient(
            model, spec, variables, kept, slots[:3], every[:3], judged, jnp.int32(0),
            Bilevel(3, 0.5),
        )  # fmt: skip

    loss, grads = jax.jit(value)(variables)
    assert np.isfinite(loss) and float(jnp.abs(grads).max()) > 0
    # Each judge counts for itself: its loss is not that of another batch's statistics.
    alone = [
        outer_gradient(
            model, spec, variables, kept, slots[:3], every[:3],
            judged._replace(mask=jnp.arange(5) == i), jnp.int32(0), Bilevel(3, 0.5),
        )[0]
        for i in (0, 1, 2, 4)
    ]  # fmt: skip
    np.testing.assert_allclose(loss, np.mean(alone), rtol=1e-12)
    shifted = jax.tree.map(lambda a: a + 0.5, variables.model_state)
    moved, _ = jax.jit(value)(variables._replace(model_state=shifted))
    assert abs(float(moved - loss)) > 1e-3
    assert "while" not in jax.jit(value).lower(variables).as_text()


def test_under_weight_transfer_the_inner_loop_moves_scales_and_not_kernels():
    model, spec, _, kept, judged, slots, every = problem(lambda n: with_scales(convolving(n)))
    variables = model.init(jax.random.key(0), jnp.zeros((2, SIZE)))
    frozen = {}
    for task in (0, 1):
        learns = model.learns(variables.params, jnp.int32(task))
        kernel, scale = learns["weights"]["Conv_0"]["kernel"], learns["scales"]["Conv_0"]["kernel"]
        frozen[task] = (bool(kernel), bool(scale))
        loss, grads = outer_gradient(
            model, spec, variables, kept, slots[:2], every[:2], judged, jnp.int32(task),
            Bilevel(2, 0.5),
        )  # fmt: skip
        frozen[task] += (float(loss),)
    assert frozen[0][:2] == (True, False) and frozen[1][:2] == (False, True)
    assert frozen[0][2] != frozen[1][2]


def test_a_step_in_grey_levels_is_a_step_in_normalised_pixels():
    _, spec, _, kept, *_ = problem()
    kept = kept._replace(velocity=jnp.ones_like(kept.pixels))
    shown = lambda k: spec.show(k.pixels, None)
    grads = jnp.asarray(np.random.default_rng(1).normal(size=kept.pixels.shape))
    active = jnp.arange(6) % 2 == 0
    after = pixels.moved(kept, grads, active, spec, lr=0.1, momentum=0.9)
    # The gradient in n = e / 8 - 0.1 is 8 times that in e; the velocity is kept in e.
    expected = shown(kept) - 0.1 * (0.9 / 8 + 8 * grads)
    np.testing.assert_allclose(shown(after)[::2], expected[::2], rtol=1e-12)
    np.testing.assert_array_equal(after.pixels[1::2], kept.pixels[1::2])
    np.testing.assert_array_equal(after.velocity[1::2], kept.velocity[1::2])


def images(values):
    """Stored bytes, and a state around them."""
    example = jax.ShapeDtypeStruct((SIZE,), jnp.uint8)
    show = lambda x, task, key=None: x.astype(jnp.float64) / 255
    spec = Spec(example, np.ones((1, CLASSES), bool), 4, stored=example, show=show)
    budget = store.budget_of(spec.class_mask, per_class=PER_CLASS)
    kept = pixels.empty(spec, budget, rounding="nearest")
    return spec, kept._replace(x=jnp.asarray(values, jnp.uint8), mask=jnp.ones(6, bool))


def at(step: int, last: bool = False) -> Batch:
    clock = Clock(*(jnp.int32(0),) * 2, jnp.int32(step), jnp.bool_(True), jnp.bool_(last))
    return Batch(*(jnp.zeros(1),) * 5, clock)


@pytest.mark.parametrize("rounding", ["nearest", "truncate"])
def test_what_is_stored_stays_in_range(rounding):
    spec, kept = images(np.full((6, SIZE), 250))
    kept = pixels.begin(kept, at(0))
    up = jnp.full(kept.pixels.shape, -1.0).at[0].set(1.0)
    after = pixels.moved(kept, up, jnp.ones(6, bool), spec, lr=1.0, momentum=0.0)
    assert float(after.pixels.max()) == 255.0 and float(after.pixels[0].min()) == 0.0
    moved = after._replace(pixels=jnp.full_like(after.pixels, 99.7))
    unfinished = pixels.finish(moved, at(3), jnp.ones(6, bool), rounding)
    np.testing.assert_array_equal(unfinished.x, 250)
    done = pixels.finish(moved, at(3, last=True), jnp.arange(6) < 2, rounding)
    assert done.x.dtype == jnp.uint8
    np.testing.assert_array_equal(done.x[:2], 100 if rounding == "nearest" else 99)
    np.testing.assert_array_equal(done.x[2:], 250)


def test_untouched_exemplars_survive_both_ways_of_rounding():
    spec, kept = images(np.arange(24).reshape(6, SIZE) * 10)
    for rounding in ("nearest", "truncate"):
        begun = pixels.begin(kept, at(0))
        still = pixels.moved(
            begun, jnp.zeros_like(begun.pixels), jnp.ones(6, bool), spec, lr=1.0, momentum=0.9
        )
        done = pixels.finish(still, at(0, last=True), jnp.ones(6, bool), rounding)
        np.testing.assert_array_equal(done.x, kept.x)


def policy_phases(policy, source, per_class=4):
    spec = source.spec(8)
    budget = store.budget_of(spec.class_mask, per_class=per_class)
    model = mlp(5)(6)
    return spec, budget, {p.name: p for p in policy.phases(model, spec, budget)}


@pytest.mark.parametrize("folds", [2, 3])
def test_no_fold_judges_itself(folds):
    source, share = stream(), 4
    policy = mnemonics(folds=folds, outer_epochs=3)
    _, budget, phases = policy_phases(policy, source, share)
    rows = plan(store.replayed(source, budget), 0, 8, 1)
    fold = geometry_of(budget, folds, 0.0).fold
    for task in (1, 2):
        own = jax.tree.map(lambda a, t=task: a[rows.current == t], rows)
        steps = phases["adjust"].plan(task, own)
        assert steps.last.sum() == 1 and steps.last[-1]
        judged = {f: set() for f in range(folds)}
        for s in range(len(steps.current)):
            slots = -2 - steps.index[s][steps.mask[s]]
            assert (slots < budget.seen[task - 1] * share).all() and (slots >= 0).all()
            of = fold[task, slots // share, slots % share]
            assert (of != s % folds).all()
            judged[s % folds] |= set(slots.tolist())
        if folds == 2:  # each half is judged by all of the other
            assert all(
                len(slots) == budget.seen[task - 1] * share // 2 for slots in judged.values()
            )
    assert phases["adjust"].plan(0, rows) is None


def test_a_turn_moves_its_own_fold_only():
    source = stream()
    policy = "mnemonics:outer_epochs=1,lr=5.0,inner_lr=1.0,inner_steps=2"
    method = cljax.icarl(lr=0.1, loss="kl", capacity=None, per_class=4, exemplars=policy)
    spec = source.spec(8)
    learner = method.bind(mlp(5)(6), spec)
    history = learn(method, mlp(5)(6), source, [0], batch_size=8, epochs=3)
    state = history.states[0]
    phase = next(p for p in learner.phases if p.name == "adjust")
    budget = store.budget_of(spec.class_mask, per_class=4)
    fold = geometry_of(budget, 2, 0.0).fold
    slots = np.flatnonzero(fold[2, :4, :4].reshape(-1) != 0)[:8]
    clock = Clock(jnp.int32(2), jnp.int32(0), jnp.int32(0), jnp.bool_(False), jnp.bool_(True))
    batch = Batch(
        jnp.zeros((8, 2, 3), jnp.uint8), jnp.zeros(8, jnp.int32), jnp.zeros(8, jnp.int32),
        jnp.ones(8, bool), jnp.asarray(-2 - slots, jnp.int32), clock,
    )  # fmt: skip
    after, info = jax.jit(phase.update)(state, batch, ())
    changed = np.abs(np.asarray(after.exemplars.pixels) - np.asarray(state.exemplars.x)) > 0
    moved = changed.any(axis=(1, 2)).reshape(6, 4)
    assert (moved[:4] <= (fold[2, :4] == 0)).all() and moved[:4].any() and not moved[4:].any()
    assert np.isfinite(info.loss)


def test_real_exemplars_stay_as_they_were_chosen():
    policy = "mnemonics:outer_epochs=2,lr=5.0,inner_lr=1.0,inner_steps=2,real=0.5,momentum=0.0"
    method = cljax.icarl(lr=0.1, loss="kl", capacity=None, per_class=4, exemplars=policy)
    state = learn(method, mlp(5)(6), stream(), [0], batch_size=8, epochs=2).states[0]
    kept = state.exemplars
    change = np.asarray(pixels.change(kept)[0]).reshape(6, 4)
    assert bool(kept.mask.all()) and kept.x.dtype == jnp.uint8
    np.testing.assert_array_equal(change[:, 2:], 0)
    assert (change[:, :2] > 0).any()
    source = stream()
    np.testing.assert_array_equal(kept.chosen, source.train_x[np.asarray(kept.index)])
    np.testing.assert_array_equal(kept.y, source.train_y[np.asarray(kept.index)])


def test_first_and_later_tasks_of_unlike_sizes_are_two_phases():
    owner = np.array([0, 0, 0, 0, 1, 1])
    source = stream()
    rows = [np.flatnonzero(owner[source.train_y] == t).astype(np.int32) for t in range(2)]
    tests = tuple(np.flatnonzero(owner[source.test_y] == t).astype(np.int32) for t in range(2))
    source = stream(
        class_mask=owner == np.arange(2)[:, None], subsets=lambda seed: tuple(rows),
        test_index=tests, valid=lambda seed: tuple(rows),
    )  # fmt: skip
    for outputs, names in (("own", {"mnemonics-first", "mnemonics"}), ("all", {"mnemonics"})):
        method = cljax.icarl(
            lr=0.1, capacity=None, per_class=4,
            exemplars=f"mnemonics:outer_epochs=2,inner_steps=2,lr=2.0,outputs={outputs}",
        )  # fmt: skip
        history = learn(method, mlp(5)(6), source, [0], batch_size=8, epochs=2)
        losses = history.phase_losses
        assert {name for name in losses if "mnemonics" in name} == names
        kept = history.states[0].exemplars
        assert bool(kept.mask.all()) and (np.asarray(pixels.change(kept)[0]) > 0).mean() > 0.5


def test_folds_of_unequal_size_keep_step():
    """Five exemplars a class: rounds are of one epoch, so of one step size."""
    _, budget, phases = policy_phases(mnemonics(outer_epochs=3), stream(), 5)
    rows = plan(store.replayed(stream(), budget), 0, 4, 1)
    own = jax.tree.map(lambda a: a[rows.current == 1], rows)
    epochs = phases["adjust"].plan(1, own).epoch.reshape(-1, 2)
    np.testing.assert_array_equal(epochs[:, 0], epochs[:, 1])
    assert set(epochs[:, 0]) == {0, 1, 2} and (np.diff(epochs[:, 0]) >= 0).all()


def gaussian(seed: int):
    """Three classes with overlap, where means of a few examples lie far from the classes'."""
    rng = np.random.default_rng(seed)
    centres = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.5]])
    y = np.repeat(np.arange(3), 200).astype(np.int32)
    return centres[y] + rng.normal(0, 1.0, (600, 2)), y


def trained_on(x, y):
    """Validation loss of a linear network trained on these examples alone, from zero."""
    weights = jnp.zeros((3, 3))
    inputs = jnp.concatenate([x, jnp.ones((len(x), 1))], axis=1)

    def loss(w, inputs, y):
        return jnp.mean(jax.nn.logsumexp(inputs @ w, axis=1) - (inputs @ w)[jnp.arange(len(y)), y])

    step = lambda i, w: w - 0.3 * jax.grad(loss)(w, inputs, y)
    weights = jax.lax.fori_loop(0, 100, step, weights)
    test_x, test_y = gaussian(99)
    test = jnp.concatenate([jnp.asarray(test_x), jnp.ones((600, 1))], axis=1)
    return float(loss(weights, test, jnp.asarray(test_y)))


def test_learned_exemplars_train_a_better_network_than_chosen_ones():
    example = jax.ShapeDtypeStruct((2,), jnp.float64)
    gains = []
    for seed in range(3):
        x, y = gaussian(seed)
        spec = Spec(
            example, np.ones((1, 3), bool), 64, stored=example,
            show=lambda x, task, key=None: x, train_y=y,
        )  # fmt: skip
        budget = store.budget_of(spec.class_mask, per_class=2)
        model = mlp()(3)
        policy = mnemonics(inner_steps=20, inner_lr=0.3, lr=0.2, outer_epochs=20)
        chosen = np.concatenate([np.flatnonzero(y == c)[:2] for c in range(3)])
        kept = policy.init(model, spec, budget)
        kept = kept._replace(
            x=jnp.asarray(x[chosen]), y=jnp.asarray(y[chosen]), mask=jnp.ones(6, bool),
            chosen=jnp.asarray(x[chosen]),
        )  # fmt: skip
        variables = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(seed), x[:2]))
        state = View(*variables, kept)
        phase = next(p for p in policy.phases(model, spec, budget) if p.name == "mnemonics")
        update = jax.jit(phase.update)
        order = np.random.default_rng(seed).permutation(np.tile(np.arange(600), 4))
        for step, rows in enumerate(order.reshape(-1, 60)):
            clock = Clock(
                jnp.int32(0),
                jnp.int32(step // 10),
                jnp.int32(step),
                jnp.bool_(True),
                jnp.bool_(step == 39),
            )
            state, _ = update(
                state,
                Batch(jnp.asarray(x[rows]), jnp.asarray(y[rows]), jnp.zeros(60, jnp.int32),
                      jnp.ones(60, bool), jnp.asarray(rows), clock),
                (),
            )  # fmt: skip
        before, after = (trained_on(e, kept.y) for e in (kept.x, state.exemplars.x))
        gains.append(before - after)
    assert min(gains) > 0.02, gains


@pytest.mark.parametrize("policy", ["mnemonics:inner_steps=2,outer_epochs=2", "herding"])
def test_they_join_a_method_that_knows_nothing_of_them(policy):
    """Experience replay, whose state and update are its own."""
    method = cljax.with_exemplars(cljax.er(lr=0.1, capacity=6), policy, per_class=4)
    history = learn(method, mlp(16)(6), stream(), [0, 1], batch_size=8, epochs=5)
    for state in history.states:
        assert bool(state.exemplars.mask.all()) and state.inner.memory is not None
    plain = learn(
        cljax.er(lr=0.1, capacity=6), mlp(16)(6), stream(), [0, 1], batch_size=8, epochs=5
    )
    last = lambda h: np.mean([m[-1].mean() for m in next(iter(h.evaluations.values()))])
    assert last(history) > last(plain)


@pytest.mark.parametrize("name", ["lwf-exemplars", "bic", "icarl"])
def test_they_join_every_class_incremental_method(name):
    method = cljax.methods.METHODS[name](
        lr=0.1, capacity=None, per_class=4, balanced_epochs=2,
        exemplars="mnemonics:inner_steps=2,outer_epochs=2,real=0.25",
    )  # fmt: skip
    state, final = learned(method, "logits", "nearest-mean")
    assert min(final.values()) > 0.5 and int(state.exemplars.mask.sum()) == 24


def test_the_released_rule_moves_exemplars_by_less_than_a_grey_level():
    """At its own step size; with a larger one it moves new exemplars, and only those."""
    for lr, moves in ((1e-5, False), (3.0, True)):
        policy = f"mnemonics-released:lr={lr},rounding=nearest,outer_epochs=2,mirror=false"
        method = cljax.icarl(lr=0.1, loss="kl", capacity=None, per_class=4, exemplars=policy)
        state, _ = learned(method, epochs=3)
        change, mask = pixels.change(state.exemplars)
        assert bool(mask.all()) and bool((change > 0).any()) == moves


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        ("mnemonic", "exemplar policy"),
        ("mnemonics:steps=3", "has 'steps=3'"),
        ("mnemonics:inner_steps", "has 'inner_steps'"),
        ("mnemonics:inner_steps=0", "inner_steps is 0"),
        ("mnemonics:inner_steps=five", "inner_steps is five, but it must be a whole number"),
        ("mnemonics:lr=x", "lr is x"),
        ("mnemonics:new=maybe", "new is maybe, but it must be true or false"),
        ("mnemonics:last=0", "last is 0"),
        ("mnemonics:validation=all", "choose outputs=all"),
        ("mnemonics:folds=1", "folds is 1"),
        ("mnemonics:real=1", "real is 1"),
        ("mnemonics:gradient=exact", "gradient"),
        ("mnemonics:start=best", "start"),
        ("mnemonics-released:rounding=up", "rounding"),
        ("herding:repeat=true", "names repeats"),
    ],
)
def test_bad_policies_are_refused(policy, match):
    with pytest.raises(UserError, match=match):
        named(policy)


def test_bad_budgets_are_refused():
    spec = stream().spec(8)
    one = store.budget_of(spec.class_mask, per_class=1)
    with pytest.raises(UserError, match="a class has only 1"):
        mnemonics().init(mlp(5)(6), spec, one)
    mnemonics(old=False).init(mlp(5)(6), spec, one)
    pair = spec._replace(stored=(spec.example, spec.example))
    with pytest.raises(UserError, match="single arrays"):
        mnemonics(old=False).init(mlp(5)(6), pair, one)
    mask = np.zeros((2, 3), bool)
    mask[0, :2], mask[1, 2] = True, True
    single = store.budget_of(mask, per_class=4)
    with pytest.raises(UserError, match="brings a single class"):
        mnemonics().init(mlp(5)(3), spec, single)
    mnemonics(new=False).init(mlp(5)(3), spec, single)  # old ones have two outputs or more
    with pytest.raises(UserError, match="plan of its own"):
        cljax.with_exemplars(cljax.icarl(), per_class=2)
