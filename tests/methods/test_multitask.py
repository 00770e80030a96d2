"""The multi-task bound: which old examples its updates see, and a step by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
import transfer_support

import cljax
from cljax.errors import UserError
from cljax.methods.multitask import Multitask
from cljax.options import real_options
from cljax.streams.base import plan
from cljax.types import Batch, Clock, Spec


def widened(method, stream, batch_size=4, epochs=1):
    assert method.arrange is not None
    return plan(method.arrange(stream), 0, batch_size, epochs)


@pytest.mark.parametrize("old_size", [None, 7])
def test_updates_hold_the_batch_and_old_examples(old_size):
    stream = support.stream(per_task=14)
    rows, plain = widened(Multitask(old_size=old_size), stream), plan(stream, 0, 4)
    old = old_size or 4
    assert rows.index.shape == rows.task.shape == rows.mask.shape == (12, 4 + old)
    for wide, column in zip(rows[:3], plain[:3], strict=True):
        np.testing.assert_array_equal(wide[:, :4], column)
    for wide, column in zip(rows[3:], plain[3:], strict=True):
        np.testing.assert_array_equal(wide, column)
    subsets = stream.subsets(0)
    owner = {int(row): t for t, subset in enumerate(subsets) for row in subset}
    assert not rows.mask[rows.current == 0, 4:].any()
    for task in (1, 2):
        own = rows.current == task
        assert rows.mask[own, 4:].all() and (rows.task[own, 4:] < task).all()
    assert all(owner[int(i)] == t for i, t in zip(rows.index.flat, rows.task.flat, strict=True))


def test_every_old_example_is_as_likely_and_may_come_twice():
    stream = transfer_support.stream(((0, 1, 2, 3), (4, 5), (6, 7)), held=(), steps=400, pretrain=2)
    rows = widened(Multitask(), stream, batch_size=5)
    last = rows.current == 2
    sizes = [len(s) for s in stream.subsets(0)]
    counts = np.bincount(rows.index[last, 5:].reshape(-1), minlength=len(stream.train_y))
    seen = counts[np.concatenate(stream.subsets(0)[:2])]
    assert seen.sum() == 400 * 5 and seen.min() > 0 and seen.max() < 4 * seen.mean()
    share = (rows.task[last, 5:] == 0).mean()
    assert abs(share - sizes[0] / (sizes[0] + sizes[1])) < 0.03
    draws = [rows.index[rows.current == t, 5:] for t in (1, 2)]
    assert (draws[0] != draws[1]).any()


def test_a_step_is_the_mean_over_old_and_new_examples():
    """A linear network of two heads by hand; the last example is padding."""
    with jax.enable_x64(True):
        mask = np.kron(np.eye(2, dtype=bool), np.ones((1, 2), bool))
        spec = Spec(jax.ShapeDtypeStruct((3,), jnp.float64), mask, 2, multi_head=True)
        learner = Multitask(lr=0.5, old_size=3).bind(cljax.nets.mlp()(4), spec)
        assert learner.examples_per_update == 5
        rng = np.random.default_rng(0)
        x, task = rng.normal(size=(5, 3)), np.array([1, 1, 0, 0, 1])
        y = np.array([3, 2, 0, 1, 3])
        valid = np.array([True, True, True, True, False])
        clock = Clock(*(jnp.asarray(v) for v in (1, 0, 0, True, False)))
        batch = Batch(*(jnp.asarray(a) for a in (x, y, task, valid)), None, clock)
        state = learner.init(jax.random.key(0))
        after, info = learner.update(state, batch, learner.draw(state, batch, None))
        old = jax.tree.map(np.asarray, state.params["Dense_0"])
        scores = np.where(mask[task], np.exp(x @ old["kernel"] + old["bias"]), 0.0)
        p = scores / scores.sum(1, keepdims=True)
        error = (p - np.eye(4)[y])[valid] / 4
        np.testing.assert_allclose(info.loss, -np.log(p[range(4), y[:4]]).mean(), rtol=1e-12)
        new = after.params["Dense_0"]
        np.testing.assert_allclose(new["kernel"], old["kernel"] - 0.5 * x[valid].T @ error)
        np.testing.assert_allclose(new["bias"], old["bias"] - 0.5 * error.sum(0))


def test_it_remembers_what_plain_steps_forget():
    kept = {}
    for name, method in (("multitask", Multitask(lr=0.3)), ("sgd", cljax.SGD(lr=0.3))):
        run = cljax.run(
            method, transfer_support.stream(held=(), steps=60, pretrain=100), seeds=1,
            net=cljax.nets.mlp(6, 4), batch_size=5,
        )  # fmt: skip
        matrix = run.accuracy_matrix()[0]
        kept[name] = matrix[1, 0] - matrix[2, 0]
    assert kept["multitask"] < kept["sgd"] - 0.05


def test_its_rate_may_be_traced():
    assert real_options(Multitask(lr=0.2)) == ("lr",)


@pytest.mark.parametrize("options", [{"old_size": 0}, {"lr": float("nan")}, {"optimizer": "sdg"}])
def test_bad_options_are_refused(options):
    with pytest.raises(UserError):
        Multitask(**options)
