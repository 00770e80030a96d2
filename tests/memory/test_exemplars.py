"""Budgets, slots and plans with exemplars, attached to a method that knows nothing of them."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from hypothesis import given, settings
from hypothesis import strategies as st
from support import learn

import cljax
from cljax.errors import UserError
from cljax.memory import exemplars, policies, selection
from cljax.memory.policy import ExemplarPolicy
from cljax.method import Method
from cljax.methods import METHODS, make
from cljax.nets import mlp
from cljax.options import positional
from cljax.runner.options import RunOptions
from cljax.runner.prepare import prepare
from cljax.streams.base import Augmentation, plan
from cljax.types import Info

NUM_TASKS = 3


class State(NamedTuple):
    params: dict
    model_state: dict
    exemplars: exemplars.Exemplars
    seen: jax.Array  # what replayed images sum to, and how many there were


def stream(**changes):
    """Three tasks with two classes each, of unequal counts; task 2's second has three examples."""
    sizes = [8, 5, 7, 6, 9, 3]
    y = np.repeat(np.arange(6), sizes).astype(np.int32)
    rng = np.random.default_rng(0)
    x = rng.integers(1, 256, (len(y), 2, 3)).astype(np.uint8)
    rows = [np.flatnonzero(y // 2 == t).astype(np.int32) for t in range(NUM_TASKS)]
    own = np.arange(6) // 2 == np.arange(NUM_TASKS)[:, None]
    shuffled = lambda seed: tuple(np.random.default_rng(seed).permutation(r) for r in rows)
    fields = {
        "train_x": x, "train_y": y, "test_x": x, "test_y": y, "class_mask": own,
        "test_index": tuple(rows), "subsets": shuffled, "scenario": "class",
        "valid": lambda seed: tuple(rows), "transform": support.stream().transform,
    }  # fmt: skip
    return support.stream(**{**fields, **changes})


class Idle(Method):
    """A method that never learns, but adds up the exemplars that its batches hold."""

    policy: ExemplarPolicy = positional(default=selection.Random())
    total: int | None = 12
    per_class: int | None = None

    def budget(self, spec):
        return exemplars.budget_of(spec.class_mask, total=self.total, per_class=self.per_class)

    def init(self, problem, key):
        kept = self.policy.init(*problem, self.budget(problem.spec))
        return State(*problem.variables(key), kept, jnp.zeros(2, jnp.int32))

    def update(self, problem, state, batch, draws):
        old = (batch.index < -1) & batch.mask
        pixels = jnp.round(batch.x.sum(axis=1) * 255).astype(jnp.int32)
        seen = state.seen + jnp.array([jnp.sum(jnp.where(old, pixels, 0)), jnp.sum(old)])
        return state._replace(seen=seen), Info(jnp.zeros(()))

    def phases(self, problem):
        return self.policy.phases(*problem, self.budget(problem.spec))

    def recall(self, problem):
        return lambda state, x, y, index: exemplars.recall(state.exemplars, x, y, index)

    def arrange(self, stream):
        return exemplars.replayed(stream, self.budget(stream.spec(1)))


def final(policy, seeds=(0,), **budget):
    history = learn(Idle(policy, **budget), mlp(5)(6), stream(), seeds, batch_size=5, epochs=2)
    return history.states


def held(kept: exemplars.Exemplars) -> dict[int, list[int]]:
    """Rows of each class, in the order of their slots."""
    found = {}
    for i in np.flatnonzero(kept.mask):
        found.setdefault(int(kept.y[i]), []).append(int(kept.index[i]))
    return found


@pytest.mark.parametrize("name", sorted(selection.SELECTIONS))
@pytest.mark.parametrize("budget", [{"total": 12}, {"total": None, "per_class": 4}])
def test_each_class_keeps_its_share_of_distinct_examples_of_its_own(name, budget):
    source = stream()
    share = 2 if budget["total"] else 4
    for seed, state in zip((0, 1), final(policies.named(name), (0, 1), **budget), strict=True):
        kept = held(state.exemplars)
        counts = np.bincount(source.train_y)
        assert {c: len(rows) for c, rows in kept.items()} == {
            c: min(share, n) for c, n in enumerate(counts)
        }
        for label, rows in kept.items():
            assert len(set(rows)) == len(rows) and (source.train_y[rows] == label).all(), seed
        slots = np.flatnonzero(state.exemplars.mask)
        np.testing.assert_array_equal(
            state.exemplars.x[slots], source.train_x[state.exemplars.index[slots]]
        )
        np.testing.assert_array_equal(state.exemplars.task[slots], state.exemplars.y[slots] // 2)
        assert int(state.exemplars.mask.sum()) <= (budget["total"] or 24)


def test_random_exemplars_differ_between_seeds_and_first_ones_do_not():
    source = stream()
    one, two = (held(state.exemplars) for state in final(selection.Random(), (0, 1)))
    assert one != two
    kept = held(final(selection.First())[0].exemplars)
    for label, rows in kept.items():
        assert rows == np.flatnonzero(source.train_y == label)[: len(rows)].tolist()


@pytest.mark.parametrize("name", sorted(selection.SELECTIONS))
def test_a_smaller_share_keeps_the_first_exemplars(name):
    """The same run with fewer tasks has more exemplars of each class; the longer one a prefix."""
    whole = stream()
    short = stream(
        class_mask=whole.class_mask[:2], test_index=whole.test_index[:2],
        subsets=lambda seed: whole.subsets(seed)[:2], valid=lambda seed: whole.valid(seed)[:2],
    )  # fmt: skip
    method = Idle(policies.named(name))
    states = [learn(method, mlp(5)(6), s, [0], batch_size=5, epochs=1) for s in (short, whole)]
    more, less = (held(history.states[0].exemplars) for history in states)
    for label, rows in more.items():
        assert less[label] == rows[: len(less[label])] and len(rows) > len(less[label])


def test_batches_hold_each_exemplar_once_an_epoch_as_it_is_stored():
    source = stream()
    state = final(selection.First())[0]
    total, number = 0, 0
    for seen, share in ((2, 6), (4, 3)):  # 12 exemplars over 2 classes, then over 4
        for label in range(seen):
            rows = np.flatnonzero(source.train_y == label)[:share]
            total, number = total + 2 * int(source.train_x[rows].sum()), number + 2 * len(rows)
    np.testing.assert_array_equal(state.seen, [total, number])


def test_exemplars_are_augmented_as_new_examples_are_and_stored_as_they_were():
    """By an augmentation that makes negatives."""
    source = stream()
    negative = Augmentation(lambda key, count: (), lambda x, draws: 255 - x)
    source = replace(source, transform=source.transform._replace(augment=negative))
    method = Idle(selection.First())
    state = learn(method, mlp(5)(6), source, [0], batch_size=5, epochs=2).states[0]
    plain = final(selection.First())[0]
    total, number = plain.seen
    np.testing.assert_array_equal(state.seen, [6 * 255 * number - total, number])
    np.testing.assert_array_equal(state.exemplars.x, plain.exemplars.x)


def test_herding_with_repeats_is_the_greedy_rule_but_for_them():
    """On unit features: against a plain loop where rows win again, and the greedy rule where none
    does; more exemplars begin with the fewer."""
    herd = jax.jit(selection.herd, static_argnames=("num", "repeats"))
    again = 0
    for seed in range(20):
        features = np.random.default_rng(seed).normal(size=(9, 3))
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        mask = np.arange(9) != 4
        mean = features[mask].mean(axis=0)
        w, ranks, wins = mean, [], 0
        while len(ranks) < 5:
            row = int(np.argmax(np.where(mask, features @ w, -np.inf)))
            ranks += [row] * (row not in ranks)
            w, wins = w + mean - features[row], wins + 1
        every = jnp.asarray(features), jnp.asarray(mask)
        found = [herd(*every, num=5, repeats=repeats).tolist() for repeats in (True, False)]
        assert found[0] == ranks
        again += wins > 5
        if wins == 5:
            assert found[1] == ranks
        for repeats, whole in zip((True, False), found, strict=True):
            assert herd(*every, num=3, repeats=repeats).tolist() == whole[:3]
    assert 3 < again < 17, again


def test_the_plan_is_the_union_shuffled_anew_in_every_epoch():
    source, budget = stream(), exemplars.budget_of(stream().class_mask, total=12)
    arranged = exemplars.replayed(source, budget, first_epochs=1)
    rows = plan(arranged, 0, 4, 3)
    for task, epochs in ((0, 1), (1, 3), (2, 3)):
        found = []
        for epoch in range(epochs):
            own = rows.mask & ((rows.current == task) & (rows.epoch == epoch))[:, None]
            found.append(rows.index[own].tolist())
            new = [i for i in found[-1] if i >= 0]
            assert sorted(new) == sorted(source.subsets(0)[task].tolist())
            slots = sorted(-2 - i for i in found[-1] if i < 0)
            # Class 1 has only five examples for its share of six.
            expected = {0: [], 1: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 2: list(range(12))}
            assert slots == expected[task]
        assert len({tuple(f) for f in found}) == epochs
        assert rows.last[rows.current == task].sum() == 1
    everything = plan(exemplars.replayed(source, None), 0, 4, 1)
    last = everything.index[everything.mask & (everything.current == 2)[:, None]]
    assert sorted(last.tolist()) == list(range(len(source.train_y)))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 40))
def test_a_total_is_never_exceeded_and_every_class_has_its_slots(widths, spare):
    owner = np.repeat(np.arange(len(widths)), widths)
    mask = owner == np.arange(len(widths))[:, None]
    budget = exemplars.budget_of(mask, total=len(owner) + spare)
    assert budget.capacity <= len(owner) + spare
    assert (budget.shares * budget.seen <= len(owner) + spare).all() and budget.shares.min() >= 1
    for task in range(len(widths)):
        slots = [exemplars.slots_of(budget, k, task) for k in range(budget.seen[task])]
        used = np.concatenate(slots)
        used = used[used < budget.capacity]
        assert len(used) == len(set(used.tolist())) == budget.shares[task] * budget.seen[task]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 4000),
    st.sampled_from([((7,), "uint8"), ((2, 3), "uint8"), ((5,), "float32")]),
)  # fmt: skip
def test_bytes_are_never_exceeded_and_no_exemplar_more_would_fit(widths, spare, form):
    example = jax.ShapeDtypeStruct(*form)
    owner = np.repeat(np.arange(len(widths)), widths)
    mask = owner == np.arange(len(widths))[:, None]
    each = np.zeros(*form).nbytes
    total_bytes = len(owner) * each + spare
    budget = exemplars.budget_of(mask, total_bytes=total_bytes, example=example)
    assert budget.capacity * each <= total_bytes
    assert (budget.shares * budget.seen * each <= total_bytes).all()
    assert ((budget.shares + 1) * budget.seen * each > total_bytes).all()
    assert budget.shares.min() >= 1


