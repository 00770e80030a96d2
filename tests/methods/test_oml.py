"""OML's meta-gradient, what it practises on, and Rep's joint loss; runs of both."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transfer_support

import cljax
from cljax.errors import UserError
from cljax.methods.oml import OML, query_loss
from cljax.methods.rep import Rep
from cljax.types import Batch, Clock, Pretraining
from cljax.update_rules.windows import Shown

NET = cljax.nets.mlp(4, 3)
PARTS = ((0, 1, 2), (3, 4), (5, 6))


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def softmax(z):
    return np.exp(z) / np.exp(z).sum(1, keepdims=True)


def episode(inner_steps=2):
    """Two heads of two outputs; the query has an example of padding."""
    model = NET(4)
    rng = np.random.default_rng(0)
    outputs = np.kron(np.eye(2, dtype=bool), np.ones((1, 2), bool))

    def shown(shape, low):
        task = rng.integers(low, 2, shape)
        y = rng.integers(0, 2, shape) + 2 * task
        x = jnp.asarray(rng.normal(size=(*shape, 5)))
        return Shown(x, jnp.asarray(y), jnp.asarray(outputs[task]))

    support, query = shown((inner_steps, 6), 1), shown((9,), 0)
    params = model.init(jax.random.key(1), support.x[0]).params
    # Biases of zero would leave units exactly at the kink of their ReLU.
    params = jax.tree.map(lambda a: a + 0.3 * jnp.asarray(rng.normal(size=a.shape)), params)
    return model, params, support, query, jnp.arange(9) != 4


def losses_of(z, shown):
    """Cross-entropy of each example over its own outputs, and its slope, in NumPy."""
    kept = np.where(np.asarray(shown.outputs), np.exp(np.asarray(z)), 0.0)
    p = kept / kept.sum(1, keepdims=True)
    own = np.eye(4)[np.asarray(shown.y)]
    return -np.log((p * own).sum(1)), p - own


def test_the_query_is_asked_after_steps_on_the_head_alone():
    """Features stay, the head's rows take K steps by hand."""
    model, params, support, query, mask = episode()
    head = jax.tree.map(np.asarray, params["Dense_2"])
    features = lambda x: np.asarray(model.apply(cljax.types.Variables(params, {}), x, True)[0][1])
    for k in range(2):
        step = jax.tree.map(lambda a, k=k: a[k], support)
        phi = features(step.x)
        slope = losses_of(phi @ head["kernel"] + head["bias"], step)[1] / 6
        head = {
            "kernel": head["kernel"] - 0.3 * phi.T @ slope,
            "bias": head["bias"] - 0.3 * slope.sum(0),
        }
    np.testing.assert_array_equal(head["kernel"][:, :2], params["Dense_2"]["kernel"][:, :2])
    wanted = losses_of(features(query.x) @ head["kernel"] + head["bias"], query)[0]
    found = query_loss(model, params, support, query, mask, 0.3)
    np.testing.assert_allclose(found, wanted[np.asarray(mask)].mean(), rtol=1e-12)


def test_the_meta_gradient_equals_finite_differences():
    model, params, support, query, mask = episode(inner_steps=10)
    loss = jax.jit(lambda p: query_loss(model, p, support, query, mask, 0.5))
    grads = jax.jit(jax.grad(loss))(params)
    rng = np.random.default_rng(3)
    for name in params:  # features and head alike
        zeros = jax.tree.map(jnp.zeros_like, params)
        along = {
            **zeros,
            name: jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), params[name]),
        }
        at = lambda h, along=along: loss(jax.tree.map(lambda p, d: p + h * d, params, along))
        slope = (at(1e-6) - at(-1e-6)) / 2e-6
        dot = cljax.tree.dot(grads, along)
        assert abs(float(slope)) > 1e-4
        np.testing.assert_allclose(dot, slope, rtol=1e-6)
    plain = jax.grad(lambda p: query_loss(model, p, support, query, mask, 0.0))(params)
    assert float(jnp.abs(grads["Dense_1"]["kernel"] - plain["Dense_1"]["kernel"]).max()) > 1e-3


def learner_on(method, stream, net=NET, batch_size=5):
    return method.bind(net(stream.num_classes), stream.spec(batch_size))


def pretraining(learner, stream):
    """The phase's plan, made of the first task's rows."""
    rows = stream.planner(0, 5, 1)
    return learner.phases[0].plan(0, jax.tree.map(lambda a: a[rows.current == 0], rows))


def source_row(learner, stream):
    plan = pretraining(learner, stream)
    return jax.tree.map(lambda a: a[0], plan)


