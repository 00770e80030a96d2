"""The course that class-incremental methods share: imprinting, freezing, transfer, fine-tuning."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import support
from incremental_support import (
    COSINE,
    LINEAR,
    NC,
    NORMALISED,
    C,
    assert_weights,
    batch,
    bind,
    phase,
    seen,
    softmax_gradient,
    step,
    stream,
    weights,
)
from support import learn

import cljax
from cljax import methods
from cljax.errors import UserError
from cljax.methods import replayed
from cljax.methods.class_incremental import ClassIncremental
from cljax.methods.icarl import LwFExemplars
from cljax.methods.incremental import classification
from cljax.methods.lucir import LUCIR
from cljax.nets import from_linen, mlp
from cljax.nets.cosine import cosine_head
from cljax.nets.residual import ConvBN
from cljax.options import Rate
from cljax.streams.base import plan
from cljax.types import Phase, Variables


class Small(nn.Module):
    """Two convolutions with BatchNorm and a cosine head, for images of 2 x 3 grey pixels."""

    @nn.compact
    def __call__(self, x, train, member=None):
        x = x.reshape(-1, 2, 3, 1)
        x = nn.relu(ConvBN(2, param_dtype=x.dtype)(x, train, member))
        x = ConvBN(3, stride=2, param_dtype=x.dtype)(x, train, member).mean((1, 2))
        return cosine_head(C)(x), x


SMALL = from_linen(Small(), head="head")._replace(cosine=True)
TRANSFER = {"lr": 0.1, "capacity": 24, "weight_decay": 0.01, "optimizer": "momentum"}
DECAYING = optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9))  # a user's own


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def changed(a, b):
    """Where two arrays differ."""
    return np.asarray(a) != np.asarray(b)


def unit(a, axis=-1):
    return a / np.linalg.norm(a, axis=axis, keepdims=True)


def begun(learner, state, task):
    """The state once ``task`` has begun."""
    return jax.jit(phase(learner, "session").update)(state, batch([task]), ())[0]


class Counting(ClassIncremental):
    """One of a user's own, which counts tasks and weighs the loss with the count."""

    weight: Rate = 1.0

    def objective(self, problem, params, output, old, own, batch, outputs):
        each = classification("softmax", output.logits, batch.y, outputs.seen)
        return self.weight * own * jnp.mean(each)

    def init_own(self, problem):
        return jnp.zeros(())

    def begin_own(self, problem, own, task):
        return own + 1 + task

    def stages(self, problem):
        return (Phase("mine", lambda task, rows: None, lambda *a: (), lambda *a: None),)


def test_phases_and_the_objectives_own_state():
    options = {"lr": 0.1, "capacity": 24}
    method = Counting(**options, imprint=True, balanced_epochs=1)
    assert method.name == "counting" and method.options["weight"] == 1
    learner = bind(method)
    names = [(phase.name, phase.before) for phase in learner.phases]
    assert names == [
        ("session", True), ("imprint", True), ("mine", False), ("exemplars", False),
        ("balanced", False),
    ]  # fmt: skip
    assert [p.name for p in bind(Counting(**options)).phases] == [
        "session", "mine", "exemplars",
    ]  # fmt: skip
    state = begun(learner, begun(learner, learner.init(jax.random.key(0)), 0), 1)
    assert state.own == 3
    own = batch([1, 0])
    _, info = step(learner, state, own)
    _, plain = step(learner, state._replace(own=jnp.ones(())), own)
    np.testing.assert_allclose(info.loss, 3 * plain.loss, rtol=1e-12)


@pytest.mark.parametrize("name", ["lwf-exemplars", "lucir"])
def test_the_first_task_is_plain_training(name):
    """In loss, in state, and in the examples: that of ``replayed``."""
    shared = {"lr": 0.2, "capacity": 24, "optimizer": "momentum", "exemplars": "herding"}
    plain = cljax.Replayed(**shared)
    method = methods.make(name, imprint=False, freeze=False, **shared)
    learner, other = bind(method, COSINE), bind(plain, COSINE)
    state = learner.init(jax.random.key(0))
    theirs = replayed.State(*state[:3], state.exemplars)
    for seed in range(3):
        own = batch([0, 0, 0, 0], seed=seed, masked=[1])
        state, info = step(learner, state, own)
        theirs, expected = step(other, theirs, own)
        np.testing.assert_allclose(info.loss, expected.loss, rtol=1e-14)
    support.assert_close(replayed.State(*state[:3], state.exemplars), theirs, 1e-14)
    same(*(plan(m.arrange(stream()), 0, 8, 2) for m in (method, plain)))


