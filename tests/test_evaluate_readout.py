"""Readouts of runs: of any method, at any step, equal to a readout by hand."""

from __future__ import annotations

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from support import learn

import cljax
from cljax.cli.command import main
from cljax.engine import driver
from cljax.engine.learn import Checkpoints
from cljax.errors import Interrupted, UserError
from cljax.evaluation.accuracy import Evaluation
from cljax.method import check_features, with_features
from cljax.methods import METHODS
from cljax.nets import mlp
from cljax.runner.config import entry_of, evaluation_of
from cljax.types import Features, Predictor, Readout, Variables

FINETUNE = cljax.Finetune(lr=0.1)
READOUT = Evaluation("readout", "features", "task", readout=Readout(steps=4))
BOTH = (Evaluation(scenario="class"), READOUT)
GROUPS = ([0, 2, 3], [1, 3])  # classes of two tasks: not as many in each, and not side by side


def stream(**changes):
    """Two tasks with classes of their own, and unequal numbers of examples."""
    whole = support.stream(2, 20)
    mask = np.isin(np.arange(support.NUM_CLASSES), GROUPS[0]), np.isin(np.arange(4), GROUPS[1])

    def rows_of(y, limits):
        return tuple(
            np.flatnonzero(own[y])[:limit].astype(np.int32)
            for own, limit in zip(mask, limits, strict=True)
        )

    def subsets(seed):
        order = np.random.default_rng(seed).permutation(40)
        return tuple(order[rows] for rows in rows_of(whole.train_y[order], (18, 11)))

    fields = {
        "class_mask": np.stack(mask), "subsets": subsets, "scenario": "class",
        "test_index": rows_of(whole.test_y, (7, 5)),
        "valid": lambda seed: tuple(40 + rows for rows in rows_of(whole.train_y[40:], (9, 6))),
    }  # fmt: skip
    return support.stream(2, 20, **{**fields, **changes})


def run(folder=None, *, method=FINETUNE, seeds=(0, 1), stop_after=None, **options):
    asked = iter(range(10**6))
    where = stream() if options.get("stream") is None else options.pop("stream")
    return learn(
        method, mlp(5)(support.NUM_CLASSES), where, list(seeds), batch_size=4,
        checkpoints=folder and Checkpoints(folder, {"config_hash": "one"}),
        interrupted=lambda: stop_after is not None and next(asked) >= stop_after,
        **{"evaluations": BOTH, "eval_every": 2, "segment": 2, "checkpoint_every": "1", **options},
    )  # fmt: skip


def by_hand(where, model, state, seed, task, options, test=None):
    """The accuracy of a readout of a task, from the final state of a run."""

    def features(x, rows):
        tasks = jnp.full(len(rows), task, jnp.int32)
        seen = where.transform.apply(jax.tree.map(jnp.asarray, where.transform.tables), x, tasks)
        return model.apply(Variables(state.params, state.model_state), seen, False)[0].features

    own = np.flatnonzero(where.class_mask[task])
    fit = where.subsets(seed)[task]
    test_x, test_y, rows = test or (where.test_x, where.test_y, where.test_index[task])
    found = cljax.evaluation.readout(
        Features(
            features(jnp.asarray(where.train_x[fit]), fit), np.searchsorted(own, where.train_y[fit])
        ),
        Features(features(jnp.asarray(test_x[rows]), rows), np.searchsorted(own, test_y[rows])),
        num_classes=len(own), steps=options.steps, lr=options.lr,
    )  # fmt: skip
    return float(found.accuracy)


def assert_same(a, b):
    """Everything but times."""
    jax.tree.map(np.testing.assert_array_equal, a._replace(time={}), b._replace(time={}))


@pytest.fixture(name="digits", scope="module")
def _digits():
    with jax.enable_x64(True):
        where = cljax.streams.SplitMNIST(sample=True, num_tasks=2, samples_per_task=80).build()
        done = cljax.run(
            FINETUNE, where, seeds=1, net="mlp:16", batch_size=10, eval_every=4, readout=True,
            precision="float64",
        )  # fmt: skip
    return where, done


def test_features_remember_what_the_head_forgot(digits):
    _, done = digits
    (first,), (matrix,) = done.accuracy_matrix(), done.accuracy_matrix("readout")
    known = matrix[np.isfinite(matrix)]
    assert matrix.shape == (3, 2) and len(known) == 5 and ((known >= 0) & (known <= 1)).all()
    assert matrix[2, 0] > first[2, 0] + 0.1 and matrix[2, 0] > 0.6
    entry = done.results["evaluations"]["readout"]
    assert entry["readout"] == {"steps": 500, "lr": 0.1} and entry["task_ids"]
    values = {name: cell["values"][0] for name, cell in entry["metrics"].items()}
    assert {"RA", "LA", "BTI", "forgetting", "F"} <= set(values)
    lost = matrix[1, 0] - matrix[2, 0]  # of two tasks each of these is the representational one
    np.testing.assert_allclose([values["F"], values["forgetting"], -2 * values["BTI"]], lost)
    assert done.metric("RA")[0] == pytest.approx(first[2].mean())  # the headline is as before