def batch_of(stream, row, step=0):
    """The examples of a row as the network sees them."""
    x = jnp.asarray(stream.train_x[np.asarray(row.index)]) / 255
    y = jnp.asarray(stream.train_y[np.asarray(row.index)])
    clock = Clock(*(jnp.asarray(v) for v in (0, 0, step, True, False)))
    return Batch(x, y, jnp.asarray(row.task), jnp.asarray(row.mask), jnp.asarray(row.index), clock)


@pytest.mark.parametrize("query", ["both", "new"])
def test_a_pretraining_step_practises_on_held_classes(query):
    """Rows are the source's batch and held ones; the step follows the query's gradient."""
    stream = transfer_support.stream(PARTS, held=(3, 4, 5, 6, 7, 8, 9), share=0.5)
    learner = learner_on(OML(lr=0.3, inner_steps=3, query=query, clip_norm=0.2), stream)
    (phase,) = learner.phases
    assert phase.name == "pretrain" and phase.before
    assert phase.plan(1, stream.planner(0, 5, 1)) is None
    state = learner.init(jax.random.key(0))
    assert state.classes.shape == (2, 2) and len(np.unique(state.classes)) == 4
    row = source_row(learner, stream)
    chosen = phase.select(state, row, jax.random.key(4))
    np.testing.assert_array_equal(chosen.index[:8], row.index)
    np.testing.assert_array_equal(chosen.mask[:8], row.mask)
    practised = np.asarray(chosen.index[8:])
    assert len(practised) == 4 * 5 and chosen.mask[8:].all()
    classes = np.asarray(state.classes).reshape(-1)
    assert np.isin(practised, stream.held[classes]).all()
    assert set(stream.train_y[practised]) == set(stream.train_y[stream.held[classes, 0]])

    batch = batch_of(stream, chosen)._replace(mask=chosen.mask.at[2].set(False))
    drawn = phase.draw(state, batch, jax.random.key(5))
    after, info = jax.jit(phase.update)(state, batch, drawn)
    place = {int(stream.train_y[stream.held[c, 0]]): 3 + i for i, c in enumerate(classes)}
    new_y = jnp.asarray([place[int(label)] for label in batch.y[8:]]).reshape(4, 5)
    outputs = jnp.asarray(stream.class_mask)[jnp.where(new_y < 5, 1, 2)]
    new = Shown(batch.x[8:].reshape(4, 5, 4, 4, 1), new_y, outputs)
    support, asked = (jax.tree.map(lambda a, at=at: a[at], new) for at in (slice(3), 3))
    mask = jnp.ones(5, bool)
    if query == "both":
        known = jnp.broadcast_to(jnp.asarray(stream.class_mask[:1]), (8, 7))
        old = Shown(batch.x[:8], batch.y[:8], known)
        asked = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), old, asked)
        mask = jnp.concatenate([batch.mask[:8], mask])
    loss, grads = jax.jit(
        jax.value_and_grad(lambda p: query_loss(NET(7), p, support, asked, mask, 0.3))
    )(state.params)  # fmt: skip
    np.testing.assert_allclose(info.loss, loss)
    wanted = cljax.tree.add_scaled(state.params, cljax.tree.clip_norm(grads, 0.2), -0.1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), after.params, wanted)
    assert (after.classes != state.classes).any()


@pytest.mark.parametrize("method", [OML(lr=0.3, inner_steps=2, meta_lr=0.05), Rep(lr=0.3)])
def test_then_it_is_gradient_descent_from_the_second_task_on(method):
    stream = transfer_support.stream()
    learner = learner_on(method, stream)
    state = learner.init(jax.random.key(0))
    plain = learner_on(cljax.Finetune(lr=0.3), stream)
    tuned = plain.init(jax.random.key(0))
    rows = stream.planner(0, 5, 1)
    for at in (0, int(np.flatnonzero(rows.current)[0])):
        row = jax.tree.map(lambda a, at=at: a[at], rows)
        batch = batch_of(stream, row)
        batch = batch._replace(clock=batch.clock._replace(task=jnp.asarray(row.current)))
        after = learner.update(state, batch, learner.draw(state, batch, None))[0]
        if row.current:
            tuned = plain.update(tuned, batch, ())[0]
        jax.tree.map(np.testing.assert_array_equal, after.params, tuned.params)


