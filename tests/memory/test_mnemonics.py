"""Mnemonics: steps by hand, whose turn it is, what is stored, what is gained."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from incremental_support import learned, stream
from mnemonics_support import LINEAR, SIZE, convolving, moment, phases_of_the_second_task
from support import learn

import cljax
from cljax.errors import UserError
from cljax.memory import exemplars as store
from cljax.memory import learned as pixels
from cljax.memory.folds import geometry_of
from cljax.memory.mnemonics import Mnemonics
from cljax.memory.policies import named
from cljax.methods.with_exemplars import View
from cljax.nets import mlp
from cljax.streams.base import plan
from cljax.types import Batch, Clock, Spec


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


RATE, MOMENTUM, INNER = 0.2, 0.5, 0.7


def second_task(net=LINEAR, **options):
    policy = Mnemonics(
        inner_lr=INNER, inner_steps=2, lr=RATE, momentum=MOMENTUM, halve_every=1, **options
    )
    return phases_of_the_second_task(policy, net)


def by_hand(params, values, y, steps, x, labels, among):
    """Loss after descent on these exemplars of a linear network, and its gradient in them."""

    def loss(w, x, y):
        logits = (x @ w["kernel"] + w["bias"][None])[:, among]
        own = jnp.argmax(y[:, None] == among[None], axis=1)
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(y)), own])

    @jax.jit
    @jax.value_and_grad
    def outer(values):
        w = params["Dense_0"]
        for rows in steps:
            grads = jax.grad(loss)(w, values[rows] / 8 - 0.1, y[rows])
            w = jax.tree.map(lambda p, g: p - INNER * g, w, grads)
        return loss(w, x, labels)

    return outer(values)


@pytest.mark.parametrize("outputs", ["own", "all"])
def test_two_steps_on_new_exemplars_by_hand(outputs):
    """Own outputs alone compete, or all, where old exemplars are trained on but stay."""
    phases, state, _ = second_task(outputs=outputs)
    first = 2 if outputs == "own" else 0
    among, owners = np.arange(first, 4), np.arange(first, 4)[None]
    values, y, v = state.exemplars.x, state.exemplars.y, 0.0
    rng, labels = np.random.default_rng(1), jnp.array([2, 3, 3, 2, 2])
    for step in (0, 1):
        x = jnp.asarray(rng.normal(size=(5, SIZE)))
        batch = moment(step, step, np.arange(5), x, labels)
        after, info = phases["mnemonics"](state, batch, jax.random.key(0))
        slots = 2 * owners + np.arange(2)[:, None]
        loss, grads = by_hand(state.params, values, y, slots, x[:4], labels[:4], among)
        np.testing.assert_allclose(info.loss, loss, rtol=1e-12)
        v = MOMENTUM * v + 64 * grads
        values = jnp.where(y[:, None] > 1, values - RATE * 0.5**step * v, values)
        np.testing.assert_allclose(after.exemplars.pixels, values, rtol=1e-12)
        for part in ("params", "model_state"):
            jax.tree.map(np.testing.assert_array_equal, getattr(after, part), getattr(state, part))
        state = after


@pytest.mark.parametrize("turns", ["sequential", "simultaneous"])
def test_two_rounds_of_turns_by_hand(turns):
    """B is judged by A as it is by now, or as it was when the round began."""
    phases, state, budget = second_task(turns=turns)
    halves = [
        2 * np.arange(2) + np.argmax(geometry_of(budget, 2).fold[1, :2] == f, axis=1)
        for f in (0, 1)
    ]
    values, y, v = np.asarray(state.exemplars.x), state.exemplars.y, np.zeros((8, SIZE))
    begun = values
    for step in range(4):
        own, other = halves[step % 2], halves[(step + 1) % 2]
        begun = values if step % 2 == 0 or turns == "sequential" else begun
        index = -2 - np.append(other, own[0])  # the last one is masked
        batch = moment(step, step // 2, index, jnp.zeros((3, SIZE)), jnp.zeros(3, jnp.int32))
        state, info = phases["adjust"](state, batch, jax.random.key(0))
        shown = begun[other] / 8 - 0.1
        loss, grads = by_hand(
            state.params, jnp.asarray(values), y, [own], shown, y[other], np.arange(2)
        )
        np.testing.assert_allclose(info.loss, loss, rtol=1e-12)
        v[own] = MOMENTUM * v[own] + 64 * np.asarray(grads)[own]
        values = values.copy()
        values[own] -= RATE * 0.5 ** (step // 2) * v[own]
        np.testing.assert_allclose(state.exemplars.pixels, values, rtol=1e-12)
    assert np.abs(values - np.asarray(state.exemplars.x))[:4].min() > 0


def test_the_networks_own_statistics_outlive_inner_steps_by_the_batchs():
    found = []
    for norm in ("frozen", "batch"):
        phases, state, _ = second_task(convolving, inner_norm=norm)
        x = jnp.asarray(np.random.default_rng(1).normal(size=(5, SIZE)))
        batch = moment(0, 0, np.arange(5), x, jnp.array([2, 3, 3, 2, 2]))
        after, _ = phases["mnemonics"](state, batch, jax.random.key(0))
        jax.tree.map(np.testing.assert_array_equal, after[:2], state[:2])
        assert len(jax.tree.leaves(after.model_state)) == 2
        found.append(after.exemplars.pixels - state.exemplars.x)
    assert all(bool(jnp.isfinite(change).all()) for change in found)
    assert float(jnp.abs(found[0] - found[1]).max()) > 1e-3


def policy_phases(policy, source, per_class=4):
    spec = source.spec(8)
    budget = store.budget_of(spec.class_mask, per_class=per_class)
    model = mlp(5)(6)
    return spec, budget, {p.name: p for p in policy.phases(model, spec, budget)}


@pytest.mark.parametrize("folds", [2, 3])
def test_no_fold_judges_itself(folds):
    source, share = stream(), 4
    policy = Mnemonics(folds=folds, outer_epochs=3)
    _, budget, phases = policy_phases(policy, source, share)
    rows = plan(store.replayed(source, budget), 0, 8, 1)
    fold = geometry_of(budget, folds).fold
    for task in (1, 2):
        own = jax.tree.map(lambda a, t=task: a[rows.current == t], rows)
        steps = phases["adjust"].plan(task, own)
        assert steps.last.sum() == 1 and steps.last[-1]
        judged = {f: set() for f in range(folds)}
        for s in range(len(steps.current)):
            slots = -2 - steps.index[s][steps.mask[s]]
            assert len(steps.index[s]) == 8  # of any task, so that one program serves all
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
    method = cljax.ICaRL(lr=0.1, loss="kl", capacity=None, per_class=4, exemplars=policy)
    spec = source.spec(8)
    learner = method.bind(mlp(5)(6), spec)
    history = learn(method, mlp(5)(6), source, [0], batch_size=8, epochs=3)
    state = history.states[0]
    phase = next(p for p in learner.phases if p.name == "adjust")
    budget = store.budget_of(spec.class_mask, per_class=4)
    fold = geometry_of(budget, 2).fold
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


def test_learned_exemplars_are_beside_the_images_that_they_were():
    policy = "mnemonics:outer_epochs=2,lr=5.0,inner_lr=1.0,inner_steps=2,momentum=0.0"
    method = cljax.ICaRL(lr=0.1, loss="kl", capacity=None, per_class=4, exemplars=policy)
    state = learn(method, mlp(5)(6), stream(), [0], batch_size=8, epochs=2).states[0]
    kept = state.exemplars
    assert bool(kept.mask.all()) and kept.x.dtype == jnp.uint8
    assert (np.asarray(pixels.change(kept)[0]) > 0).any()
    source = stream()
    np.testing.assert_array_equal(kept.chosen, source.train_x[np.asarray(kept.index)])
    np.testing.assert_array_equal(kept.y, source.train_y[np.asarray(kept.index)])


def test_a_smaller_share_keeps_what_was_learned():
    """Of 12 exemplars six, then three of each class, as in a run that ends after two tasks."""
    whole = stream()
    short = stream(
        class_mask=whole.class_mask[:2], test_index=whole.test_index[:2],
        subsets=lambda seed: whole.subsets(seed)[:2], valid=lambda seed: whole.valid(seed)[:2],
    )  # fmt: skip
    policy = "mnemonics:old=false,outer_epochs=2,lr=5.0,inner_lr=1.0,inner_steps=2"
    method = cljax.Replayed(lr=0.1, capacity=12, exemplars=policy)
    more, less = (
        learn(method, mlp(5)(6), s, [0], batch_size=8, epochs=2).states[0].exemplars
        for s in (short, whole)
    )
    assert more.mask.shape == less.mask.shape == (12,) and bool((more.mask & less.mask).all())
    for name in ("x", "chosen", "index"):
        learned, kept = (np.asarray(getattr(found, name)) for found in (more, less))
        np.testing.assert_array_equal(
            kept.reshape(6, 2, -1)[:4], learned.reshape(4, 3, -1)[:, :2], err_msg=name
        )
    assert (np.asarray(pixels.change(less)[0]) > 0).mean() > 0.5


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
        method = cljax.ICaRL(
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
    _, budget, phases = policy_phases(Mnemonics(outer_epochs=3), stream(), 5)
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
        policy = Mnemonics(inner_steps=20, inner_lr=0.3, lr=0.2, outer_epochs=20)
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
    method = cljax.WithExemplars(cljax.ER(lr=0.1, capacity=6), policy, exemplars_per_class=4)
    history = learn(method, mlp(16)(6), stream(), [0, 1], batch_size=8, epochs=5)
    for state in history.states:
        assert bool(state.exemplars.mask.all()) and state.inner.memory is not None
    plain = learn(
        cljax.ER(lr=0.1, capacity=6), mlp(16)(6), stream(), [0, 1], batch_size=8, epochs=5
    )
    last = lambda h: np.mean([m[-1].mean() for m in next(iter(h.evaluations.values()))])
    assert last(history) > last(plain)


@pytest.mark.parametrize(
    "name", ["bic", "icarl", pytest.param("lwf-exemplars", marks=pytest.mark.slow)]
)
def test_they_join_every_class_incremental_method(name):
    method = cljax.methods.make(
        name, lr=0.1, capacity=None, per_class=4, balanced_epochs=2,
        exemplars="mnemonics:inner_steps=2,outer_epochs=2,turns=simultaneous",
    )  # fmt: skip
    state, final = learned(method, "logits", "nearest-mean")
    stored = 18 if name == "bic" else 24  # BiC holds an image a class out, within the budget
    assert min(final.values()) > 0.5 and int(state.exemplars.mask.sum()) == stored


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
        ("mnemonics:gradient=exact", "gradient"),
        ("mnemonics:start=best", "start"),
        ("mnemonics:turns=random", "turns"),
        ("mnemonics:inner_norm=none", "inner_norm"),
        ("mnemonics:inner_norm=batch,gradient=implicit", "choose inner_norm=frozen"),
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
        Mnemonics().init(mlp(5)(6), spec, one)
    Mnemonics(old=False).init(mlp(5)(6), spec, one)
    pair = spec._replace(stored=(spec.example, spec.example))
    with pytest.raises(UserError, match="single arrays"):
        Mnemonics(old=False).init(mlp(5)(6), pair, one)
    mask = np.zeros((2, 3), bool)
    mask[0, :2], mask[1, 2] = True, True
    single = store.budget_of(mask, per_class=4)
    with pytest.raises(UserError, match="brings a single class"):
        Mnemonics().init(mlp(5)(3), spec, single)
    Mnemonics(new=False).init(mlp(5)(3), spec, single)  # old ones have two outputs or more
    with pytest.raises(UserError, match="plan of its own"):
        cljax.WithExemplars(cljax.ICaRL(), exemplars_per_class=2)