def imprinted(model, task=1, masked=(), **options):
    """Rows [D, C] before and after a step for a class of ``task``, its batch, the first state."""
    learner = bind(LwFExemplars(capacity=24, imprint=True, **options), model)
    state = learner.init(jax.random.key(0))
    own = batch([task] * 5, masked=masked)
    own = own._replace(y=jnp.where(own.mask, NC * task + 2, 0).astype(jnp.int32))
    after, _ = jax.jit(phase(learner, "imprint").update)(state, own, ())
    same(model.rows.set(after.params, model.rows.get(state.params)), state.params)  # all but rows
    same(after._replace(params=state.params), state)
    return *(np.asarray(model.rows.get(s.params)) for s in (state, after)), own, state


@pytest.mark.parametrize("masked", [(), (0, 3), range(5)])
def test_a_new_row_is_the_classs_mean_direction_as_long_as_old_rows_are(masked):
    for model, task in ((LINEAR, 1), (COSINE, 2)):
        before, after, own, state = imprinted(model, task, masked)
        expected = before.copy()
        f = np.asarray(model.apply(Variables(state.params, {}), own.x, False)[0].features)
        f = f[np.asarray(own.mask)]
        if len(f):
            length = np.linalg.norm(before[:, : NC * task], axis=0).mean()
            expected[:, NC * task + 2] = length * unit(unit(f).mean(0))
        np.testing.assert_allclose(after, expected, rtol=0, atol=1e-13)
        same(after[:, : NC * task], before[:, : NC * task])


