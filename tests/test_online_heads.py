"""Online accuracy: each new example once, over the outputs that its loss sees."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from support import learn

import cljax
from cljax.method import Method
from cljax.streams.base import batches, plan
from cljax.types import (
    Evaluation,
    Info,
    Model,
    Output,
    Predictor,
    StepPlan,
    Variables,
)  # fmt: skip

T, C, EACH, BATCH = 3, 6, 10, 4


class State(NamedTuple):
    params: Any
    model_state: Any = ()


# The network's outputs are the example, and nothing is learned, so each count is known by hand.
AS_IT_IS = Model(
    lambda key, x: Variables(jnp.zeros(()), ()),
    lambda variables, x, train: (Output(x, x), ()),
)


def method(arrange=lambda stream: stream) -> Method:
    class Still(Method):
        def init(self, problem, key):
            return State(jnp.zeros(()))

        def update(self, problem, state, batch, draws):
            return state, Info(jnp.zeros(()))

        def predictors(self, problem):
            return {"logits": Predictor(lambda state: state.params, lambda view, batch: batch.x)}

        def arrange(self, stream):
            return arrange(stream)

    return Still()


def stream(scenario, **options):
    rng = np.random.default_rng(3)
    y = np.repeat(np.arange(C), EACH // 2)
    x = rng.normal(size=(len(y), C)) + np.eye(C)[y] + 0.3 * np.arange(C)
    train = (x.astype(np.float32), y, y // 2)
    return cljax.streams.from_arrays(
        train, test=train, val=0.0, dtype="float32", scenario=scenario, **options
    )


def online(source, how=None, epochs=1, seeds=(0,), **options):
    return learn(
        how or method(), AS_IT_IS, source, list(seeds), batch_size=BATCH, epochs=epochs,
        online=True, entries="diagonal-last", **options,
    )  # fmt: skip


def accuracy(history):
    return cljax.metrics.prequential_accuracy(history.online_correct, history.online_sizes)


def share(source, mask) -> float:
    """By hand: the share of the examples whose label is the largest output in ``mask`` [N, C]."""
    among = np.where(mask, source.train_x, -np.inf)
    return float(np.mean(among.argmax(axis=1) == source.train_y))


def test_each_example_is_asked_over_its_own_head_in_streams_with_heads():
    for scenario in ("task", "class", "domain"):
        source = stream(scenario)
        heads = source.class_mask[source.train_y // 2]
        mask = heads if scenario == "task" else np.ones_like(heads)
        history = online(source)
        assert accuracy(history) == pytest.approx([share(source, mask)])
        assert history.online_sizes.tolist() == [4, 4, 2] * T
    own = stream("task").class_mask[source.train_y // 2]
    assert share(source, own) > share(source, np.ones_like(own)) + 0.1


def test_heads_are_those_of_each_seeds_own_order_of_the_classes():
    orders = {0: np.arange(C), 1: np.array([2, 4, 0, 5, 1, 3]), 2: np.arange(C)[::-1]}
    source = stream("task")

    def subsets(seed):
        outputs = orders[seed][source.train_y]
        return tuple(np.flatnonzero(outputs // 2 == t).astype(np.int32) for t in range(T))

    source = dataclasses.replace(
        source, class_orders=lambda seed: orders[seed].astype(np.int32), test_index=(),
        subsets=subsets,
    )  # fmt: skip
    history = online(source, seeds=(0, 1, 2))
    for seed, found in enumerate(accuracy(history)):
        labels = orders[seed][source.train_y]
        among = np.where(source.class_mask[labels // 2], source.train_x, -np.inf)
        assert found == pytest.approx(np.mean(among.argmax(axis=1) == labels))


def test_a_later_pass_counts_nothing():
    source = stream("class")
    once, thrice = online(source), online(source, epochs=3)
    assert accuracy(once) == pytest.approx(accuracy(thrice))
    assert thrice.online_sizes.sum() == len(source.train_y)
    assert thrice.batch_sizes.sum() == 3 * len(source.train_y)  # what was learned from, for costs


def again(source):
    """A plan that shows, beside each task's examples, one of task 0 and one remembered."""

    def planner(seed: int, batch_size: int, epochs: int) -> StepPlan:
        parts = []
        for task, rows in enumerate(source.subsets(seed)):
            old = np.array([source.subsets(seed)[0][0], -2], np.int32)
            both = np.concatenate([rows, old if task else old[:0]])
            tasks = np.where(np.arange(len(both)) < len(rows), task, 0).astype(np.int32)
            parts.append(batches(both, tasks, batch_size, current=task, last=True))
        return StepPlan(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    return dataclasses.replace(source, planner=planner)


def test_replayed_and_remembered_examples_count_nothing():
    source = stream("task")
    wide = online(source, method(again))
    assert accuracy(wide) == pytest.approx(accuracy(online(source)))
    assert wide.online_sizes.sum() == len(source.train_y) < wide.batch_sizes.sum()


@pytest.mark.parametrize("make", [cljax.Joint, cljax.Multitask])
def test_bounds_that_show_old_examples_again_count_them_once(make):
    source = cljax.streams.in_order(stream("class"))
    rows = plan(make().arrange(source), 0, BATCH, 2)
    assert rows.mask.sum() > 2 * len(source.train_y)
    from cljax.engine.programs import arriving

    new = arriving(rows.mask, rows.index, rows.task, rows.current, rows.first_pass, boundaries=True)
    assert sorted(rows.index[new]) == list(range(len(source.train_y)))


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_streams_without_boundaries_count_every_example_once(order):
    source = cljax.streams.task_free(stream("class"), order=order)
    history = online(source, epochs=2)
    assert history.online_sizes.sum() == len(source.train_y)
    assert accuracy(history) == pytest.approx([share(source, np.ones((1, C), bool))])


def test_without_an_evaluation_named_a_stream_with_heads_is_tested_by_head():
    source = stream("task")
    by_default = online(source).evaluations["logits"]
    named = online(source, evaluations=[Evaluation(scenario="task")]).evaluations["logits"]
    np.testing.assert_array_equal(by_default, named)
    everything = online(source, evaluations=[Evaluation()]).evaluations["logits"]
    assert np.nanmean(everything) < np.nanmean(by_default)
