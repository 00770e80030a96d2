"""Going on from a finished run: the bits of an unbroken one, and what does not go together."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil

import finished_support
import incremental_support
import jax
import numpy as np
import pytest
import support
import transfer_support
from folders_support import call, one_sentence, rewrite

import cljax
from cljax.engine.start import Room, grown
from cljax.errors import Interrupted, UserError
from cljax.nets import mlp
from cljax.runner.options import RunOptions
from cljax.runner.prepare import prepare
from cljax.streams.base import first_tasks, plan
from cljax.streams.continued import continued, later_tasks

SMALL = {"seeds": 2, "batch_size": 4, "net": "mlp:5", "entries": "lower"}
METHOD = cljax.ER(capacity=6, replay_size=3)


@pytest.fixture(autouse=True)
def _sample(monkeypatch):
    monkeypatch.delenv("CLJAX_DATA_DIR", raising=False)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def halves(method, stream, first=2, **options):
    """A run of the first tasks, and one of the others that goes on from it."""
    begun = cljax.run(method, first_tasks(stream, first), **options)
    rest = {name: value for name, value in options.items() if name != "seeds"}
    return begun, cljax.run(method, later_tasks(stream, first), start=begun.state, **rest)


def compare(whole, rest):
    """Final states, every accuracy since the first task, and what is made of them, bit for bit."""
    same(whole.state.states, rest.state.states)
    assert whole.state.seeds == rest.state.seeds
    for name in whole.results["evaluations"]:
        rows = (run.accuracy_matrix(name)[:, 1:] for run in (whole, rest))
        np.testing.assert_array_equal(*rows)
    for name in ("RA", "LA", "BTI", "forgetting"):
        if name in whole.results["metrics"]:
            np.testing.assert_array_equal(whole.metric(name), rest.metric(name))


# What each keeps of the tasks before: nothing, a reservoir, rates, importances, exemplars with a
# teacher, masks of each task, a network of each task.
# The state of fine-tuning is a part of each of theirs.
@pytest.mark.parametrize(
    "name",
    ["er", "lamaml", "ewc", "icarl", "hat", "independent",
     *(pytest.param(name, marks=pytest.mark.slow) for name in ("finetune", "online", "sgd"))],
)  # fmt: skip
def test_the_second_half_of_a_stream_gives_the_bits_of_the_unbroken_run(name):
    method, stream = finished_support.method_of(name), finished_support.stream_of(name)
    options = finished_support.options_of(name, entries="lower")
    compare(cljax.run(method, stream, **options), halves(method, stream, **options)[1])


@pytest.mark.parametrize("beta", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_itaml_gives_them_where_its_steps_do_not_depend_on_the_number_of_tasks(beta):
    """Its controller exp(-beta s / T) knows how many tasks there are; with beta 0 it does not."""
    stream, options = finished_support.stream_of("itaml"), finished_support.options_of("itaml")
    options = {**options, "entries": "lower"}
    method = finished_support.method_of("itaml").replace(beta=beta)
    whole, rest = cljax.run(method, stream, **options), halves(method, stream, **options)[1]
    if beta == 0:
        compare(whole, rest)
    else:
        kernels = [run.state.states[0].params["Dense_1"]["kernel"] for run in (whole, rest)]
        assert not np.array_equal(*kernels)


@pytest.mark.parametrize("name", ["gem", pytest.param("agem", marks=pytest.mark.slow)])
def test_gradients_of_each_tasks_memory_give_them_up_to_rounding(name):
    """They are computed for as many tasks as there are, in programs of another shape."""
    method, stream = finished_support.method_of(name), finished_support.stream_of(name)
    options = finished_support.options_of(name, entries="lower")
    whole, rest = cljax.run(method, stream, **options), halves(method, stream, **options)[1]
    for a, b in zip(*(jax.tree.leaves(run.state.states) for run in (whole, rest)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_what_only_pretrains_gives_them_on_streams_with_plans_of_their_own():
    one, two = (transfer_support.stream(pretrain=3, steps=steps) for steps in (6, 4))
    method, options = finished_support.method_of("rep"), finished_support.options_of("rep")
    options = {**options, "entries": "lower"}
    whole, begun = (cljax.run(method, s, **options) for s in (continued(one, two), one))
    compare(whole, cljax.run(method, two, start=begun.state, **options))


def test_a_learned_update_rule_gives_them_where_it_is_trained_before(tmp_path):
    """Trained within the run it is another one, of episodes with all tasks that are to come."""
    one, two = (transfer_support.stream(pretrain=3, steps=steps) for steps in (6, 4))
    options = finished_support.options_of("teacher", entries="lower")
    trained = finished_support.method_of("teacher")
    cljax.run(trained, one, out=tmp_path / "rule", **options)
    method = trained.replace(rule=str(tmp_path / "rule"), rule_seed=3)
    whole, begun = (cljax.run(method, s, **options) for s in (continued(one, two), one))
    compare(whole, cljax.run(method, two, start=begun.state, **options))


def test_what_practises_on_as_many_tasks_as_a_stream_has_goes_on(monkeypatch):
    """Not to the same bits: OML's episodes stand for all the tasks that are to come."""
    data = transfer_support.images(classes=16)
    monkeypatch.setattr(transfer_support, "images", lambda: data)
    held = tuple(range(6, 16))
    one, two = (transfer_support.stream(pretrain=3, steps=s, held=held) for s in (6, 4))
    method, options = finished_support.method_of("oml"), finished_support.options_of("oml")
    begun = cljax.run(method, one, **options)
    rest = cljax.run(method, two, start=begun.state, **options)
    assert begun.state.states[0].classes.shape == (1, 3)
    assert rest.state.states[0].classes.shape == (3, 3)
    matrices = [run.accuracy_matrix()[0] for run in (begun, rest)]
    np.testing.assert_array_equal(matrices[1][1:3, :2], matrices[0][1:])
    assert np.isfinite(matrices[1][-1]).all()