def test_entries_equal_a_readout_by_hand(digits):
    where, done = digits
    model = mlp(16)(where.num_classes)
    with jax.enable_x64(True):
        expected = [by_hand(where, model, done.states[0], 0, t, Readout()) for t in range(2)]
    np.testing.assert_allclose(done.accuracy_matrix("readout")[0, 2], expected, atol=1e-12)


def test_every_evaluation_has_its_curve(digits):
    _, done = digits
    headline, entries = done.results["anytime"], done.results["evaluations"]
    assert "anytime" not in entries["logits"]
    for points, name in ((headline, "logits"), (entries["readout"]["anytime"], "readout")):
        (curve,), (matrix,) = points, done.accuracy_matrix(name)
        assert [point["step"] for point in curve] == [4, 8, 12, 16]
        assert [point["accuracy"][1] is None for point in curve] == [True, True, False, False]
        np.testing.assert_array_equal(curve[1]["accuracy"][0], matrix[1, 0])
        np.testing.assert_array_equal(curve[3]["accuracy"], matrix[2])
    assert headline != entries["readout"]["anytime"]


@pytest.mark.parametrize("validate", [False, True])
def test_tasks_of_unequal_sizes_equal_readouts_by_hand(validate):
    with jax.enable_x64(True):
        where, model = stream(), mlp(5)(support.NUM_CLASSES)
        history = run(validate=validate, eval_every=0)
        for seed, task in ((0, 0), (1, 1)):
            held = (where.train_x, where.train_y, where.valid(seed)[task]) if validate else None
            expected = by_hand(
                where, model, history.states[seed], seed, task, READOUT.readout, held
            )
            found = history.evaluations["readout"][seed, 2, task]
            assert found == pytest.approx(expected, abs=1e-12)
        assert len(set(history.evaluations["readout"][:, 2].reshape(-1))) > 1


def test_lanes_of_one_program_equal_threads():
    with jax.enable_x64(True):
        threads, mapped, vmapped = (run(lanes=how) for how in ("threads", "map", "vmap"))
    assert_same(mapped, threads)
    for name in ("logits", "readout"):
        np.testing.assert_array_equal(vmapped.evaluations[name], threads.evaluations[name])
        for ours, theirs in zip(vmapped.anytime[name], threads.anytime[name], strict=True):
            assert [step for step, _ in ours] == [2, 4, 6, 8]
            np.testing.assert_array_equal([r for _, r in ours], [r for _, r in theirs])


def test_a_readout_changes_no_bit_of_the_run():
    with_readout, without = run(), run(evaluations=BOTH[:1])
    assert_same(with_readout._replace(evaluations={}, anytime={}),
                without._replace(evaluations={}, anytime={}))  # fmt: skip
    ours = {"logits": with_readout.evaluations["logits"]}, with_readout.anytime["logits"]
    theirs = without.evaluations, without.anytime["logits"]
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("lanes", ["threads", "vmap"])
def test_cut_anywhere_and_continued_it_is_the_unbroken_run(lanes, tmp_path):
    unbroken, attempts = run(lanes=lanes), 0
    while True:
        attempts += 1
        try:
            found = run(tmp_path, lanes=lanes, stop_after=12 if lanes == "threads" else 8)
            break
        except Interrupted:
            assert attempts < 20
    assert attempts >= 2
    assert_same(found, unbroken)


def test_checkpoints_of_before_hold_the_curve_of_the_first_evaluation(tmp_path, monkeypatch):
    now = driver.recorded

    def before(record):
        kept = now(record)
        arrays = {
            name.replace("anytime/logits/", "anytime/"): array
            for name, array in kept.arrays.items()
            if not name.startswith("anytime/readout/")
        }
        return kept._replace(arrays=arrays)

    for name, evaluations in (("one", BOTH[:1]), ("two", BOTH)):
        with monkeypatch.context() as patched, pytest.raises(Interrupted):
            patched.setattr(driver, "recorded", before)
            run(tmp_path / name, stop_after=8, evaluations=evaluations)
    assert_same(run(tmp_path / "one", evaluations=BOTH[:1]), run(evaluations=BOTH[:1]))
    with pytest.raises(UserError, match="curve of the first evaluation only, by an earlier"):
        run(tmp_path / "two")


def test_without_a_readout_a_run_keeps_its_name():
    entry = entry_of(Evaluation("logits"))
    assert entry == {
        "name": "logits", "predictor": "logits", "scenario": "domain", "continuum": None,
        "infer": "logits", "hit": "class", "metric": "",
    }  # fmt: skip
    for evaluation in BOTH:
        assert evaluation_of(json.loads(json.dumps(entry_of(evaluation)))) == evaluation


