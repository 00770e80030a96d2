"""Classifiers that are solved for: by NumPy in float64, in any order, in any batches, in lanes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from hypothesis import given
from hypothesis import strategies as st

import cljax
from cljax.errors import UserError
from cljax.methods import make
from cljax.types import Batch, Clock, StepPlan

WIDTH, ROWS, CLASSES = support.BATCH, 22, support.NUM_CLASSES
LANES = 64
# What claims to be the same in any order of the examples.
ANY_ORDER = {
    "ncm": {},
    "ncm, normalised": {"normalize": True},
    "slda, pooled": {"covariance": "pooled", "shrinkage": 0.01},
    "ranpac": {"projections": 9, "ridge": 0.7},
    "fecam": {},
    "fecam, as it is": {"normalize": False, "power": 1.0, "diagonal": 2.0, "off_diagonal": 0.5},
}
ALL = {**ANY_ORDER, "slda": {"shrinkage": 0.01}, "ranpac, chosen": {"projections": 9}}
EVERY = pytest.mark.parametrize("name", ALL)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def learner(name, **more):
    return support.bind(make(name.partition(",")[0], **ALL[name], **more))


def data(seed=0):
    """Features around a mean a class, of unequal spread; the last class has a single example."""
    rng = np.random.default_rng(seed)
    y = np.append(rng.integers(0, CLASSES - 1, ROWS - 1), CLASSES - 1)
    mixing = rng.normal(size=(CLASSES, support.NUM_INPUTS, support.NUM_INPUTS))
    noise = np.einsum("nij,nj->ni", mixing[y], rng.normal(size=(ROWS, support.NUM_INPUTS)))
    return 3 * rng.normal(size=(CLASSES, support.NUM_INPUTS))[y] + noise, y


def batch_of(x, y, *, first_pass=True, fill=0.0):
    """Some examples as one batch, the rest of it padding."""
    count = len(y)
    assert 0 < count <= WIDTH
    wide = np.full((WIDTH, support.NUM_INPUTS), fill)
    wide[:count] = x
    labels = np.pad(y, (0, WIDTH - count))
    zero, false = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    clock = Clock(zero, zero, zero, jnp.asarray(first_pass), false)
    valid = np.arange(WIDTH) < count
    return Batch(
        jnp.asarray(wide), jnp.asarray(labels, jnp.int32), jnp.zeros(WIDTH, jnp.int32),
        jnp.asarray(valid), jnp.zeros(WIDTH, jnp.int32), clock,
    )  # fmt: skip


def learned(learner, x, y, cuts=None, state=None, **options):
    """The state after examples in batches that end at ``cuts``, and the draws."""
    state = learner.init(jax.random.key(0)) if state is None else state
    ends = sorted({*range(WIDTH, len(y), WIDTH), len(y)}) if cuts is None else cuts
    start, draws = 0, []
    for i, end in enumerate(ends):
        batch = batch_of(x[start:end], y[start:end], **options)
        draws.append(learner.draw(state, batch, jax.random.fold_in(jax.random.key(5), i)))
        state, info = learner.update(state, batch, draws[-1])
        assert np.isfinite(info.loss)
        start = end
    return state, draws


def scores(learner, state, x):
    predictor, batch = learner.predictors["logits"], batch_of(x[:1], np.zeros(1, int))
    view = predictor.prepare(state)
    return np.asarray(predictor.scores(view, batch._replace(x=jnp.asarray(x))))


def gaussians(x, y):
    """Means [C, D] and pooled scatter [D, D]."""
    means = np.stack([x[y == c].mean(axis=0) for c in range(CLASSES)])
    away = x - means[y]
    return means, away.T @ away


def unit(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def by_numpy(name, x, y, queries):
    """Scores as the pseudo-code has them."""
    options = ALL[name]
    if name.startswith("ncm"):
        seen = unit if options else np.asarray
        means = seen(np.stack([seen(x)[y == c].mean(axis=0) for c in range(CLASSES)]))
        return seen(queries) @ means.T - np.square(means).sum(axis=1) / 2
    if name == "slda, pooled":
        means, scatter = gaussians(x, y)
        return discriminants(means, scatter / len(y), options["shrinkage"], queries)
    if name == "slda":
        means, sigma, counts = np.zeros((CLASSES, x.shape[1])), 0.0, np.zeros(CLASSES)
        for t, (z, c) in enumerate(zip(x, y, strict=True)):
            away = z - means[c]
            sigma = (t * sigma + t / (t + 1) * np.outer(away, away)) / (t + 1)
            counts[c] += 1
            means[c] += away / counts[c]
        return discriminants(means, sigma, options["shrinkage"], queries)
    if name.startswith("fecam"):
        return -distances(x, y, queries, **options)
    raise AssertionError(name)


def discriminants(means, sigma, eps, queries):
    precision = np.linalg.inv((1 - eps) * sigma + eps * np.eye(len(sigma)))
    return queries @ precision @ means.T - np.einsum("ci,ij,cj->c", means, precision, means) / 2


def distances(x, y, queries, normalize=True, power=0.5, diagonal=1.0, off_diagonal=1.0):
    tukey = lambda z: np.sign(z) * np.abs(z) ** power
    seen = unit if normalize else np.asarray
    x, columns, size = tukey(x), [], x.shape[1]
    for c in range(CLASSES):
        rows = x[y == c]
        correlations = np.eye(size)
        if len(rows) > 1:
            sigma = np.cov(rows.T)
            others = sigma[~np.eye(size, dtype=bool)].mean()
            sigma = sigma + diagonal * np.diag(sigma).mean() * np.eye(size)
            sigma = sigma + off_diagonal * others * (1 - np.eye(size))
            root = np.sqrt(np.diag(sigma))
            correlations = sigma / np.outer(root, root)
        away = seen(tukey(queries)) - seen(rows.mean(axis=0))
        columns.append(np.einsum("ni,ij,nj->n", away, np.linalg.inv(correlations), away))
    return np.stack(columns, axis=1)


QUERIES = 3 * np.random.default_rng(9).normal(size=(7, support.NUM_INPUTS))


@pytest.mark.parametrize("name", [n for n in ALL if not n.startswith("ranpac")])
def test_scores_are_those_of_numpy(name):
    own, (x, y) = learner(name), data()
    state, _ = learned(own, x, y)
    ours = scores(own, state, QUERIES)
    np.testing.assert_allclose(ours, by_numpy(name, x, y, QUERIES), rtol=1e-9, atol=1e-9)


def ridge_of(state, x, y, ridge):
    """Projected examples, and the kernel of the ridge regression on them."""
    h = np.maximum(x @ np.asarray(state.projection), 0)
    gram = h.T @ h + ridge * np.eye(h.shape[1])
    return h, np.linalg.solve(gram, h.T @ np.eye(CLASSES)[y])


def test_a_given_ridge_is_that_of_numpy():
    own, (x, y) = learner("ranpac"), data()
    state, _ = learned(own, x, y)
    _, kernel = ridge_of(state, x, y, 0.7)
    expected = np.maximum(QUERIES @ np.asarray(state.projection), 0) @ kernel
    np.testing.assert_allclose(scores(own, state, QUERIES), expected, atol=1e-9)


def test_the_ridge_of_each_task_is_best_on_what_was_held_out_of_it():
    own = learner("ranpac, chosen")
    (phase,) = own.phases
    state, known, ridges = own.init(jax.random.key(0)), ([], []), []
    for task in range(3):
        x, y = data(seed=task)
        state, draws = learned(own, x, y, state=state)
        apart = np.concatenate([np.asarray(d.held_out) for d in draws])[:ROWS]
        assert 0 < apart.sum() < ROWS
        fit_x, fit_y = (np.concatenate([*k, v[~apart]]) for k, v in zip(known, (x, y), strict=True))
        errors = []
        for power in range(-8, 9):
            _, kernel = ridge_of(state, fit_x, fit_y, 10.0**power)
            h = np.maximum(x[apart] @ np.asarray(state.projection), 0)
            errors.append(np.square(h @ kernel - np.eye(CLASSES)[y[apart]]).sum())
        state, _ = phase.update(state, batch_of(x[:1], y[:1]), ())
        ridges.append(float(state.ridge))
        np.testing.assert_allclose(ridges[-1], 10.0 ** (np.argmin(errors) - 8), rtol=1e-12)
        known = [*known[0], x], [*known[1], y]
        assert not np.any(state.held_out.gram)
    x, y = (np.concatenate(part) for part in known)
    _, kernel = ridge_of(state, x, y, ridges[-1])
    expected = np.maximum(QUERIES @ np.asarray(state.projection), 0) @ kernel
    np.testing.assert_allclose(scores(own, state, QUERIES), expected, atol=1e-9)


def test_the_phase_of_the_ridge_is_one_step_and_absent_where_it_is_given():
    (phase,) = learner("ranpac, chosen").phases
    rows = support.stream().tests(0)[0][None]
    plan = phase.plan(2, StepPlan(rows, rows, rows > 0, rows[:, 0], rows[:, 0], rows[:, 0], rows))
    assert (
        plan is not None
        and plan.index.shape == (1, 1)
        and not plan.mask.any()
        and plan.current.tolist() == [2]
    )
    assert learner("ranpac").phases == ()


def test_a_task_of_which_nothing_was_held_out_leaves_the_ridge():
    own = learner("ranpac, chosen", held_out=0.0)
    x, y = data()
    state, _ = learned(own, x, y)
    after, _ = own.phases[0].update(state, batch_of(x[:1], y[:1]), ())
    assert float(after.ridge) == 1.0
    support.assert_close(after.sums, state.sums)


@functools.cache
def reference(name):
    own, (x, y) = learner(name), data()
    return scores(own, learned(own, x, y)[0], QUERIES)


@st.composite
def arrivals(draw):
    """An order of the examples, and where batches end."""
    order, cuts = draw(st.permutations(range(ROWS))), []
    while not cuts or cuts[-1] < ROWS:
        last = cuts[-1] if cuts else 0
        cuts.append(min(last + draw(st.integers(1, WIDTH)), ROWS))
    return np.array(order), cuts


@pytest.mark.parametrize("name", ANY_ORDER)
@given(arrival=arrivals())
def test_any_order_and_any_batches_make_the_same_classifier(name, arrival):
    with jax.enable_x64(True):
        (order, cuts), own, (x, y) = arrival, learner(name), data()
        state, _ = learned(own, x[order], y[order], cuts)
        np.testing.assert_allclose(scores(own, state, QUERIES), reference(name), atol=1e-8)


@given(arrival=arrivals())
def test_the_streaming_covariance_takes_any_batches_but_not_any_order(arrival):
    with jax.enable_x64(True):
        (_, cuts), own, (x, y) = arrival, learner("slda"), data()
        state, _ = learned(own, x, y, cuts)
        np.testing.assert_allclose(scores(own, state, QUERIES), reference("slda"), atol=1e-9)
        turned, _ = learned(own, x[::-1], y[::-1])
        assert np.abs(scores(own, turned, QUERIES) - reference("slda")).max() > 1e-3


@EVERY
@pytest.mark.parametrize("fill", [np.nan, np.inf, 1e30])
def test_padding_moves_no_bit(name, fill):
    own, (x, y) = learner(name), data()
    cuts = [3, 4, 8, 11, 13, 17, 18, 22]
    state, _ = learned(own, x, y, cuts)
    poisoned, _ = learned(own, x, y, cuts, fill=fill)
    jax.tree.map(np.testing.assert_array_equal, state, poisoned)
    batch = batch_of(x[:1], y[:1])._replace(mask=jnp.zeros(WIDTH, bool))
    draws = own.draw(state, batch, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, own.update(state, batch, draws)[0], state)


@EVERY
def test_later_epochs_change_nothing(name):
    own, (x, y) = learner(name), data()
    state, _ = learned(own, x, y)
    again, _ = learned(own, x, y, state=state, first_pass=False)
    jax.tree.map(np.testing.assert_array_equal, state, again)


@EVERY
def test_classes_without_an_example_are_never_predicted(name):
    own, (x, y) = learner(name), data()
    untaught = scores(own, own.init(jax.random.key(0)), QUERIES)
    assert np.isfinite(untaught).all()
    state, _ = learned(own, x[y != 1], y[y != 1])
    made = scores(own, state, QUERIES)
    assert np.isfinite(made).all() and not (made.argmax(axis=1) == 1).any()


@EVERY
def test_sixty_four_lanes_are_one_program(name):
    own, (x, y) = learner(name), data()
    orders = np.stack([np.random.default_rng(i).permutation(ROWS) for i in range(LANES)])
    batches = [batch_of(x[:WIDTH], y[:WIDTH])] * (ROWS // WIDTH)
    batches = jax.tree.map(lambda *a: jnp.stack(a), *batches)
    keys = jax.vmap(jax.random.key)(np.arange(LANES))

    @jax.jit
    @jax.vmap
    def lanes(key, order):
        rows = order[: ROWS // WIDTH * WIDTH].reshape(-1, WIDTH)
        shown = batches._replace(x=jnp.asarray(x)[rows], y=jnp.asarray(y, jnp.int32)[rows])

        def step(state, batch):
            state, info = own.update(state, batch, own.draw(state, batch, key))
            return state, info.loss

        return jax.lax.scan(step, own.init(key), shown)

    states, losses = lanes(keys, orders)
    assert losses.shape == (LANES, ROWS // WIDTH)
    for lane in (0, LANES - 1):
        state = own.init(keys[lane])
        for rows in orders[lane][: ROWS // WIDTH * WIDTH].reshape(-1, WIDTH):
            batch = batch_of(x[rows], y[rows])
            state, _ = own.update(state, batch, own.draw(state, batch, keys[lane]))
        support.assert_close(support.at(states, lane), state, 1e-10)


@pytest.mark.parametrize(
    ("name", "option"), [("slda", "shrinkage"), ("fecam", "diagonal"), ("fecam", "power")]
)
def test_hyper_parameters_are_traced(name, option):
    (x, y), values = data(), jnp.array([0.2, 0.6])

    @jax.jit
    @jax.vmap
    def predicted(value):
        own = make(name, **{option: value}).bind(cljax.nets.mlp()(CLASSES), support.spec())
        state = own.init(jax.random.key(0))
        for start in range(0, 20, WIDTH):
            batch = batch_of(x[start : start + WIDTH], y[start : start + WIDTH])
            state, _ = own.update(state, batch, ())
        predictor = own.predictors["logits"]
        return predictor.scores(predictor.prepare(state), batch._replace(x=jnp.asarray(QUERIES)))

    made = np.asarray(predicted(values))
    for value, ours in zip(values.tolist(), made, strict=True):
        own = support.bind(make(name, **{option: value}))
        state, _ = learned(own, x[:20], y[:20])
        np.testing.assert_allclose(ours, scores(own, state, QUERIES), atol=1e-8)
    assert np.abs(made[0] - made[1]).max() > 1e-3


def test_several_inputs_of_an_example_are_one_vector():
    rng, y = np.random.default_rng(0), np.arange(60) % 3
    images = (80 * y[:, None, None] + rng.integers(0, 20, (60, 2, 2))).astype(np.uint8)
    x = {"image": images, "age": rng.normal(size=60).astype(np.float32)}
    stream = cljax.streams.from_arrays((x, y, y * 0), test=(x, y, y * 0), name="clinic")
    with jax.enable_x64(False):
        own = cljax.NCM().bind(cljax.nets.mlp()(3), stream.spec(10))
        assert own.init(jax.random.key(0)).moments.means.shape == (3, 5)
        seen = stream.spec(10).show(jnp.asarray(stream.train_x[:4]), jnp.zeros(4, jnp.int32))
        batch = batch_of(QUERIES[:4], y[:4])._replace(x=seen)
        vectors = own.predictors["features"].scores((), batch)
    expected = np.concatenate([x["age"][:4, None], images[:4].reshape(4, -1) / 255], axis=1)
    np.testing.assert_allclose(vectors, expected, rtol=1e-6)


def test_a_run_costs_no_gradient_and_a_readout_is_fitted_on_the_same_features():
    with jax.enable_x64(False):
        toy = cljax.streams.toy("class")
        run = cljax.run(cljax.NCM(), toy, seeds=1, readout=True, progress=False)
    assert run.results["cost"]["gradient_evaluations"] == 0
    assert float(run.accuracy_matrix("readout")[0, -1].mean()) > 0.9


@pytest.mark.parametrize(
    ("make_it", "said"),
    [
        (lambda: cljax.SLDA(shrinkage=0.0), "shrinkage is 0, but a covariance of few examples"),
        (lambda: cljax.SLDA(shrinkage=1.5), "shrinkage"),
        (lambda: cljax.FeCAM(power=0.0), "power"),
        (lambda: cljax.RanPAC(projections=0), "projections"),
        (lambda: cljax.RanPAC(ridge=-1.0), "ridge"),
    ],
)
def test_values_out_of_range_are_refused(make_it, said):
    with pytest.raises(UserError, match=said):
        make_it()


def test_what_they_are_not_defined_on_is_refused():
    toy = cljax.streams.toy("domain")
    weighted = cljax.streams.with_objective(toy, weights=[1.0, 2.0, 1.0, 1.0])
    hinge = cljax.streams.with_objective(toy, loss="squared-error")
    free = cljax.streams.task_free(toy)
    bind = lambda method, stream: method.bind(cljax.nets.mlp()(4), stream.spec(4))
    with pytest.raises(UserError, match="ncm takes no weights of classes"):
        bind(cljax.NCM(), weighted)
    with pytest.raises(UserError, match="slda takes no other loss, because it solves for its"):
        bind(cljax.SLDA(), hinge)
    with jax.enable_x64(False), pytest.raises(UserError, match=r"give a ridge, such as ridge=1\.0"):
        cljax.run(cljax.RanPAC(projections=4), free, seeds=1, progress=False)
    huge = support.spec()._replace(example=jax.ShapeDtypeStruct((300_000,), jnp.float32))
    with pytest.raises(UserError, match="300000 features for each of 4 classes would take"):
        cljax.FeCAM().bind(cljax.nets.mlp()(4), huge)