def test_three_parts_epochs_and_double_precision_give_them_too():
    with jax.enable_x64(True):
        options = {**SMALL, "precision": "float64", "epochs": 2, "online": True, "eval_every": 5}
        stream = support.stream()
        whole = cljax.run(METHOD, stream, **options)
        begun, second = halves(METHOD, first_tasks(stream, 2), 1, **options)
        third = cljax.run(METHOD, later_tasks(stream, 2), start=second.state, **options)
        compare(whole, third)
        last = [curve[-1] for curve in third.results["anytime"]]
        assert last == [curve[-1] for curve in whole.results["anytime"]]
        assert begun.results["cost"]["examples"] * 3 == whole.results["cost"]["examples"]
        assert third.results["cost"]["examples"] * 3 == whole.results["cost"]["examples"]


# Lanes one by one are gone on from, and stopped, below.
@pytest.mark.parametrize(
    "lanes", ["vmap", *(pytest.param(how, marks=pytest.mark.slow) for how in ("map", "sequential"))]
)
def test_lanes_of_every_kind_go_on(lanes):
    stream, options = support.stream(), {**SMALL, "lanes": lanes}
    compare(cljax.run(METHOD, stream, **options), halves(METHOD, stream, **options)[1])


@functools.cache
def begun():
    return cljax.run(METHOD, first_tasks(support.stream(), 2), **SMALL)


def more():
    return later_tasks(support.stream(), 2)


def go_on(stream=None, method=METHOD, **options):
    given = {name: value for name, value in SMALL.items() if name != "seeds"}
    stream = more() if stream is None else stream
    return cljax.run(method, stream, **{**given, "start": begun().state, **options})


def prepared(stream=None, method=METHOD, **options):
    """What a run of the second part would be, which is enough to know its config."""
    stream = more() if stream is None else stream
    options = {**SMALL, "start": begun().state, **options}
    return prepare(method, stream, RunOptions(**options)).config


