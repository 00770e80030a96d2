"""ER-ACE: steps by hand, in numpy over the rows and classes that count."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

import cljax
from cljax import tree
from cljax.errors import UserError
from cljax.methods import make
from cljax.types import Variables


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


OPTIONS = {"lr": 0.1, "capacity": 6, "replay_size": 3}


def mean_loss(params, x, y, classes, num_outputs):
    """Cross-entropy over a list of classes, which holds every label."""
    model = cljax.nets.mlp(5)(num_outputs)
    logits = model.apply(Variables(params, {}), x, False)[0].logits[:, np.array(classes)]
    own = np.array([classes.index(int(label)) for label in y])
    return -jax.nn.log_softmax(logits)[np.arange(len(own)), own].mean()


def with_labels(rows):
    """Updates of one task over four classes, with these labels."""
    batches = support.batches(len(rows), tasks=1)
    return batches._replace(y=jnp.asarray(rows, jnp.int32))


ROWS = [[0, 0, 1, 0], [1, 1, 1, 0], [3, 3, 0, 3]]  # class 2 never comes


@pytest.mark.parametrize(
    ("unseen", "new", "old"),
    [
        ("compete", [[0, 1, 2, 3], [0, 1, 2, 3], [0, 2, 3]], [0, 1, 2, 3]),
        ("masked", [[0, 1], [0, 1], [0, 3]], [0, 1, 3]),
    ],
)
@pytest.mark.parametrize("updates", [0, 1, 2])
def test_two_steps_by_hand(unseen, new, old, updates):
    learner = support.bind(make("er-ace", unseen=unseen, glances=2, **OPTIONS))
    batches, state = with_labels(ROWS), learner.init(jax.random.key(0))
    if updates:
        state, _ = support.run(learner, jax.tree.map(lambda a: a[:updates], batches))
    batch = support.at(batches, updates)
    draws = jax.device_get(learner.draw(state, batch, jax.random.key(5)))
    old = [c for c in old if unseen == "compete" or c in np.unique(ROWS[: updates + 1])]
    params, losses = state.params, []
    for glance in range(2):
        replay, mask = support.at(draws.replay, glance), draws.replay_mask[glance]
        assert mask.sum() == (3 if updates else 0)

        def loss(params, replay=replay, mask=mask):
            total = mean_loss(params, batch.x, batch.y, new[updates], 4)
            if mask.any():
                total += mean_loss(params, replay.x[mask], replay.y[mask], old, 4)
            return total

        value, grads = jax.value_and_grad(loss)(params)
        params = tree.add_scaled(params, grads, -0.1)
        losses.append(value)
    after, info = learner.update(state, batch, draws)
    support.assert_close(after.params, params, 1e-12)
    np.testing.assert_allclose(info.loss, np.mean(losses), atol=1e-12)


def test_outputs_of_old_classes_without_an_example_get_no_gradient_from_the_batch():
    """The head's rows, where nothing is replayed."""
    learner = support.bind(cljax.ERACE(**OPTIONS))
    batches = with_labels([[0, 1, 0, 1], [3, 3, 3, 3]])
    state, _ = support.run(learner, jax.tree.map(lambda a: a[:1], batches))
    batch = support.at(batches, 1)
    draws = learner.draw(state, batch, jax.random.key(0))
    draws = draws._replace(replay_mask=jnp.zeros_like(draws.replay_mask))
    after, _ = learner.update(state, batch, draws)
    moved = np.asarray(after.params["Dense_1"]["bias"] - state.params["Dense_1"]["bias"])
    assert (moved != 0).tolist() == [False, False, True, True]


def test_the_task_aware_form_learns_the_first_task_plainly():
    """As fine-tuning does; from the second task on it is the task-free form."""
    aware, free = (
        support.bind(make("er-ace", form=f, **OPTIONS)) for f in ("task-aware", "task-free")
    )
    plain = support.bind(cljax.Finetune(lr=0.1))
    batches = with_labels(ROWS)
    state, _ = support.run(aware, batches)
    support.assert_close(state.params, support.run(plain, batches)[0].params, 1e-12)
    later = support.at(batches, 1)
    later = later._replace(clock=later.clock._replace(task=jnp.int32(1)))
    draws = free.draw(state, later, jax.random.key(1))
    support.assert_close(aware.update(state, later, draws), free.update(state, later, draws))
    assert make("er-ace", form="task-aware").needs.boundaries and not cljax.ERACE().needs.boundaries


def test_heads_keep_to_their_own_outputs():
    """Of a second task, with its old classes in another head; and rows of padding stay finite."""
    learner = support.bind(cljax.ERACE(**OPTIONS), multi_head=True)
    batches = support.batches(2, multi_head=True, tasks=2)
    state, _ = support.run(learner, jax.tree.map(lambda a: a[:1], batches))
    batch = support.at(batches, 1)
    mask = np.array([True, True, True, False])
    batch = batch._replace(mask=mask, task=np.where(mask, batch.task, 2).astype(np.int32))
    draws = jax.device_get(learner.draw(state, batch, jax.random.key(2)))
    replay, given = support.at(draws.replay, 0), draws.replay_mask[0]
    seen = set(np.asarray(batches.y[0]).tolist()) | set(np.asarray(batch.y)[:3].tolist())
    second = [c for c in range(4, 8) if c in np.asarray(batch.y)[:3] or c not in seen]

    def loss(params):
        return mean_loss(params, batch.x[:3], batch.y[:3], second, 12) + mean_loss(
            params, replay.x[given], replay.y[given], [0, 1, 2, 3], 12
        )

    grads = jax.grad(loss)(state.params)
    after, _ = learner.update(state, batch, draws)
    support.assert_close(after.params, tree.add_scaled(state.params, grads, -0.1), 1e-12)


def test_another_loss_is_refused():
    words = "er-ace takes no other loss, because it minimises a cross-entropy over some of"
    with jax.enable_x64(False), pytest.raises(UserError, match=words):
        cljax.run(
            cljax.ERACE(), cljax.streams.toy("class"), seeds=1, net="mlp:3",
            loss="binary-cross-entropy", progress=False,
        )  # fmt: skip
