"""A class order for each seed: rows, labels, tests, and runs that see them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pictures_support import pictures
from support import learn

import cljax
from cljax import keys, streams
from cljax.engine.programs import AUGMENT, make_step, train_data
from cljax.errors import UserError
from cljax.evaluation.accuracy import Evaluation
from cljax.evaluation.accuracy import test_data as measured_on
from cljax.streams import on_validation, plan, rows_used
from cljax.streams.base import of_seed
from cljax.streams.classes import class_groups

LAMAML = {"class_order": "per-seed", "multi_head": True, "augment": "crop-flip-brightness"}


def whole(**options):
    return streams.CIFAR100(**{"classes_per_task": 5, **LAMAML, **options}).build(pictures())


def test_labels_are_places_in_the_seeds_order():
    stream = whole()
    assert stream.scenario == "task" and stream.class_orders is not None
    orders = [stream.class_orders(seed) for seed in (0, 1)]
    assert not np.array_equal(*orders) and stream.test_index == ()
    assert stream.spec(10).train_y is None
    for seed, outputs in enumerate(orders):
        groups = class_groups(100, 5, order="seeded", seed=seed)
        learned, held, tested = stream.subsets(seed), stream.valid(seed), stream.tests(seed)
        for task, classes in enumerate(groups):
            assert outputs[classes].tolist() == list(range(5 * task, 5 * task + 5))
            assert not np.intersect1d(learned[task], held[task]).size
            for rows, labels, each in (
                (learned[task], stream.train_y, 18), (held[task], stream.train_y, 2),
                (tested[task], stream.test_y, 3),
            ):  # fmt: skip
                found, counts = np.unique(labels[rows], return_counts=True)
                assert set(found) == set(classes) and (counts == each).all()
    assert not np.array_equal(stream.subsets(0)[0], whole(class_order="natural").subsets(0)[0])


def test_fewer_classes_are_the_first_of_each_seeds_order():
    stream = whole(classes=10, samples_per_task=30)
    assert stream.num_tasks == 2 and stream.num_classes == 10
    assert [len(rows) for rows in stream.subsets(3)] == [30, 30]
    used = np.flatnonzero(stream.class_orders(3) >= 0)
    assert sorted(np.concatenate(class_groups(100, 5, order="seeded", seed=3))[:10]) == list(used)
    assert sum(map(len, stream.tests(3))) == 30


def test_one_seeds_stream_and_its_validation():
    stream = whole()
    own = of_seed(stream, 4)
    assert own.class_orders is None and own.checksum != of_seed(stream, 5).checksum
    assert np.array_equal(own.train_y, stream.class_orders(4)[stream.train_y])
    tuning = on_validation(stream, 4)
    for task in range(20):
        assert (own.test_y[own.test_index[task]] // 5 == task).all()
        assert (tuning.test_y[tuning.test_index[task]] // 5 == task).all()
    kept = rows_used(stream, [0, 4])
    assert np.array_equal(kept["seed4_class_outputs"], stream.class_orders(4))
    shared = whole(class_order="natural")
    assert of_seed(shared, 4) is shared


@pytest.mark.parametrize("lanes", ["sequential", "vmap"])
@pytest.mark.parametrize("validate", [False, True])
def test_a_run_of_many_seeds_is_that_of_each_seeds_stream(lanes, validate):
    stream = whole(classes=10, samples_per_task=20, augment="none")
    method, model = cljax.ER(lr=0.05, capacity=6, replay_size=2), cljax.nets.mlp(3)(10)
    options = dict(
        batch_size=10, evaluations=[Evaluation(scenario="task")], entries="diagonal-last",
        validate=validate,
    )  # fmt: skip
    together = learn(method, model, stream, [0, 1], lanes=lanes, **options)
    for i, seed in enumerate((0, 1)):
        alone = learn(method, model, of_seed(stream, seed), [seed], lanes="sequential", **options)
        np.testing.assert_allclose(together.losses[i], alone.losses[0], 1e-5)
        np.testing.assert_array_equal(
            together.evaluations["logits"][i], alone.evaluations["logits"][0]
        )
    assert not np.allclose(together.losses[0], together.losses[1])


def test_the_memory_stores_what_was_seen():
    stream = of_seed(whole(classes=10, samples_per_task=20), 2)
    learner = cljax.LaMAML(capacity=40, glances=2, replay_size=2, inner_steps=2).bind(
        cljax.nets.mlp(3)(10), stream.spec(10)
    )
    seen = []

    def update(state, batch, draws):
        seen.append(batch.x)
        return learner.update(state, batch, draws)

    step = make_step(learner._replace(update=update), stream.transform, None)
    state, key = learner.init(keys.purpose(2, "init")), keys.purpose(2, "update")
    rows = plan(stream, 2, 10, epochs=2)
    assert rows.epoch[:4].tolist() == [0, 0, 1, 1]
    data = train_data(stream)
    for i in range(4):
        row = jax.tree.map(lambda a, i=i: jnp.asarray(a[i]), rows)
        state, _, _ = step(state, row, data, key, jnp.asarray(i))
        # The draws are recorded: made again, they show the same images.
        augment = stream.transform.augment
        drawn = augment.draw(jax.random.fold_in(jax.random.fold_in(key, i), AUGMENT), 10)
        assert len(drawn) == 3 and drawn[2].shape == (10,)
        shown = augment.apply(jnp.asarray(stream.train_x[rows.index[i]]), drawn)
        np.testing.assert_array_equal(
            seen[i], stream.transform.apply((), shown, jnp.zeros(10, jnp.int32))
        )
    stored = state.memory.data.x
    np.testing.assert_array_equal(stored[:20], np.concatenate(seen[:2]))  # of the first pass
    assert int(state.memory.age) == 20 and not np.any(stored[20:])
    first, second = (np.sort(rows.index[2 * e : 2 * e + 2].ravel()) for e in (0, 1))
    assert np.array_equal(first, second)  # the same images, augmented anew
    again = {row.tobytes() for row in np.concatenate(seen[2:])}
    assert not again & {row.tobytes() for row in np.concatenate(seen[:2])}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes_per_task": 7}, "classes_per_task is 7, which does not divide the 100 classes"),
        ({"classes": 23}, "classes_per_task is 5, which does not divide the 23 classes"),
        ({"multi_head": False}, "class_order is per-seed with one head"),
        ({"samples_per_task": 91}, "samples_per_task is 91, but a task of cifar100-20x5 has only"),
        ({"stream_manifest": "x.npz"}, "recorded rows are of one order"),
    ],
)
def test_wrong_options_get_a_sentence(options, message):
    with pytest.raises(UserError, match=message):
        whole(**options)


def test_images_of_another_size_get_a_sentence():
    data = pictures()
    with pytest.raises(UserError, match=r"shape \[28, 28, 3\], but this stream needs \[32, 32"):
        streams.CIFAR100().build(data._replace(train_x=data.train_x[:, 2:30, 2:30]))
    with pytest.raises(UserError, match=r"shape \[32, 30, 3\]"):
        streams.CIFAR100().build(data._replace(test_x=data.test_x[:, :, 2:]))


def test_a_narrow_head_and_shared_tests_get_a_sentence():
    stream = whole()
    with pytest.raises(UserError, match="has 10 outputs, but cifar100-20x5 has 100 classes"):
        learn(cljax.ER(), cljax.nets.mlp(3)(10), stream, [0], batch_size=10)
    with pytest.raises(UserError, match="has a class order for each seed"):
        measured_on(stream)