def test_rep_learns_source_and_held_classes_in_one_softmax():
    """The loss and the extra head's step by hand; the last of a batch is padding."""
    stream = transfer_support.stream(PARTS, held=(2, 3, 8, 9), share=0.5)
    learner = learner_on(Rep(), stream)
    (phase,) = learner.phases
    plan = pretraining(learner, stream)
    assert len(plan.current) == 20
    everything = np.concatenate([stream.subsets(0)[0], stream.held.reshape(-1)])
    one = plan.epoch == 0
    assert sorted(plan.index[one][plan.mask[one]]) == sorted(everything)
    state = learner.init(jax.random.key(0))
    assert state.extra.kernel.shape == (3, 3)  # class 2 has an output of the source task's own
    index = np.concatenate([stream.subsets(0)[0][:5], stream.held[:, 0], stream.held[:1, 1]])
    row = jax.tree.map(lambda a: a[0], plan)._replace(
        index=index, task=np.zeros(10, np.int32), mask=np.arange(10) < 9
    )
    batch = batch_of(stream, row)
    after, info = phase.update(state, batch, phase.draw(state, batch, None))
    out = NET(7)[1](cljax.types.Variables(state.params, {}), batch.x, True)[0]
    phi = np.asarray(out.features)
    z = np.concatenate(
        [out.logits[:, :3], phi @ state.extra.kernel + state.extra.bias[None]], axis=1
    )
    number = {0: 0, 1: 1, 2: 2, 3: 3, 7: 4, 8: 5}  # classes 8 and 9 are labels 7 and 8
    own = np.eye(6)[[number[int(label)] for label in batch.y]]
    assert set(own.argmax(1)[5:9]) == {2, 3, 4, 5}
    p = softmax(z)
    np.testing.assert_allclose(info.loss, -np.log((p * own).sum(1))[:9].mean(), rtol=1e-12)
    slope = (p - own)[:9] / 9
    kernel = state.extra.kernel - 0.1 * phi[:9].T @ slope[:, 3:]
    np.testing.assert_allclose(after.extra.kernel, kernel, rtol=1e-10)
    np.testing.assert_allclose(after.extra.bias, state.extra.bias - 0.1 * slope[:, 3:].sum(0))
    head = state.params["Dense_2"]["kernel"].at[:, :3].add(-0.1 * phi[:9].T @ slope[:, :3])
    np.testing.assert_allclose(after.params["Dense_2"]["kernel"], head, rtol=1e-10)


@pytest.mark.parametrize("method", [OML(lr=0.1, inner_steps=3), Rep(lr=0.1)])
def test_a_run_pretrains_and_goes_on(method):
    with jax.enable_x64(False):
        run = cljax.run(
            method, transfer_support.stream(pretrain=300, steps=40, lr=0.02), seeds=2,
            net=cljax.nets.mlp(16, 8), batch_size=5,
        )  # fmt: skip
    matrix = run.accuracy_matrix().mean(axis=0)
    assert matrix[1, 0] > 0.7 and matrix[2, 1] > 0.7  # of three classes


def test_without_a_streams_pretraining_there_is_the_usual_one():
    stream = transfer_support.stream()
    spec = stream.spec(5)._replace(pretraining=None)
    for method in (OML(), Rep()):
        learner = method.bind(NET(stream.num_classes), spec)
        plan = learner.phases[0].plan(0, stream.planner(0, 5, 1))
        assert plan.index.shape == (Pretraining().steps, Pretraining().batch_size)
        state = learner.init(jax.random.key(0))
        batch = batch_of(stream, jax.tree.map(lambda a: a[0], stream.planner(0, 5, 1)))
        after = learner.update(state, batch, learner.draw(state, batch, None))[0]
        assert (after.params["Dense_0"]["kernel"] != state.params["Dense_0"]["kernel"]).any()


def test_streams_and_networks_that_do_not_fit_are_refused():
    none = transfer_support.stream(held=())
    for method in (OML(), Rep()):
        with pytest.raises(UserError, match="holds out none"):
            learner_on(method, none)
    with pytest.raises(UserError, match="only 2"):
        learner_on(OML(), transfer_support.stream(held=(6, 7)))
    with pytest.raises(UserError, match="without BatchNorm"):
        learner_on(OML(), transfer_support.stream(), cljax.nets.convnet(4))
    bare = lambda outputs: NET(outputs)._replace(head=None)
    with pytest.raises(UserError, match="give its Model a head"):
        learner_on(OML(), transfer_support.stream(), bare)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (OML, {"inner_steps": 0}),
        (OML, {"query": "old"}),
        (OML, {"meta_lr": float("nan")}),
        (OML, {"inner_lr": float("inf")}),
        (Rep, {"lr": float("nan")}),
    ],
)
def test_bad_options_are_refused(make, options):
    with pytest.raises(UserError):
        make(**options)