def test_a_run_imprints_each_new_class_by_all_its_examples():
    """Nothing learns: what is left of the network is its first one, and the rows imprinted."""
    source, net = stream(), mlp(5, head="cosine")(6)
    method = LwFExemplars(lr=0.0, capacity=24, imprint=True, exemplars="first")
    (state,) = learn(method, net, source, [0], batch_size=16).states
    apply, tables = source.transform.apply, source.transform.tables
    x = apply(tables, source.train_x, np.zeros(len(source.train_y), np.int32))
    f = unit(np.asarray(net.apply(Variables(state.params, {}), x, False)[0].features))
    rows = np.asarray(state.params["head"]["kernel"])
    for c in range(2, 6):
        old = rows[:, : c // 2 * 2]
        expected = np.linalg.norm(old, axis=0).mean() * unit(f[source.train_y == c].mean(0))
        np.testing.assert_allclose(rows[:, c], expected, rtol=1e-10)
    phases = method.bind(net, method.arrange(source).spec(16))
    own = plan(method.arrange(source), 0, 16, 1)
    steps = [
        phase(phases, "imprint").plan(t, jax.tree.map(lambda a, t=t: a[own.current == t], own))
        for t in range(3)
    ]
    assert steps[0] is None
    for t in (1, 2):
        labels = [set(source.train_y[i[m]]) for i, m in zip(*steps[t][:3:2], strict=True)]
        assert labels == [{2 * t}, {2 * t + 1}] and steps[t].mask.sum() == 48


def test_frozen_rows_do_not_move_and_sigma_does():
    options = {"lr": 0.1, "capacity": 24, "optimizer": "momentum", "weight_decay": 0.1}
    learner = bind(LUCIR(**options), COSINE)
    free = bind(LUCIR(**options, freeze=False), COSINE)
    start = learner.init(jax.random.key(0))
    states = {name: start for name in ("frozen", "free")}
    for seed in range(3):
        own = batch([0, 1, 1, 0], seed=seed)
        states["frozen"], _ = step(learner, states["frozen"], own)
        states["free"], _ = step(free, states["free"], own)
    for name, state in states.items():
        head, before = state.params["head"], start.params["head"]
        moves = changed(head["kernel"], before["kernel"])
        expected = seen(1) & ~seen(0) if name == "frozen" else seen(1)
        assert (moves == expected).all(), name  # rows of outputs to come do not even decay
        assert head["sigma"] != before["sigma"]
        body = jax.tree.map(changed, state.params["Dense_0"], start.params["Dense_0"])
        assert body["kernel"].any() and body["bias"].any()


@pytest.mark.parametrize("options", [{"weight_decay": 0.1}, {"optimizer": DECAYING}])
def test_rows_to_come_do_not_decay_and_biases_go_with_them(options):
    for freeze in (False, True):
        learner = bind(LwFExemplars(lr=0.1, capacity=24, freeze=freeze, **options))
        state = learner.init(jax.random.key(0))
        state = state._replace(params=jax.tree.map(lambda a: a + 0.5, state.params))
        after, _ = step(learner, state, batch([0, 1, 1, 0]))
        expected = seen(1) & ~seen(0) if freeze else seen(1)
        for new, old in zip(weights(after.params), weights(state.params), strict=True):
            assert (changed(new, old) == expected).all()


def kernels(params, part):
    """Those of the convolutions, or their scales."""
    return [params[part][f"ConvBN_{i}"]["Conv_0"]["kernel"] for i in (0, 1)]


def all_changed(a, b):
    return all(changed(x, y).all() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def trained(learner, state, task):
    """The state after ``task`` has begun and two steps of it."""
    state = begun(learner, state, task)
    for seed in (0, 1):
        state, _ = step(learner, state, batch([0, task, task, 0], current=task, seed=seed))
    return state


def logits(learner, state):
    predictor = learner.predictors["logits"]
    view = jax.jit(predictor.prepare)(state)
    return np.asarray(jax.jit(predictor.scores)(view, batch([0, 1, 2])))


def balanced(model=LINEAR, **options):
    """A learner's fine-tuning phase, and a state with six exemplars, the third slot empty."""
    method = LwFExemplars(balanced_lr=0.3, capacity=24, balanced_epochs=2, **options)
    learner = bind(method, model)
    state = learner.init(jax.random.key(0))
    mask = np.isin(np.arange(24), [0, 1, 3, 4, 5, 6])
    return phase(learner, "balanced"), state._replace(
        exemplars=state.exemplars._replace(mask=jnp.asarray(mask))
    )


def tuned(phase, state, own, at=0):
    own = own._replace(clock=own.clock._replace(step=jnp.asarray(at, jnp.int32)))
    return jax.jit(phase.update)(state, own, ())


def of_slots(tasks, seed, slots, epoch=0, masked=()):
    own = batch(tasks, seed=seed, epoch=epoch, masked=masked)
    return own._replace(index=-2 - jnp.asarray(slots))


@functools.cache
def course():
    """A learner with transfer, and its states at first and after each task."""
    learner = bind(LUCIR(**TRANSFER, transfer="kept"), SMALL)
    states = [learner.init(jax.random.key(0))]
    for task in range(3):
        states.append(trained(learner, states[-1], task))
    return learner, states


def test_after_the_first_task_scales_learn_and_kernels_never_again():
    _, (start, first, *later) = course()
    assert all_changed(*(kernels(s.params, "weights") for s in (first, start)))
    same(kernels(first.params, "scales"), kernels(start.params, "scales"))
    assert all((scale == 1).all() for scale in kernels(start.params, "scales"))
    for before, after in zip((first, *later), later, strict=False):
        same(kernels(after.params, "weights"), kernels(first.params, "weights"))
        assert all_changed(*(kernels(s.params, "scales") for s in (after, before)))
        norms = [s.params["weights"]["ConvBN_0"]["BatchNorm_0"] for s in (after, before)]
        assert all_changed(*norms)


def test_fine_tuning_moves_no_kernel_either():
    _, (_, state, *_) = course()
    tune, _ = balanced(SMALL, transfer="kept", optimizer="momentum")
    state = state._replace(exemplars=state.exemplars._replace(mask=jnp.ones(24, bool)))
    after, _ = tuned(tune, state, of_slots([0, 1, 1, 0], 0, [0, 1, 3, 4]))
    same(kernels(after.params, "weights"), kernels(state.params, "weights"))
    assert all_changed(*(kernels(s.params, "scales") for s in (after, state)))


def test_folding_makes_scales_one_as_a_task_begins_and_keeps_the_network():
    learner, (start, first, second, _) = course()
    folding = bind(LUCIR(**TRANSFER, transfer="folded"), SMALL)
    for task, state in ((0, start), (1, first)):  # scales are one
        same(begun(folding, state, task).params, state.params)
    after, kept = (begun(own, second, 2) for own in (folding, learner))
    same(after.params["scales"], start.params["scales"])
    parts = kernels(second.params, "weights"), kernels(second.params, "scales")
    same(
        kernels(after.params, "weights"),
        [weight * scale for weight, scale in zip(*parts, strict=True)],
    )
    support.assert_close(logits(folding, after), logits(learner, second), 1e-14)
    same(kept.params, second.params)
    for state in (after, kept):
        same(state.teacher, Variables(state.params, state.model_state))


def test_two_steps_of_fine_tuning_by_hand():
    """Momentum and decay of its own, a rate that drops; frozen rows learn, too, and slots that
    are empty, padding and what an optimiser remembers of training do not matter."""
    lr, mu, wd = 0.3, 0.9, 0.01
    tune, state = balanced(
        optimizer="momentum", weight_decay=wd, balanced_milestones=(1,), decay=0.5, freeze=True
    )
    state = state._replace(opt_state=jax.tree.map(lambda a: a + 7.0, state.opt_state))
    start = weights(state.params)
    w, velocity = start, (0.0, 0.0)
    for i in (0, 1):
        own = of_slots([0, 1, 1, 0, 1], i, [0, 1, 2, 3, 4], epoch=i, masked=[1])
        own = own._replace(x=own.x.at[1:3].set(jnp.nan))  # padding, and an empty slot
        state, info = tuned(tune, state, own, i)
        rows = np.array([0, 3, 4])
        x, y = np.asarray(own.x)[rows], np.asarray(own.y)[rows]
        grads = softmax_gradient(w, x, y, 1)
        velocity = tuple(mu * v + g + wd * a for v, g, a in zip(velocity, grads, w, strict=True))
        moved = (a - lr * 0.5**i * v for a, v in zip(w, velocity, strict=True))
        w = tuple(np.where(seen(1), a, b) for a, b in zip(moved, start, strict=True))
        assert np.isfinite(info.loss)
    assert_weights(state.params, w)


def test_fine_tuning_sees_each_exemplar_once_an_epoch_and_nothing_else():
    tune, _ = balanced()
    source = LwFExemplars(capacity=24).arrange(support.stream(class_mask=class_mask()))
    rows = plan(source, 0, 5, 1)
    assert tune.augment and tune.plan(0, rows) is None
    for task, share in ((1, 3), (2, 2)):
        steps = tune.plan(task, rows)
        assert steps.last.sum() == 1 and steps.last[-1] and (steps.current == task).all()
        orders = []
        for epoch in (0, 1):
            here = steps.epoch == epoch
            slots = -2 - steps.index[here][steps.mask[here]]
            assert sorted(slots) == list(range(share * NC * (task + 1)))
            orders.append(slots.tolist())
            owner = slots // share // NC
            np.testing.assert_array_equal(steps.task[here][steps.mask[here]], owner)
        assert orders[0] != orders[1]


def class_mask():
    return np.arange(C) // NC == np.arange(3)[:, None]


def test_fine_tuning_leaves_batchnorms_statistics():
    tune, state = balanced(NORMALISED)
    after, _ = tuned(tune, state, of_slots([0, 1, 1, 0], 0, [0, 1, 3, 4]))
    same(after.model_state, state.model_state)
    moves = jax.tree.map(lambda a, b: changed(a, b).any(), after.params, state.params)
    assert all(jax.tree.leaves(moves))


def test_a_run_fine_tunes_after_exemplars_were_chosen_and_never_after_the_first_task():
    method = LwFExemplars(lr=0.1, capacity=24, balanced_epochs=2, balanced_lr=0.05)
    history = learn(method, mlp(5)(6), stream(), [0], batch_size=16, epochs=2)
    tuning = history.phase_losses["balanced"][0]
    assert [len(losses) for losses in tuning] == [4, 4]  # two epochs of 24, in tasks 1 and 2
    assert all(np.isfinite(losses).all() and (losses > 0).all() for losses in tuning)


def test_bad_options_and_networks_are_refused():
    for words, options in (
        ("transfer 'scales' is not known", {"transfer": "scales"}),
        ("balanced_epochs is -1", {"balanced_epochs": -1}),
        ("balanced_lr is nan", {"balanced_lr": np.nan}),
        ("milestones are", {"balanced_epochs": 2, "balanced_milestones": (2, 1)}),
    ):
        with pytest.raises(UserError, match=words):
            LwFExemplars(**options)
    unsaid = LINEAR._replace(rows=None, head=None)
    for options in ({"imprint": True}, {"freeze": True}):
        with pytest.raises(UserError, match="does not say which of its parameters those are"):
            bind(LwFExemplars(capacity=24, **options), unsaid)
    bind(LwFExemplars(capacity=24), unsaid)
    learner = bind(LwFExemplars(capacity=24, transfer="kept"))
    with pytest.raises(UserError, match="this network has none of four dimensions"):
        learner.init(jax.random.key(0))
    with pytest.raises(UserError, match="choose multi_head=False"):
        support.bind(LwFExemplars(capacity=24), multi_head=True)