def bound(name):
    """A method bound to the small problem in the form it is defined on."""
    method, cosine = METHODS[name], name == "lucir"
    spec = support.spec(multi_head=name in ("icarl-ti", "hat"), own_classes=True)
    if name in ("oml", "rep", "teacher"):
        spec = support.held_spec()
    model = mlp(5, head="cosine" if cosine else "linear")(spec.num_classes)
    return method.bind(model, spec), model, spec


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_has_features(name):
    learner, model, spec = bound(name)
    check_features(learner, model, spec)
    x = jnp.zeros((support.BATCH, support.NUM_INPUTS))

    def features(key):
        predictor = with_features(learner, model).predictors["features"]
        batch = support.at(support.batches(1), 0)._replace(x=x)
        return predictor.scores(predictor.prepare(learner.init(key)), batch)

    # Closed forms take the example itself for its features.
    size = support.NUM_INPUTS if name in ("ncm", "slda", "ranpac", "fecam") else 5
    assert jax.eval_shape(features, jax.random.key(0)).shape == (support.BATCH, size)


def test_a_state_without_the_network_is_refused():
    class Odd(NamedTuple):
        weights: dict

    learner, model, spec = bound("finetune")
    odd = learner._replace(init=lambda key: Odd(learner.init(key).params))
    with pytest.raises(UserError, match="give its learner a predictor named features"):
        check_features(odd, model, spec)
    own = Predictor(lambda state: state.weights, lambda view, batch: batch.x)
    learner = odd._replace(predictors={**odd.predictors, "features": own})
    check_features(learner, model, spec)
    assert with_features(learner, model).predictors["features"] is own


def test_a_methods_own_features_are_fitted_and_told_the_task_if_they_ask():
    """Features that hold nothing but the task: all classes of a task look the same."""

    def scores(view, batch):
        return jax.nn.one_hot(batch.task, 2) * batch.x[:, :1]

    class Own(cljax.Finetune):
        def predictors(self, problem):
            own = Predictor(lambda state: (), scores, needs_task_ids=True)
            return {**super().predictors(problem), "features": own}

    def apply(tables, x, task):  # the first input says whether the class is above 1
        return jnp.where(x.reshape(x.shape[0], -1) > 127, 1.0, -1.0)

    plain = stream()
    told = {"train_x": plain.train_y, "test_x": plain.test_y}
    images = {n: np.where(y > 1, 255, 0)[:, None, None].repeat(2, 1).repeat(3, 2).astype(np.uint8)
              for n, y in told.items()}  # fmt: skip
    where = stream(**images, transform=plain.transform._replace(tables=(), apply=apply))
    longer = READOUT._replace(readout=Readout(steps=30))
    history = run(method=Own(**FINETUNE.options), stream=where, seeds=(0,), evaluations=[longer])
    y = where.test_y[where.test_index[1]]
    assert history.evaluations["readout"][0, 2, 1] == 1.0 and set(y) == {1, 3}
    y = where.test_y[where.test_index[0]]  # 2 and 3 look the same
    right = max(np.sum(y == 2), np.sum(y == 3)) + np.sum(y == 0)
    assert np.sum(y == 0) / len(y) < history.evaluations["readout"][0, 2, 0] <= right / len(y)


def test_the_command_adds_a_readout(tmp_path, capsys):
    arguments = ["finetune", "split-mnist", "--sample", "--num-tasks", "2", "--samples-per-task",
                 "40", "--seeds", "1", "--net", "mlp:4", "--batch-size", "20"]  # fmt: skip
    with pytest.raises(SystemExit) as done:
        main(["run", *arguments, "--readout", "--out", str(tmp_path / "run")])
    assert done.value.code == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    entry = results["evaluations"]["readout"]
    assert np.shape(entry["accuracy_matrix"]) == (1, 3, 2) and "forgetting" in entry["metrics"]
    assert list(results["evaluations"]) == ["logits", "readout"]
    assert cljax.resume(tmp_path / "run").resumed


@pytest.mark.parametrize(
    ("evaluations", "message"),
    [
        ([READOUT, READOUT], "two evaluations named readout"),
        ([READOUT._replace(scenario="class")], "its scenario must be 'task'"),
        ([READOUT._replace(continuum=2)], "without a continuum"),
        ([READOUT._replace(hit="task")], "its hit 'class'"),
        ([READOUT._replace(readout=None)], "takes the largest feature for a class"),
        ([READOUT._replace(readout=Readout(steps=0))], "steps is 0, but it must be"),
        ([READOUT._replace(readout=Readout(lr=float("inf")))], "lr is inf, but it must be"),
        ([READOUT._replace(readout=Readout(lr=0.0))], "lr is 0.0, but a readout needs a positive"),
        ([READOUT._replace(predictor="feature")], "did you mean features"),
    ],
)
def test_what_a_readout_cannot_do_is_refused(evaluations, message):
    with pytest.raises(UserError, match=message):
        run(evaluations=evaluations)


def test_tasks_of_one_class_are_refused():
    mask = np.array([[True, True, True, False], [False, False, False, True]])
    with pytest.raises(UserError, match="task 1 of rolled has 1 class"):
        run(stream=stream(class_mask=mask))