def test_a_run_that_goes_on_is_kept_apart_by_what_it_began_with(tmp_path):
    done = go_on(out=tmp_path / "run")
    again = go_on(out=tmp_path / "run")
    assert again.resumed
    same(again.state.states, done.state.states)
    hashes = {done.config["config_hash"], prepared(seeds=[1])["config_hash"]}
    state = begun().state
    other = state._replace(states=tuple(jax.tree.map(lambda a: a * 1, s) for s in state.states))
    assert prepared(start=other)["config_hash"] in hashes  # the same content
    moved = other.states[0]._replace(params=jax.tree.map(lambda a: a + 1, other.states[0].params))
    other = other._replace(states=(moved, other.states[1]))
    hashes |= {prepared(start=other)["config_hash"]}
    whole = continued(begun().state.learned, more())
    hashes |= {prepared(whole, start=None)["config_hash"]}
    assert len(hashes) == 4
    with pytest.raises(UserError, match="holds another run: start differ"):
        go_on(start=other, out=tmp_path / "run")


def test_it_is_resumed_with_the_bits_of_an_unbroken_one(tmp_path):
    def stop(event):
        if event.kind == "checkpoint":
            raise KeyboardInterrupt

    running = cljax.Running(checkpoint_every="1", segment=1)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        go_on(out=tmp_path / "run", running=running, progress=stop, lanes="sequential")
    assert (tmp_path / "run" / "checkpoint").is_dir()
    done = go_on(out=tmp_path / "run", running=running, lanes="sequential")
    unbroken = go_on(lanes="sequential")
    same(done.state.states, unbroken.state.states)
    np.testing.assert_array_equal(done.accuracy_matrix(), unbroken.accuracy_matrix())


def test_the_states_begun_with_stay_as_they_were():
    before = jax.tree.map(np.array, begun().state.states)
    go_on()
    same(jax.tree.map(np.array, begun().state.states), before)


def test_a_head_grows_with_the_classes_and_keeps_its_old_columns():
    """Two tasks of two classes each; the third brings two more."""
    stream = incremental_support.stream(per_class=12)
    narrow = first_tasks(stream, 2)
    narrow = dataclasses.replace(narrow, class_mask=narrow.class_mask[:, :4])
    method = cljax.ICaRL(capacity=24, lr=0.1, optimizer="momentum")
    options = {"batch_size": 8, "net": "mlp:5", "seeds": [3], "entries": "lower"}
    before = cljax.run(method, narrow, **options)
    after = cljax.run(method, later_tasks(stream, 2), start=before.state, epochs=3, **options)
    assert before.state.states[0].params["Dense_1"]["kernel"].shape == (5, 4)
    assert after.state.states[0].params["Dense_1"]["kernel"].shape == (5, 6)
    kept = after.state.states[0].exemplars
    assert np.bincount(np.asarray(kept.y)[np.asarray(kept.mask)], minlength=6).tolist() == [4] * 6
    matrix = after.accuracy_matrix()[0]
    np.testing.assert_array_equal(matrix[:3, :2], before.accuracy_matrix()[0])
    assert after.predict(stream.test_x, task=0).scores.shape == (48, 6)
    # The first step of all: old columns are the learned ones, new ones a new network's.
    learner = method.bind(mlp(5)(6), stream.spec(8))
    grew = grown(before.state.states[0], learner, 3, Room((2, 3), (4, 6)))
    fresh = jax.jit(learner.init)(cljax.keys.purpose(3, "init"))
    kernels = [s.params["Dense_1"]["kernel"] for s in (grew, before.state.states[0], fresh)]
    np.testing.assert_array_equal(kernels[0][:, :4], kernels[1])
    np.testing.assert_array_equal(kernels[0][:, 4:], kernels[2][:, 4:])


def named(names, tasks, labels):
    """A stream of two images a class, whose classes have names."""
    x = np.arange(len(labels) * 6, dtype=np.uint8).reshape(-1, 2, 3)
    y = np.asarray(labels)
    made = cljax.streams.from_arrays((x, y, np.asarray(tasks)), test=(x, y, np.asarray(tasks)),
                                     val=0.0, name="-".join(names), scenario="class")  # fmt: skip
    return dataclasses.replace(made, manifest={"class_names": np.array(names)})


def test_classes_are_the_outputs_of_their_names():
    one = named(["ant", "bee"], [0, 0, 0, 0], [0, 0, 1, 1])
    two = named(["bee", "cow"], [0, 0, 0, 0], [0, 0, 1, 1])
    both = continued(one, two)
    assert both.manifest["class_names"].tolist() == ["ant", "bee", "cow"]
    assert both.class_mask.tolist() == [[True, True, False], [False, True, True]]
    assert both.train_y.tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert [rows.tolist() for rows in both.subsets(0)][1] != both.subsets(0)[0].tolist()