BUDGETS = {
    "capacity": "exemplar_capacity",
    "per_class": "exemplars_per_class",
    "capacity_bytes": "exemplar_capacity_bytes",
}
CARRIERS = {
    **{
        name: functools.partial(make, name)
        for name, made in METHODS.items()
        if isinstance(made, Method) and "per_class" in made.options
    },
    "with-exemplars": lambda **budget: cljax.WithExemplars(
        cljax.ER(), "herding", **{BUDGETS[name]: value for name, value in budget.items()}
    ),
}


@pytest.mark.parametrize("name", sorted(CARRIERS))
def test_a_budget_in_bytes_is_one_of_as_many_whole_exemplars(name):
    """Of six bytes each, 13 for six classes; in the state and in the plan."""
    source, net = stream(), mlp(5, head="cosine")(6)
    states, plans = [], []
    for budget in ({"capacity": None, "capacity_bytes": 13 * 6 + 5}, {"capacity": 13}):
        method = CARRIERS[name](**budget)
        arranged = method.arrange(source)
        init = method.bind(net, arranged.spec(4)).init
        states.append(jax.eval_shape(init, jax.random.key(0)).exemplars)
        plans.append(plan(arranged, 0, 4, 2))
    size = 10 if name == "bic" else 12  # one of each class is held out: 5, 2 and 1 are left
    assert states[0].y.shape == states[1].y.shape == (size,)
    jax.tree.map(np.testing.assert_array_equal, *plans)
    assert (plans[0].index < -1).any()
    for strange in ({"capacity_bytes": 60}, {"capacity": 9, "per_class": 2, "capacity_bytes": 6}):
        with pytest.raises(UserError, match="a budget of exemplars is one of them"):
            CARRIERS[name](**{"capacity": 2000, **strange})
    with pytest.raises(UserError, match="capacity_bytes is 0"):
        CARRIERS[name](capacity=None, capacity_bytes=0)
    small = CARRIERS[name](capacity=None, capacity_bytes=35)
    with pytest.raises(UserError, match="35 bytes, but it must be at least 36, one of 6 bytes"):
        small.arrange(source)


