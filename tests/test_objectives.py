"""Losses, class weights and scores of one's own: rows by hand, runs from end to end, refusals."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cljax
from cljax import losses, objectives, streams, sweep
from cljax.cli import job
from cljax.errors import UserError
from cljax.method import Problem
from cljax.report import report
from cljax.runner.options import RunOptions
from cljax.runner.prepare import prepare
from cljax.runner.remade import remade
from cljax.types import Batch, Examples

N, T = 60, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 4)).astype(np.float32)
TASK = np.arange(N) % T
SLOPES = np.einsum("nd,ndk->nk", X, RNG.normal(size=(T, 4, 2))[TASK])
LABELS = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)


def stream_of(y, **options):
    data = (X, y, TASK)
    return streams.from_arrays(data, test=data, name="rows", dtype="float32", **options)


def regression(**options):
    return stream_of(SLOPES, **{"loss": "squared-error", **options})


def run_of(method, stream, **options):
    small = {"seeds": [3], "net": "mlp:5", "batch_size": 7, "lanes": "sequential"}
    return cljax.run(method, stream, progress=False, **{**small, **options})


def rows_of(stream, y, outputs, mask=None):
    examples = Examples(None, jnp.asarray(y), jnp.zeros(len(y), jnp.int32))
    return losses.row_losses(stream.spec(len(y)), jnp.asarray(outputs), examples, mask)


OUTPUTS, TARGETS = np.array([[0.5, -1.0], [2.0, 1.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])
SIGMOID = np.log1p(np.exp(OUTPUTS)) - OUTPUTS * TARGETS
BY_HAND = {
    "squared-error": [(0.25 + 4) / 2, (4 + 0) / 2],
    "absolute-error": [(0.5 + 2) / 2, (2 + 0) / 2],
    "huber": [(0.125 + 1.5) / 2, (1.5 + 0) / 2],
    "binary-cross-entropy": SIGMOID.mean(axis=1),
}


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_loss_by_name_is_its_formula(name):
    stream = stream_of((SLOPES > 0) * 1.0, loss=name)
    np.testing.assert_allclose(rows_of(stream, TARGETS, OUTPUTS), BY_HAND[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        ("binary-cross-entropy", [-0.25, 0.25]), ("squared-error", [-1.0, 0.0]),
        ("absolute-error", [-0.5, 0.0]), ("huber", [-0.5, 0.0]),
    ],
)  # fmt: skip
def test_outputs_of_zero_have_the_gradient_of_the_formula(name, gradient):
    """Networks whose last layer, or all whose units, are 0 begin there."""
    stream, y = stream_of((SLOPES > 0) * 1.0, loss=name), np.array([[1.0, 0.0]])
    found = jax.grad(lambda outputs: rows_of(stream, y, outputs)[0])(jnp.zeros((1, 2)))
    np.testing.assert_allclose(found[0], gradient, rtol=1e-6)


def test_labels_are_zeros_and_ones_to_a_loss_of_outputs():
    y, outputs = np.array([2, 0]), np.array([[0.1, 0.2, 0.7], [0.0, 0.5, 0.0]])
    hand = ((np.eye(3)[y] - outputs) ** 2).mean(axis=1)
    found = rows_of(stream_of(LABELS, loss="squared-error"), y, outputs)
    np.testing.assert_allclose(found, hand, rtol=1e-6)


def test_a_function_gets_outputs_in_the_shape_of_its_targets():
    seen = []

    def own(outputs, targets):
        seen.append((outputs.shape, targets.shape))
        return jnp.abs(outputs - targets)

    stream = stream_of(SLOPES[:, 0], loss=own, score="r-squared")
    found = rows_of(stream, np.array([1.0, 2.0]), np.array([[3.0], [2.5]]))
    np.testing.assert_allclose(found, [2.0, 0.5])
    assert stream.num_classes == 1 and seen[-1] == ((2,), (2,))


def test_weights_multiply_the_rows_of_their_class_over_their_mean():
    plain, weighed = stream_of(LABELS), stream_of(LABELS, weights=[1.0, 2.0, 6.0])
    y, outputs = np.array([0, 1, 2]), RNG.normal(size=(3, 3))
    factors = rows_of(weighed, y, outputs) / rows_of(plain, y, outputs)
    np.testing.assert_allclose(factors, [1 / 3, 2 / 3, 2.0], rtol=1e-6)


def test_equal_weights_change_no_bit_of_a_run():
    plain = run_of(cljax.ER(capacity=9), stream_of(LABELS))
    equal = run_of(cljax.ER(capacity=9), stream_of(LABELS), weights=[3.0, 3.0, 3.0])
    for a, b in zip(*(jax.tree.leaves(r.states[0].params) for r in (plain, equal)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert plain.config["config_hash"] != equal.config["config_hash"]


def test_balanced_weights_are_one_over_the_examples_of_a_class():
    weights = stream_of(LABELS, weights="balanced").objective.weights
    np.testing.assert_allclose(weights, 1 / np.bincount(LABELS))


def test_rows_outside_the_mask_reach_no_gradient_whatever_a_loss_makes_of_them():
    stream = stream_of(
        np.abs(SLOPES), loss=lambda o, t: jnp.sum(t * jnp.log(o), axis=1), score="r-squared"
    )
    mask = jnp.array([True, False])
    outputs = jnp.array([[1.0, 2.0], [-1.0, 0.0]])

    def total(outputs):
        return losses.masked_mean(rows_of(stream, np.ones((2, 2)), outputs, mask), mask)

    np.testing.assert_allclose(jax.grad(total)(outputs), [[1.0, 0.5], [0.0, 0.0]])


def test_low_rank_algebra_has_the_gradients_of_the_general_one_for_any_loss():
    stream = regression()
    batch, key = next(iter(cljax.batches(stream, seed=0, batch_size=6)))
    ends = []
    for algebra in ("general", "low-rank"):
        method = cljax.LaMAML(capacity=9, alpha_init=0.1, algebra=algebra)
        learner = method.bind(cljax.nets.mlp(5)(2), stream.spec(6))
        state = learner.init(jax.random.key(0))
        ends.append(learner.update(state, batch, learner.draw(state, batch, key))[0].params)
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


METHODS = {
    "finetune": cljax.Finetune(lr=0.05),
    "er": cljax.ER(lr=0.05, capacity=9),
    "lamaml": cljax.LaMAML(alpha_init=0.05, capacity=9),
    "mer": cljax.MER(capacity=9),
    "gem": cljax.GEM(lr=0.05, per_task=5),
    "agem": cljax.AGEM(lr=0.05, per_task=5),
    "ewc": cljax.Finetune(lr=0.05, penalty=cljax.penalties.EWC(1.0)),
    "si": cljax.Finetune(lr=0.05, penalty=cljax.penalties.SI()),
    "mas": cljax.Finetune(lr=0.05, penalty=cljax.penalties.MAS()),
}


@pytest.mark.parametrize("name", METHODS)
def test_regression_runs_from_end_to_end_and_is_judged_by_its_score(name):
    run = run_of(METHODS[name], regression())
    final = run.accuracy_matrix()[0, -1]
    outputs = run.predict(X)
    np.testing.assert_array_equal(outputs.labels, outputs.scores)
    asked = cljax.evaluate(run.state, regression(), scenario="domain")
    np.testing.assert_array_equal(asked.accuracy[0], final)
    assert (asked.RA, asked.score) == (run.metric("RA")[0], "r-squared")
    rows = 1 - ((outputs.scores - SLOPES) ** 2 / SLOPES.var(axis=0)).mean(axis=1)
    np.testing.assert_allclose(final, [rows[TASK == t].mean() for t in range(T)], atol=1e-4)
    assert run.results["score"] == "r-squared"
    assert run.metric("forgetting")[0] == pytest.approx(
        np.mean(run.accuracy_matrix()[0, 1:3, :2].max(axis=0, where=np.tri(2) > 0, initial=-9))
        - final[:2].mean()
    )
    assert not isinstance(run.results["confusion"], list)


def test_a_step_of_regression_is_the_one_by_hand():
    stream = stream_of(SLOPES, loss="squared-error")
    problem = Problem(cljax.nets.mlp()(2), stream.spec(N))
    learner = cljax.Finetune(lr=0.5).bind(*problem)
    state = learner.init(jax.random.key(0))
    (before,) = [k for k in jax.tree.leaves(state.params) if k.ndim == 2]
    (bias,) = [k for k in jax.tree.leaves(state.params) if k.ndim == 1]
    updates = next(iter(cljax.batches(stream, seed=0, batch_size=6)))
    batch: Batch = updates[0]
    after, info = learner.update(state, batch, ())
    x, y = np.asarray(batch.x), np.asarray(batch.y)
    apart = x @ np.asarray(before) + np.asarray(bias) - y
    (kernel,) = [k for k in jax.tree.leaves(after.params) if k.ndim == 2]
    assert float(info.loss) == pytest.approx((apart**2).mean(), rel=1e-5)
    np.testing.assert_allclose(kernel, before - 0.5 * x.T @ apart / len(x), atol=1e-5)


def test_several_labels_at_once_are_judged_by_subsets():
    stream = stream_of((SLOPES > 0).astype(int), loss="binary-cross-entropy")
    run = run_of(cljax.ER(lr=0.1, capacity=9), stream)
    right = ((run.predict(X).scores > 0) == (SLOPES > 0)).all(axis=1)
    found = run.accuracy_matrix()[0, -1]
    np.testing.assert_allclose(found, [right[TASK == t].mean() for t in range(T)], atol=1e-6)
    assert "final subset-accuracy (RA)" in run.table() and "%" in run.table()
    np.testing.assert_array_equal(cljax.evaluate(run.state, stream).accuracy[0], found)


@pytest.mark.parametrize("lanes", ["sequential", "vmap"])
@pytest.mark.parametrize("score", ["accuracy", "negative-squared-error", "own"])
def test_evaluate_without_a_scenario_gives_the_numbers_of_the_run(score, lanes, tmp_path):
    stream = stream_of(LABELS, loss="squared-error", score=largest if score == "own" else score)
    run = run_of(cljax.ER(capacity=9), stream, seeds=[3, 8], lanes=lanes)
    asked = cljax.evaluate(run.state, stream)
    np.testing.assert_array_equal(asked.accuracy, run.accuracy_matrix()[:, -1])
    assert asked.score == ("largest" if score == "own" else score)


def test_the_scale_of_r_squared_is_that_of_what_was_learned():
    run = run_of(cljax.ER(capacity=9), regression())
    wide = stream_of(3 * SLOPES, loss="squared-error")
    outputs = run.predict(X).scores
    rows = 1 - ((outputs - 3 * SLOPES) ** 2 / SLOPES.var(axis=0)).mean(axis=1)
    expected = [rows[TASK == t].mean() for t in range(T)]
    np.testing.assert_allclose(cljax.evaluate(run.state, wide).accuracy[0], expected, rtol=1e-4)


def test_what_cannot_be_asked_of_outputs_is_one_sentence():
    run = run_of(cljax.Finetune(), regression())
    one = stream_of(SLOPES[:, 0], loss="squared-error")
    for match, stream, asked in (
        ("scenario is class, but the targets of this run are no", regression(), "class"),
        (r"targets are floats \[2\], but those of rows are floats \[\]", one, "domain"),
        (r"targets are floats \[2\], but those of rows are classes", stream_of(LABELS), "domain"),
    ):
        with pytest.raises(UserError, match=match):
            cljax.evaluate(run.state, stream, scenario=asked)
    judged = run_of(cljax.Finetune(), stream_of(LABELS, score="negative-squared-error"))
    with pytest.raises(UserError, match="A continuum counts right predictions, but this run is"):
        cljax.evaluate(judged.state, stream_of(LABELS), continuum=2)


def test_results_table_and_report_say_the_score_and_a_run_is_read_back(tmp_path):
    stream = regression(score="negative-squared-error")
    run = run_of(cljax.ER(capacity=9), stream, out=tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))
    assert stored["score"] == "negative-squared-error"
    assert "final negative-squared-error (RA)" in run.table()
    assert "accuracy" not in run.table() and "%" not in run.table()
    report(tmp_path / "run", out=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "final negative-squared-error (RA)" in page
    assert "final accuracy" not in page and "Test accuracy" not in page
    again = run_of(cljax.ER(capacity=9), stream, out=tmp_path / "run")
    assert again.resumed and again.results == run.results


def absolute(outputs, targets):
    return jnp.mean(jnp.abs(outputs - targets), axis=1)


def test_functions_are_told_by_their_content_and_names_by_themselves():
    hashes = [
        prepare(cljax.ER(), stream, RunOptions(seeds=1, net="mlp:5", **options)).config[
            "config_hash"
        ]
        for stream, options in (
            (regression(), {}),
            (regression(loss=absolute, score="r-squared"), {}),
            (regression(), {"loss": absolute, "score": "r-squared"}),
            (regression(loss=lambda o, t: absolute(o, t), score="r-squared"), {}),
            (regression(loss=lambda o, t: 2 * absolute(o, t), score="r-squared"), {}),
            (regression(score="negative-squared-error"), {}),
        )
    ]
    assert hashes[1] == hashes[2] and len(set(hashes)) == 5


def test_flags_give_a_loss_weights_and_a_score(tmp_path):
    arguments = ["finetune", "split-mnist", "--sample", "--loss", "binary-cross-entropy"]
    weights = list(map(str, range(1, 11)))
    for given, told in ((weights, [*map(float, weights)]), (["balanced"], "balanced")):
        asked = job.job_of("run", [*arguments, "--weights", *given], job.run_flags())
        made = prepare(asked.recipe, None, job.options_of_run(asked))
        assert made.config["objective"]["loss"] == "binary-cross-entropy"
        assert made.config["asked_objective"]["weights"] == told
        assert made.config["begun_as"] is not None


@pytest.mark.parametrize("method", ["finetune", "icarl", "itaml", "replayed"])
def test_weights_of_classes_have_a_flag_that_is_no_methods(method, tmp_path):
    (tmp_path / "weights.txt").write_text("1, 2 3\n4\n5,6,7 8 9 1e1\n")
    arguments = [method, "split-mnist", "--sample", "--samples-per-task", "20"]
    for given, told in (("balanced", "balanced"),
                        (str(tmp_path / "weights.txt"), [*map(float, range(1, 11))])):  # fmt: skip
        asked = job.job_of("run", [*arguments, "--class-weights", given], job.run_flags())
        made = prepare(asked.recipe, None, job.options_of_run(asked))
        assert made.config["asked_objective"]["weights"] == told
        assert made.config["objective"]["weights"] is not None


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("1 2 three", [], "must hold a number for each class and nothing else: .*three"),
        (None, [], "--class-weights is .*, but it must be balanced, or a file that can be read: "),
        ("1 2", ["--weights", "balanced"], "--weights and --class-weights say the same"),
    ],
)
def test_what_holds_no_weights_is_one_sentence(text, flags, message, tmp_path):
    file = tmp_path / "weights.txt"
    if text is not None:
        file.write_text(text)
    line = ["finetune", "split-mnist", "--sample", "--class-weights", str(file), *flags]
    with pytest.raises(UserError, match=message) as caught:
        job.options_of_run(job.job_of("run", line, job.run_flags()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "flags", "option"),
    [("replayed", ["--loss", "sigmoid"], "loss"), ("lwf", ["--weights", "one"], "weights")],
)
def test_a_flag_of_a_method_that_has_the_same_name_is_the_methods(method, flags, option):
    asked = job.job_of("run", [method, "split-mnist", "--sample", *flags], job.run_flags())
    assert asked.recipe.method_options[option] == flags[1]
    assert getattr(job.options_of_run(asked), option) is None


def test_a_folder_gives_its_run_again_with_loss_and_weights(tmp_path):
    weights = [1.0] * 9 + [3.7]
    options = {"seeds": 1, "net": "mlp:5", "batch_size": 50, "progress": False}
    recipe = cljax.recipe("finetune", "split-mnist").replace(sample=True, samples_per_task=20)
    run = cljax.run(recipe, out=tmp_path / "a", loss="squared-error", weights=weights, **options)
    again = remade(tmp_path / "a", run.config, trust=False)
    assert again.config["config_hash"] == run.config["config_hash"]
    own = f"{largest.__module__}:largest"
    run = cljax.run(recipe, out=tmp_path / "b", loss="squared-error", score=own, **options)
    with pytest.raises(UserError, match=f"names the code {own}"):
        remade(tmp_path / "b", run.config, trust=False)
    again = remade(tmp_path / "b", run.config, trust=True)
    assert again.config["config_hash"] == run.config["config_hash"]


def largest(outputs, targets):
    return -jnp.abs(jnp.max(outputs, axis=1))  # others may be -inf: they do not compete


NEED_CLASSES = {
    "icarl": cljax.ICaRL(), "bic": cljax.BiC(), "lucir": cljax.LUCIR(), "itaml": cljax.ITAML(),
    "lwf": cljax.Finetune(penalty=cljax.penalties.LwF()), "reptile": cljax.Reptile(),
    "fixed-rep": cljax.FixedRep(), "oml": cljax.OML(), "teacher": cljax.Teacher(),
    "er+exemplars": cljax.WithExemplars(cljax.ER(), "random", exemplars_per_class=2),
}  # fmt: skip


@pytest.mark.parametrize("name", NEED_CLASSES)
def test_a_method_that_needs_classes_says_why(name):
    with pytest.raises(UserError, match=rf"^{name.replace('+', '.')} needs classes, because it "):
        NEED_CLASSES[name].bind(cljax.nets.mlp(5)(2), regression().spec(7))


def test_a_method_with_a_loss_of_its_own_refuses_another_and_takes_weights():
    digits = cljax.streams.SplitMNIST(sample=True, samples_per_task=10).build()
    model = cljax.nets.mlp(5)(10)
    other = streams.with_objective(digits, loss="squared-error")
    with pytest.raises(UserError, match="icarl takes no other loss, because it minimises"):
        cljax.ICaRL(capacity=10).bind(model, other.spec(7))
    with pytest.raises(UserError, match="oml takes no weights of classes, because it practises"):
        cljax.OML().bind(model, streams.with_objective(digits, weights="balanced").spec(7))
    weighed = streams.with_objective(digits, weights=np.arange(1, 11))
    for method in (cljax.ICaRL(capacity=10), cljax.Replayed(capacity=10), cljax.ITAML(capacity=10)):
        method.bind(model, weighed.spec(7))


@pytest.mark.parametrize(
    "asked",
    [
        {"loss": "huber"}, {"score": "negative-absolute-error"},
        {"loss": absolute, "score": lambda o, t: -jnp.max(jnp.abs(o - t), axis=1)},
    ],
)  # fmt: skip
def test_a_sweep_learns_and_is_judged_by_what_it_is_asked_for(asked, tmp_path):
    small = {"seeds": [3], "net": "mlp:5", "batch_size": 7, "lanes": "sequential", **asked}
    plan = sweep.plan(cljax.ER(capacity=9), regression(), sweep.grid(lr=[0.02]), on="test", **small)
    sweep.run(plan, tmp_path)
    (lane,) = plan.lanes
    found = json.loads((tmp_path / "lanes" / lane.name / "results.json").read_text("utf-8"))
    single = run_of(cljax.ER(capacity=9, lr=0.02), regression(), **asked)
    for name, own in single.results["evaluations"].items():
        np.testing.assert_allclose(
            np.array(found["evaluations"][name]["accuracy_matrix"], float)[0, -1],
            np.array(own["accuracy_matrix"], float)[0, -1],
        )


def test_a_sweep_weighs_classes_as_it_is_asked_for(tmp_path):
    weights = {"weights": [0.0, 0.0, 1.0]}
    small = {"seeds": [3], "net": "mlp:5", "batch_size": 7, "lanes": "sequential", **weights}
    grid = sweep.grid(lr=[0.5])
    plan = sweep.plan(cljax.Finetune(), stream_of(LABELS), grid, on="test", **small)
    assert plan.stream.objective.weights == (0.0, 0.0, 1.0)


def test_a_run_that_goes_on_is_judged_on_the_scale_of_what_it_goes_on_from():
    """Targets of another spread would else change what the same outputs score on old tasks."""
    first, wide = regression(), stream_of(3 * SLOPES, loss="squared-error")
    assert first.objective.variance != wide.objective.variance
    begun = run_of(cljax.Finetune(lr=0.0), first)
    more = run_of(cljax.Finetune(lr=0.0), wide, start=begun.state)
    np.testing.assert_allclose(
        more.accuracy_matrix()[0, -1, :T], begun.accuracy_matrix()[0, -1], rtol=1e-5
    )
    with pytest.raises(UserError, match="judged by r-squared, but this one is judged by negative-"):
        run_of(cljax.Finetune(lr=0.0), wide, start=begun.state, score="negative-squared-error")


MISTAKES = {
    "floats without a loss": (SLOPES[:, 0], {}, "targets that are no classes need a loss"),
    "rows without a loss": (SLOPES, {}, "several targets of an example need a loss"),
    "cross-entropy of floats": (SLOPES, {"loss": "cross-entropy"}, "loss 'cross-entropy' is not"),
    "a loss by another name": (SLOPES, {"loss": "squared-eror"}, "did you mean squared-error"),
    "a score by another name": (
        SLOPES, {"loss": "huber", "score": "accuracy"}, "score 'accuracy' is not known"
    ),
    "an own loss without a score": (SLOPES, {"loss": absolute}, "name a score"),
    "a mean": (
        SLOPES, {"loss": lambda o, t: jnp.mean((o - t) ** 2), "score": "r-squared"},
        r"makes float32\[\] of 3 examples, but it must make a float for each, \[3\]",
    ),
    "a loss that fails": (
        SLOPES, {"loss": lambda o, t: o @ t, "score": "r-squared"}, "fails on outputs and targets"
    ),
    "sigmoids of slopes": (SLOPES, {"loss": "binary-cross-entropy"}, "takes targets from 0 to 1"),
    "heads of slopes": (
        SLOPES, {"loss": "huber", "scenario": "task"}, "tasks share all outputs"
    ),
    "outputs that are no targets": (
        SLOPES, {"loss": "huber", "num_classes": 3}, "3 outputs for 2 targets"
    ),
    "weights of slopes": (SLOPES, {"loss": "huber", "weights": [1, 2]}, "weights are of classes"),
    "too few weights": (LABELS, {"weights": [1, 2]}, "they must be 3 numbers"),
    "negative weights": (LABELS, {"weights": [1, 2, -1]}, "none negative"),
    "an own loss over heads": (
        LABELS, {"loss": absolute, "scenario": "task"}, "over the outputs of its own task"
    ),
    "a constant target": (
        np.stack([SLOPES[:, 0], np.ones(N)], axis=1), {"loss": "huber"}, "Target 1 is the same"
    ),
    "infinite targets": (SLOPES * np.inf, {"loss": "huber"}, "not finite numbers"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_sentence(what):
    y, options, message = MISTAKES[what]
    with pytest.raises(UserError, match=message) as caught:
        stream_of(y, **options)
    assert "\n" not in str(caught.value) and str(caught.value).endswith((".", "?"))


@pytest.mark.parametrize("options", [{"online": True}, {"readout": True}])
def test_what_counts_right_predictions_is_refused_beside_another_score(options):
    with pytest.raises(UserError, match="judged by r-squared"):
        run_of(cljax.ER(capacity=9), regression(), **options)


def test_every_name_of_a_score_is_explained():
    for name in (*objectives.SCORES, *losses.LOSSES):
        assert name in (objectives.__doc__ or "")


def test_a_score_that_is_no_number_is_said_and_ends_nothing():
    notes = []
    run = cljax.run(
        cljax.Finetune(lr=0.1), cljax.streams.toy(), net="mlp:4", seeds=1,
        score=lambda outputs, y: outputs[:, 0] * jnp.nan,
        progress=lambda event: notes.append(event.note) if event.kind == "note" else None,
    )  # fmt: skip
    assert len(notes) == 3 and all("of seed 0 is no finite number" in note for note in notes)
    assert np.isnan(run.accuracy_matrix()).all()