def test_weights_of_classes_that_names_renumber_are_refused():
    one = named(["ant", "bee"], [0, 0, 0, 0], [0, 0, 1, 1])
    two = named(["bee", "cow"], [0, 0, 0, 0], [0, 0, 1, 1])
    with pytest.raises(UserError, match="weights of its 2 classes, .* give weights of all 3"):
        continued(one, cljax.streams.with_objective(two, weights=[1.0, 5.0]))
    named_alike = cljax.streams.with_objective(one, weights=[1.0, 5.0])
    assert continued(one, named_alike).objective.weights == (1.0, 5.0)


def test_streams_that_show_images_differently_each_do_so_in_their_own_tasks():
    rolled = first_tasks(support.stream(), 2)
    plain = dataclasses.replace(
        later_tasks(support.stream(), 2),
        transform=cljax.streams.Transform((), lambda _, x, task: x.reshape(len(x), -1) / 510.0),
    )
    both = continued(rolled, plain)
    x = support.stream().test_x[:3]
    show = both.spec(1).show
    for task, of in ((0, rolled.spec(1).show), (1, rolled.spec(1).show)):
        np.testing.assert_array_equal(show(x, np.full(3, task)), of(x, np.full(3, task)))
    np.testing.assert_array_equal(show(x, np.full(3, 2)), x.reshape(3, -1) / np.float32(510))


ODD = [
    ({"method": cljax.Finetune()}, "is of er, but this run is of finetune; go on with the same"),
    ({"method": METHOD.replace(capacity=7)}, "does not fit: memory/.* is .*6"),
    ({"net": "mlp:6"}, "does not fit: .*Dense_0/bias is float32\\[5\\], but here"),
    ({"net": "mlp:5,5"}, "of another method or network, or of other options"),
    ({"seeds": 3}, "has the seeds 0, 1, but not 2; leave seeds out"),
    ({"start": 3}, "start is 3, but it must be the state of a finished run"),
    ({"start": "none"}, "none is not a finished run"),
    ({"stream": support.stream(multi_head=True)}, "has a head for each task"),
    ({"stream": support.stream(scenario="class")}, "has another scenario"),
    ({"stream": support.stream(boundaries=False)}, "has no task boundaries"),
    ({"stream": support.stream(test_x=np.zeros((12, 3, 2), np.uint8))}, "another shape or type"),
    ({"stream": support.stream(class_mask=np.ones((3, 2), bool))},
     "The run learned 4 classes, but rolled has 2, which would be another head"),
]  # fmt: skip


@pytest.mark.parametrize(("odd", "message"), ODD)
def test_what_does_not_go_together_is_one_sentence(odd, message):
    with pytest.raises(UserError, match=message) as raised:
        go_on(**odd)
    assert "\n" not in str(raised.value)


def test_a_run_in_a_folder_goes_on_from_the_command_line(tmp_path, capsys):
    flags = ["--num-tasks", "2", "--samples-per-task", "10", "--net", "mlp:4"]
    first, second = tmp_path / "first", tmp_path / "second"
    run = ["run", "er", "mnist-rotations", *flags]
    assert call(capsys, *run, "--seeds", 2, "--out", first)[0] == 0
    code, out, _ = call(capsys, "run", "er", "mnist-permutations", *flags, "--start", first,
                        "--out", second)  # fmt: skip
    assert code == 0 and f"goes on from {first} after the 2 tasks of mnist-rotations" in out
    found = cljax.load(second)
    assert found.results["seeds"] == [0, 1] and found.accuracy_matrix().shape == (2, 5, 4)
    before = cljax.load(first)
    np.testing.assert_array_equal(found.accuracy_matrix()[:, :3, :2], before.accuracy_matrix())
    assert found.state.learned.num_tasks == 4
    assert found.predict(found.made.stream.test_x[:2], 1, task=3).scores.shape == (2, 10)
    assert call(capsys, "resume", second)[0] == 0  # it is finished
    again = call(capsys, *run[:2], "mnist-permutations", *flags, "--start", first, "--out", second)
    assert again[0] == 0 and "Finished before" in again[1]
    other = call(capsys, "run", "online", "mnist-rotations", *flags, "--start", first)
    assert one_sentence(*other) and "is of er, but this run is of online" in other[2]
    seeds = call(capsys, *run, "--start", first, "--seeds", 3)
    assert one_sentence(*seeds) and "has the seeds 0, 1, but not 2" in seeds[2]


