"""HAT: a step by hand, its masks and annealing, frozen weights, pretraining, what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transfer_support

import cljax
from cljax.errors import UserError
from cljax.methods.hat import HAT, compensated, masks, occupied, restricted, scale
from cljax.nets.gated import Units, chained, gated
from cljax.types import Batch, Clock, Pretraining, Spec, Variables

MASK = np.kron(np.eye(2, dtype=bool), np.ones((1, 2), bool))  # two tasks of two outputs
NET = cljax.nets.mlp(3, 2)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def spec(shape=(3,), **changes) -> Spec:
    example = jax.ShapeDtypeStruct(shape, jnp.float64)
    return Spec(example, MASK, 4, multi_head=True)._replace(**changes)


def bind(method, net=NET, **changes):
    return method.bind(net(4), spec(**changes))


def batch_of(task, seed=0, shape=(3,)) -> Batch:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 4) + 2 * task
    clock = Clock(*(jnp.asarray(v) for v in (task, 0, 0, True, False)))
    return Batch(
        jnp.asarray(rng.normal(size=(4, *shape))), jnp.asarray(y), jnp.full(4, task),
        jnp.ones(4, bool), None, clock,
    )  # fmt: skip


def stepped(learner, state, batch):
    return learner.update(state, batch, learner.draw(state, batch, None))


def begun(learner, state, task):
    """The state after the phase before a task."""
    phase = next(phase for phase in learner.phases if phase.name == "session")
    return phase.update(state, batch_of(task), ())[0]


def like_normal(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), tree)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_a_step_of_the_second_task_by_hand():
    """Forward and backward through masks, regulariser, restriction and compensation in NumPy."""
    s_max, lam, lr = 3.0, 0.75, 0.2
    learner = bind(HAT(lr=lr, s_max=s_max, strength=lam, anneal=5))
    state = learner.init(jax.random.key(0))
    state = state._replace(params=like_normal(state.params, 1))
    rng = np.random.default_rng(2)
    before = {"Dense_0": rng.uniform(size=3), "Dense_1": rng.uniform(size=2)}
    state = state._replace(
        before=jax.tree.map(jnp.asarray, before), count=jnp.asarray(7, jnp.int32)
    )
    batch = batch_of(1)._replace(mask=jnp.asarray([True, True, True, False]))
    after, info = stepped(learner, state, batch)

    s = 1 / 3 + (3 - 1 / 3) * 2 / 4  # step 7 is the third of its cycle of five
    w = jax.tree.map(np.asarray, state.params)
    e = {name: np.asarray(state.embedding[name]) for name in before}
    a = {name: sigmoid(s * e[name][1]) for name in before}
    x, y = np.asarray(batch.x)[:3], np.asarray(batch.y)[:3]
    z0 = x @ w["Dense_0"]["kernel"] + w["Dense_0"]["bias"]
    h0 = np.maximum(a["Dense_0"] * z0, 0)
    z1 = h0 @ w["Dense_1"]["kernel"] + w["Dense_1"]["bias"]
    h1 = np.maximum(a["Dense_1"] * z1, 0)
    logits = h1 @ w["Dense_2"]["kernel"] + w["Dense_2"]["bias"]
    p = np.where(MASK[1], np.exp(logits), 0.0)
    p = p / p.sum(1, keepdims=True)
    np.testing.assert_allclose(info.loss, -np.log(p[range(3), y]).mean(), rtol=1e-12)

    top = (p - np.eye(4)[y]) / 3
    m1 = (top @ w["Dense_2"]["kernel"].T) * (h1 > 0)
    d1 = m1 * a["Dense_1"]
    m0 = (d1 @ w["Dense_1"]["kernel"].T) * (h0 > 0)
    d0 = m0 * a["Dense_0"]
    free = sum((1 - old).sum() for old in before.values())
    of_mask = {
        "Dense_0": (m0 * z0).sum(0) + lam * (1 - before["Dense_0"]) / free,
        "Dense_1": (m1 * z1).sum(0) + lam * (1 - before["Dense_1"]) / free,
    }
    kept0, kept1 = 1 - before["Dense_0"], 1 - before["Dense_1"]
    between = 1 - np.minimum(before["Dense_0"][:, None], before["Dense_1"][None])
    grads = {
        "Dense_0": {"kernel": x.T @ d0 * kept0, "bias": d0.sum(0) * kept0},
        "Dense_1": {"kernel": h0.T @ d1 * between, "bias": d1.sum(0) * kept1},
        "Dense_2": {"kernel": h1.T @ top, "bias": top.sum(0)},
    }
    wanted = jax.tree.map(lambda old, g: old - lr * g, w, grads)
    jax.tree.map(lambda b, c: np.testing.assert_allclose(b, c, rtol=1e-10), after.params, wanted)
    for name, own in e.items():
        slope = of_mask[name] * s * a[name] * (1 - a[name])
        slope *= s_max / s * (np.cosh(s * own[1]) + 1) / (np.cosh(own[1]) + 1)
        np.testing.assert_allclose(after.embedding[name][1], own[1] - lr * slope, rtol=1e-10)
        np.testing.assert_array_equal(after.embedding[name][0], own[0])
    assert int(after.count) == 8


def test_annealing_climbs_to_the_steepest_again_and_again():
    found = [float(scale(jnp.asarray(b), 4.0, 4)) for b in range(5)]
    np.testing.assert_allclose(found, [0.25, 1.5, 2.75, 4.0, 0.25])
    assert float(scale(jnp.asarray(3), 4.0, 1)) == 4.0


def test_compensation_gives_the_slope_of_an_unannealed_mask():
    """The slope of sigmoid(s e) becomes s_max times that of sigmoid(e), whatever s."""
    e = {"a": jnp.asarray([-5.0, -0.5, 0.0, 2.0])}
    for s in (0.1, 1.0, 8.0):
        grad = {"a": s * sigmoid(s * e["a"]) * (1 - sigmoid(s * e["a"]))}
        found = compensated(grad, e, jnp.asarray(s), 400.0)["a"]
        np.testing.assert_allclose(found, 400 * sigmoid(e["a"]) * (1 - sigmoid(e["a"])), rtol=1e-8)
    far = compensated({"a": jnp.ones(1)}, {"a": jnp.full(1, 6.0)}, jnp.asarray(400.0), 400.0)
    np.testing.assert_allclose(far["a"], (np.cosh(50.0) + 1) / (np.cosh(6.0) + 1))


def test_gradients_shrink_between_units_of_earlier_tasks():
    units = (Units("A", ("A",), 2), Units("B", ("B",), 3))
    before = {"A": jnp.asarray([1.0, 0.25]), "B": jnp.asarray([1.0, 0.5, 0.0])}
    ones = {
        "A": {"kernel": jnp.ones((5, 2)), "bias": jnp.ones(2)},
        "B": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        "head": {"kernel": jnp.ones((3, 4))},
    }
    found = restricted(ones, units, before)
    np.testing.assert_array_equal(found["A"]["kernel"], np.tile([0.0, 0.75], (5, 1)))
    np.testing.assert_array_equal(found["A"]["bias"], [0.0, 0.75])
    np.testing.assert_array_equal(found["B"]["kernel"], [[0.0, 0.5, 1.0], [0.75, 0.75, 1.0]])
    np.testing.assert_array_equal(found["B"]["bias"], [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(found["head"]["kernel"], np.ones((3, 4)))


def test_the_regulariser_counts_free_units_alone():
    own = {"A": jnp.asarray([[0.5, 1.0]]), "B": jnp.asarray([[0.25]])}
    none = {"A": jnp.zeros(2), "B": jnp.zeros(1)}
    assert float(occupied(own, none)) == pytest.approx(1.75 / 3)
    some = {"A": jnp.asarray([0.0, 1.0]), "B": jnp.asarray([0.5])}
    assert float(occupied(own, some)) == pytest.approx((0.5 + 0.125) / 1.5)
    full = {"A": jnp.ones(2), "B": jnp.ones(1)}
    assert float(occupied(own, full)) == 0.0


@pytest.mark.parametrize(("net", "optimizer"), [("mlp:3,2", "momentum"), ("conv:4,2:group", "sgd")])
def test_a_mask_saturated_at_one_freezes_its_weights(net, optimizer):
    """Later tasks move heads alone; where it is zero they move everything."""
    from cljax.resolve import net as named

    shape = (4, 4, 1) if net.startswith("conv") else (3,)
    method = HAT(lr=0.3, s_max=400.0, anneal=2, optimizer=optimizer)
    learner = bind(method, named(net), shape=shape)
    learner = learner._replace(update=jax.jit(learner.update))
    first = begun(learner, jax.jit(learner.init)(jax.random.key(0)), 0)
    first, _ = stepped(learner, first, batch_of(0, 0, shape))
    for level, frozen in ((6.0, True), (-6.0, False)):
        fill = lambda e, level=level: e.at[0].set(level).at[1].set(0.5)
        state = begun(learner, first._replace(embedding=jax.tree.map(fill, first.embedding)), 1)
        after = state
        for i in range(2):
            after, _ = stepped(learner, after, batch_of(1, i, shape))
        same = jax.tree.map(
            lambda a, b: bool((a == b).all()), state.params, after.params
        )  # fmt: skip
        head = same.pop("head" if net.startswith("conv") else "Dense_2")
        assert not any(jax.tree.leaves(head))
        assert all(jax.tree.leaves(same)) == frozen
        seen = batch_of(0, 9, shape)
        scores = [
            learner.predictors["logits"].scores(
                learner.predictors["logits"].prepare(own), seen
            )[:, :2]
            for own in (state, after)
        ]  # fmt: skip
        if frozen:
            np.testing.assert_array_equal(*scores)


def test_masks_are_kept_at_the_ends_of_tasks():
    learner = bind(HAT(s_max=2.0, optimizer="momentum"))
    state, _ = stepped(learner, learner.init(jax.random.key(0)), batch_of(0))
    first = begun(learner, state, 0)
    assert all((old == 0).all() for old in first.before.values()) and int(first.count) == 0
    assert all((moved == 0).all() for moved in jax.tree.leaves(first.opt_state))
    high = jax.tree.map(lambda old: jnp.linspace(0.2, 0.8, old.shape[0]), state.before)
    second = begun(learner, state._replace(before=high), 1)
    for name, e in state.embedding.items():
        wanted = np.maximum(high[name], sigmoid(2.0 * np.asarray(e[0])))
        np.testing.assert_allclose(second.before[name], wanted)
    np.testing.assert_array_equal(second.embedding["Dense_0"], state.embedding["Dense_0"])


def test_predictions_use_the_mask_of_each_examples_task():
    learner = bind(HAT(s_max=3.0))
    state = learner.init(jax.random.key(0))
    mixed = batch_of(0)._replace(task=jnp.asarray([0, 1, 1, 0]))
    for name in ("logits", "features"):
        predictor = learner.predictors[name]
        assert predictor.needs_task_ids
        found = predictor.scores(predictor.prepare(state), mixed)
        for i, task in enumerate([0, 1, 1, 0]):
            own = masks(state.embedding, 3.0, jnp.asarray([task]))
            variables = Variables(state.params, {})
            alone = gated(NET(4), own, variables, mixed.x[i : i + 1], False)
            np.testing.assert_allclose(found[i], getattr(alone, name)[0], rtol=1e-12)


def test_convolutions_are_gated_after_their_normalisation():
    model = cljax.nets.convnet(8, 4, norm="group")(4)
    units = chained("hat", model, spec((4, 4, 1)).example, 4)
    assert [own.width for own in units] == [8, 4]
    assert units[1] == Units(
        "ConvGN_1/GroupNorm_0/Affine_0", ("ConvGN_1/Conv_0", "ConvGN_1/GroupNorm_0/Affine_0"), 4
    )
    x = batch_of(0, shape=(4, 4, 1)).x
    variables = model.init(jax.random.key(0), x)
    shift = variables.params["ConvGN_1"]["GroupNorm_0"]["Affine_0"]
    shift["bias"] = shift["bias"] + 1.0
    ones = {own.gate: jnp.ones((1, own.width)) for own in units}
    plain = model.apply(variables, x, False)[0]
    np.testing.assert_allclose(gated(model, ones, variables, x, False).logits, plain.logits)
    ones[units[1].gate] = jnp.asarray([[1.0, 0.0, 0.5, 1.0]])
    found = gated(model, ones, variables, x, False).features
    np.testing.assert_allclose(found, plain.features * jnp.asarray([[1.0, 0.0, 0.5, 1.0]]))


def test_pretraining_learns_the_first_task_with_its_mask():
    how = Pretraining(steps=4, lr=0.2, batch_size=4, optimizer="momentum", weight_decay=0.1)
    learner = bind(HAT(lr=0.2, anneal=3), pretraining=how)
    state, batch = learner.init(jax.random.key(0)), batch_of(0)
    same, info = stepped(learner, state, batch)  # of the stream itself: nothing
    jax.tree.map(np.testing.assert_array_equal, same, state)
    assert float(info.loss) == 0
    phase = learner.phases[1]
    assert phase.name == "pretrain" and phase.before
    first, _ = phase.update(state, batch, ())
    # Momentum's first step is plain; weight decay reaches weights, not embeddings.
    plain, _ = stepped(bind(HAT(lr=0.2, anneal=3)), state, batch)
    decayed = jax.tree.map(lambda new, old: new - 0.2 * 0.1 * old, plain.params, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), first.params, decayed)
    jax.tree.map(np.testing.assert_array_equal, first.embedding, plain.embedding)
    second, _ = phase.update(first, batch, ())
    assert int(second.count) == 2


def test_a_run_pretrains_and_goes_on():
    with jax.enable_x64(False):
        run = cljax.run(
            HAT(lr=0.3, anneal=20), transfer_support.stream(pretrain=200, steps=40), seeds=1,
            net=cljax.nets.mlp(12, 8), batch_size=5, readout=True,
        )  # fmt: skip
    state = run.states[0]
    assert all(0 < float(old.max()) < 1 for old in state.before.values())
    matrix = run.accuracy_matrix()[0]
    assert matrix[1, 0] > 0.6 and matrix[2, 1] > 0.6


@pytest.mark.parametrize(
    ("net", "match"),
    [
        ("resnet14:group", "go past .*, as in residual ones"),
        ("conv:4,2", "statistics"),
        ("mlp:3:cosine", "belongs to none"),
    ],
)
def test_networks_of_another_kind_are_refused(net, match):
    from cljax.resolve import net as named

    shape = (3,) if net.startswith("mlp") else (4, 4, 1)
    with pytest.raises(UserError, match=match):
        bind(HAT(), named(net), shape=shape)


def test_networks_that_say_nothing_and_shared_heads_are_refused():
    bare = lambda outputs: cljax.nets.mlp(3)(outputs)._replace(tape=None)
    with pytest.raises(UserError, match="does not say which"):
        bind(HAT(), bare)
    with pytest.raises(UserError, match="none that are Flax modules"):
        bind(HAT(), cljax.nets.mlp())
    with pytest.raises(UserError, match="a head for each task"):
        bind(HAT(), multi_head=False)


@pytest.mark.parametrize(
    "options", [{"s_max": 0.5}, {"anneal": 0}, {"strength": float("inf")}, {"lr": float("nan")}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(UserError):
        HAT(**options)