def test_budgets_and_streams_that_do_not_fit_are_refused():
    mask = stream().class_mask
    pixel = jax.ShapeDtypeStruct((28, 28), np.uint8)
    with pytest.raises(UserError, match="4703 bytes, but it must be at least 4704, .* 784 bytes"):
        exemplars.budget_of(mask, total_bytes=4703, example=pixel)
    with pytest.raises(UserError, match="give one of them"):
        exemplars.budget_of(mask, total=9, total_bytes=9000, example=pixel)
    with pytest.raises(UserError, match="budget of exemplars is 5, but it must be at least 6"):
        exemplars.budget_of(mask, total=5)
    with pytest.raises(UserError, match="per_class is 0"):
        exemplars.budget_of(mask, per_class=0)
    with pytest.raises(UserError, match="give one of them"):
        exemplars.budget_of(mask)
    with pytest.raises(UserError, match="no class belongs to two tasks"):
        exemplars.budget_of(np.ones((2, 3), bool), total=9)
    with pytest.raises(UserError, match="exemplar policy 'herdin' is not known"):
        policies.named("herdin")


class LikeHerding(selection.Herding, name="herding"):
    """One's own, which is called as one of the library is."""


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("herding", selection.Herding()),
        ("first", selection.First()),
        ("mnemonics:old=false,inner_steps=7,inner_lr=0.1",
         cljax.memory.Mnemonics(inner_steps=7, inner_lr=0.1, old=False)),
        ("mnemonics-released", cljax.memory.MnemonicsReleased()),
    ],
)  # fmt: skip
def test_a_policy_of_the_library_and_its_name_are_one(name, made):
    def config_of(method):
        return prepare(method, stream(), RunOptions(seeds=1, net=mlp(3), batch_size=4)).config

    for method in (
        lambda policy: cljax.ICaRL(exemplars=policy, capacity=12),
        lambda policy: cljax.WithExemplars(cljax.ER(), policy, exemplars_per_class=2),
    ):
        first, second = (config_of(method(policy)) for policy in (name, made))
        assert first["config_hash"] == second["config_hash"]
        assert second["method"] == first["method"] and second["identity"] == first["identity"]


def test_ones_own_policy_is_none_of_the_library_whatever_its_name():
    assert policies.called(LikeHerding()) == LikeHerding()
    assert cljax.LUCIR(exemplars=LikeHerding()).recorded["exemplars"] == LikeHerding()