def test_code_that_a_start_names_needs_a_word(tmp_path, capsys):
    recipe = cljax.recipes.Recipe("online", "mnist-rotations", net="mlp:4",
                          stream_options={"num_tasks": 2, "samples_per_task": 10})  # fmt: skip
    first = cljax.run(recipe, seeds=1, out=tmp_path / "first", progress=False)
    names = {**json.loads((first.path / "config.json").read_text())["begun_as"]}
    theirs = shutil.copytree(first.path, tmp_path / "theirs")
    rewrite(theirs, "config.json", lambda c: {**c, "begun_as": {**names, "net": "theirs:net"}})
    start = ["--net", "mlp:4", "--start", theirs]
    line = ["run", "online", "mnist-rotations", "--num-tasks", 2, *start]
    found = call(capsys, *line)
    assert one_sentence(*found) and "names the code theirs:net" in found[2]
    found = call(capsys, *line, "--trust")
    assert one_sentence(*found) and "module theirs" in found[2]


def test_a_loss_and_weights_that_are_not_taken_over_are_said_once():
    stream = support.stream()
    known = {"squared": lambda o, t: (o[:, 0] - t) ** 2}
    own = {"loss": "squared-error", "weights": [1.0, 2.0, 3.0, 4.0]}
    small = {**SMALL, "seeds": 1, "progress": False}
    first = cljax.run(METHOD, first_tasks(stream, 2), **small, **own)

    def said(begun=first, **options):
        config = prepared(later_tasks(stream, 2), start=begun.state, seeds=1, **options)
        return [notice for notice in config["notices"] if "not taken over" in notice]

    loss, weights = said()
    after = cljax.run(METHOD, later_tasks(stream, 2), start=first.state, **small)
    for notice in (loss, weights):
        assert after.config["notices"].count(notice) == 1
        assert after.table().count(notice.split(":")[0]) == 1
    assert "minimised the loss squared-error, this one minimises cross-entropy" in loss
    assert "had weights of its classes, this one weighs them alike" in weights
    assert said(**own) == [] and said(weights=[1.0, 1.0, 1.0, 9.0]) == [loss]
    assert said(loss="cross-entropy") == [weights]
    plain = cljax.run(METHOD, first_tasks(stream, 2), **small)
    assert said(plain, loss="squared-error") == [] and said(plain) == []
    squared = cljax.run(METHOD, first_tasks(stream, 2), loss=known["squared"], **small)
    assert "minimised the loss custom, this one" in said(squared)[0]
    assert said(squared, loss=known["squared"]) == []


def test_parts_of_a_stream_are_its_tasks():
    stream = support.stream()
    both = continued(first_tasks(stream, 1), later_tasks(stream, 1))
    same(both.transform.tables, stream.transform.tables)
    assert both.train_x is stream.train_x
    for own, whole in zip(both.subsets(4), stream.subsets(4), strict=True):
        np.testing.assert_array_equal(own, whole)
    with pytest.raises(UserError, match="no tasks from number 3 on apart; it has 3 tasks"):
        later_tasks(stream, 3)


def test_streams_with_plans_of_their_own_are_planned_one_after_the_other():
    one, two = (transfer_support.stream(steps=steps) for steps in (6, 4))
    both = continued(one, two)
    parts = [plan(stream, 5, 8) for stream in (one, two)]
    made = plan(both, 5, 8)
    shift = 0 if both.train_x is one.train_x else len(one.train_x)
    rows = parts[1].index
    np.testing.assert_array_equal(made.index[: len(parts[0].index)], parts[0].index)
    np.testing.assert_array_equal(
        made.index[len(parts[0].index) :], np.where(rows >= 0, rows + shift, rows)
    )
    np.testing.assert_array_equal(made.current[-len(rows) :], parts[1].current + one.num_tasks)
    assert both.pretraining == one.pretraining and both.held is one.held
