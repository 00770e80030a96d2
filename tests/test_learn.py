"""The runner: bits that do not depend on how a run is cut up, phases, and evaluations."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from support import learn

import cljax
from cljax import keys
from cljax.engine.programs import device_plan, train_data, whole
from cljax.errors import UserError
from cljax.evaluation.accuracy import Evaluation
from cljax.method import Method
from cljax.nets import from_linen
from cljax.streams.base import plan
from cljax.types import Array, Info, Needs, Phase, Predictor, StepPlan, Variables

METHOD = cljax.LaMAML(capacity=6, replay_size=3, glances=2, algebra="low-rank")
MODEL = cljax.nets.mlp(5)(support.NUM_CLASSES)


def run(seeds=(0, 1), method=METHOD, model=MODEL, stream=None, **options):
    stream = support.stream() if stream is None else stream
    return learn(method, model, stream, list(seeds), batch_size=4, **options)


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(name="reference", scope="module")
def _reference():
    return run()


@pytest.mark.parametrize(
    "options",
    [{"segment": 1}, {"segment": 2}, {"lanes": "sequential"}, {"loop": "steps"}, {"eval_every": 2}],
    ids=str,
)
def test_cutting_a_run_up_changes_no_bit(reference, options):
    other = run(**options)
    assert_same_bits(reference.states, other.states)
    np.testing.assert_array_equal(reference.losses, other.losses)
    np.testing.assert_array_equal(reference.evaluations["logits"], other.evaluations["logits"])


@pytest.mark.parametrize("x64", [False, True])
def test_a_lane_equals_the_single_run_of_its_seed(x64):
    with jax.enable_x64(x64):
        both, single = run(seeds=(3, 4)), run(seeds=(4,))
        assert_same_bits(both.states[1], single.states[0])
        np.testing.assert_array_equal(both.losses[1], single.losses[0])
        matrix = single.evaluations["logits"][0]
        np.testing.assert_array_equal(both.evaluations["logits"][1], matrix)
        assert jax.tree.leaves(single.states[0].params)[0].dtype == (
            jnp.float64 if x64 else jnp.float32
        )


def test_vmapped_lanes_equal_threads_in_float64():
    with jax.enable_x64(True):
        a, b = run(lanes="threads"), run(lanes="vmap")
        for x, y in zip(a.states, b.states, strict=True):
            support.assert_close(x, y, 1e-12)
        np.testing.assert_array_equal(a.evaluations["logits"], b.evaluations["logits"])


def test_one_scan_gives_the_bits_of_segments(reference):
    stream = support.stream()
    learner = METHOD.bind(MODEL, stream.spec(4))
    # The thread setting is part of a run's identity.
    options = {"xla_cpu_multi_thread_eigen": False}
    scan = jax.jit(whole(learner, stream.transform), compiler_options=options)
    state, losses = scan(
        jax.jit(learner.init)(keys.purpose(0, "init")),
        device_plan(plan(stream, 0, 4)),
        train_data(stream),
        keys.purpose(0, "update"),
    )
    assert_same_bits(state, reference.states[0])
    np.testing.assert_array_equal(losses, reference.losses[0])


def test_a_run_is_a_function_of_its_hyper_parameters():
    """vmap over learning rates and grad of the final loss through all tasks."""
    stream = support.stream()

    def final_loss(alpha_lr):
        method = cljax.LaMAML(
            alpha_lr=alpha_lr, capacity=6, replay_size=3, glances=1, order="second"
        )
        learner = method.bind(MODEL, stream.spec(4))
        state = learner.init(keys.purpose(0, "init"))
        return whole(learner, stream.transform)(state, rows, data, keys.purpose(0, "update"))[1][-1]

    with jax.enable_x64(True):
        data, rows = train_data(stream), device_plan(plan(stream, 0, 4))
        values = np.asarray(jax.jit(jax.vmap(final_loss))(jnp.array([0.05, 0.05 + 1e-6])))
        slope = jax.jit(jax.grad(final_loss))(jnp.asarray(0.05))
    np.testing.assert_allclose(slope, (values[1] - values[0]) / 1e-6, rtol=1e-3)


def test_the_matrix_counts_right_answers_of_the_state_after_each_task(reference):
    """Recomputed by hand from a run that stops after the first task."""
    stream = support.stream()
    rows = plan(stream, 0, 4)
    learner = METHOD.bind(MODEL, stream.spec(4))
    scan = whole(learner, stream.transform)
    first = jax.tree.map(lambda a: a[:3], device_plan(rows))
    state, _ = scan(
        learner.init(keys.purpose(0, "init")), first, train_data(stream), keys.purpose(0, "update")
    )
    test = stream.test_index[0]
    x = stream.transform.apply(
        jnp.asarray(stream.transform.tables),
        jnp.asarray(stream.test_x[test]),
        jnp.zeros(len(test), jnp.int32),
    )
    guess = MODEL.apply(Variables(state.params, {}), x, False)[0].logits.argmax(axis=1)
    expected = float(np.mean(np.asarray(guess) == stream.test_y[test]))
    assert reference.evaluations["logits"][0, 1, 0] == pytest.approx(expected, abs=1e-9)
    assert reference.test_counts.tolist() == [9, 10, 11]


@pytest.mark.parametrize(
    ("entries", "filled"),
    [
        ("diagonal-last", [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1]]),
        ("lower", [[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]),
        ("full", [[1, 1, 1]] * 4),
    ],
)
def test_only_the_entries_asked_for_are_filled(reference, entries, filled):
    matrix = run(seeds=(0,), entries=entries).evaluations["logits"][0]
    np.testing.assert_array_equal(~np.isnan(matrix), np.array(filled, bool))
    np.testing.assert_array_equal(matrix[3], reference.evaluations["logits"][0, 3])


def test_scenarios_of_the_same_weights():
    """Told the task, a network is right at least as often as among all the classes seen."""
    mask = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)
    stream = support.stream(2, class_mask=mask, scenario="class")
    history = run(
        seeds=(0,), stream=stream,
        evaluations=(Evaluation("class", scenario="class"), Evaluation("task", scenario="task")),
    )  # fmt: skip
    by_class, by_task = history.evaluations["class"][0], history.evaluations["task"][0]
    assert (np.nan_to_num(by_task) >= np.nan_to_num(by_class) - 1e-9)[1, 0]


def test_anytime_and_online_measures():
    history = run(seeds=(0,), eval_every=2, online=True)
    (curve,) = history.anytime["logits"]
    assert [step for step, _ in curve] == [2, 4, 6, 8]
    assert np.isnan(curve[0][1][1:]).all() and curve[0][1][0] >= 0
    assert history.online_correct.shape == (1, 9) and history.online_correct.max() <= 4
    assert history.batch_sizes.tolist() == [4] * 9
    assert history.online_correct[0, 1:].sum() > 0


def test_progress_reports_every_part_in_the_calling_thread():
    kinds = []
    run(seeds=(0,), progress=lambda event: kinds.append(event.kind))
    assert kinds[0] == "compile" and {"segment", "eval"} <= set(kinds)


def test_a_diverged_seed_stops_and_says_where():
    method = cljax.LaMAML(alpha_init=1e30, capacity=6, replay_size=3, glances=2, clip_norm=None)
    history = run(seeds=(0,), method=method)
    assert history.diverged[0].task == 0 and 0 <= history.diverged[0].step < 9
    assert history.diverged[0].leaf.startswith("params/")
    assert np.isnan(history.evaluations["logits"][0, -1]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": ()}, "seeds is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"segment": 0}, "segment is 0"),
        ({"lanes": "pool"}, "lanes 'pool'"),
        ({"entries": "all"}, "entries 'all'"),
        ({"evaluations": (Evaluation("x", predictor="nearest"),)}, "predictor 'nearest'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        run(**options)


# A method that no paper has: it exists to show that phases, BatchNorm and views fit the types.


class CountState(NamedTuple):
    params: dict
    model_state: dict
    trained: Array  # updates in tasks
    before: Array  # steps of the phase before each task
    after: Array  # steps of the phase after each task
    rows: Array  # sum of the stream rows that the second phase saw


class Counting(Method):
    """Counts its updates and the steps of its phases."""

    def init(self, problem, key):
        zero = jnp.zeros((), jnp.int32)
        return CountState(*problem.variables(key), zero, zero, zero, zero)

    def update(self, problem, state, batch, draws):
        variables = Variables(state.params, state.model_state)
        output, model_state = problem.model.apply(variables, batch.x, True)
        state = state._replace(model_state=model_state, trained=state.trained + 1)
        return state, Info(jnp.mean(output.logits**2))

    def phases(self, problem):
        def count(name):
            def step(state, batch, draws):
                rows = state.rows + jnp.sum(jnp.where(batch.mask, batch.index, 0))
                state = state._replace(**{name: getattr(state, name) + 1})
                return state._replace(rows=rows) if name == "after" else state, Info(jnp.float32(0))

            return step

        def some(task: int, rows: StepPlan) -> StepPlan | None:
            """0, 1, 2 steps after tasks 0, 1, 2."""
            return jax.tree.map(lambda a: a[:task], rows) if task else None

        one = lambda task, rows: jax.tree.map(lambda a: a[:1], rows)
        nothing = lambda state, batch, key: ()
        return (
            Phase("warm-up", one, nothing, count("before"), before=True),
            Phase("consolidate", some, nothing, count("after")),
        )


class Asking(Counting):
    """One that must be told where a task ends."""

    needs = Needs(boundaries=True)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return nn.Dense(support.NUM_CLASSES)(x), x


@pytest.mark.parametrize("lanes", ["threads", "vmap"])
def test_phases_of_unequal_length_and_model_state(lanes):
    history = run(method=Counting(), model=from_linen(Normalised()), lanes=lanes)
    for seed, state in zip((0, 1), history.states, strict=True):
        assert (int(state.trained), int(state.before), int(state.after)) == (9, 3, 3)
        rows = plan(support.stream(), seed, 4)
        assert int(state.rows) == rows.index[3:4].sum() + rows.index[6:8].sum()
        statistics = state.model_state["batch_stats"]["BatchNorm_0"]
        assert float(jnp.abs(statistics["mean"]).max()) > 0.1
    assert [len(losses) for losses in history.phase_losses["consolidate"][0]] == [1, 2]
    assert [len(losses) for losses in history.phase_losses["warm-up"][1]] == [1, 1, 1]


def test_a_predictor_prepares_once_and_may_ask_for_task_ids():
    asked = []

    def scores(view, batch):
        asked.append(None)
        return jax.nn.one_hot(batch.task, support.NUM_CLASSES) + 0 * view

    class Told(type(METHOD)):
        def predictors(self, problem):
            oracle = Predictor(lambda state: state.task.astype(float), scores, needs_task_ids=True)
            return {**super().predictors(problem), "oracle": oracle}

    told = Told(**METHOD.options)
    history = run(seeds=(0,), method=told, evaluations=(Evaluation("oracle", "oracle"),))
    stream = support.stream()
    expected = [np.mean(stream.test_y[rows] == t) for t, rows in enumerate(stream.test_index)]
    np.testing.assert_allclose(history.evaluations["oracle"][0, -1], expected)
    assert len(asked) <= 2  # traced, not called per task


def test_methods_that_need_boundaries_are_refused_where_there_are_none():
    free = support.stream(boundaries=False)
    with pytest.raises(UserError, match="needs task boundaries"):
        run(method=Asking(), stream=free)


def more_tasks_than_updates(kind):
    if kind == "joint":
        return cljax.IID(lr=0.1), support.stream()
    return cljax.ER(lr=0.1, capacity=4), cljax.streams.gaussian(support.stream(), width=0.5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("lanes", ["sequential", "vmap"])
@pytest.mark.parametrize(("kind", "eval_every"), [("joint", 0), ("gaussian", 0), ("gaussian", 1)])
def test_tasks_without_an_update_of_their_own_are_tested_alone(kind, eval_every, lanes):
    method, stream = more_tasks_than_updates(kind)
    events = []
    history = learn(
        method, MODEL, stream, [0, 1], batch_size=1000, lanes=lanes, eval_every=eval_every,
        progress=events.append,
    )  # fmt: skip
    assert len(history.batch_sizes) == 1 < stream.num_tasks
    matrix = history.evaluations["logits"]
    assert not np.isnan(matrix[:, -1]).any()
    segments = [event for event in events if event.kind == "segment"]
    assert len(segments) == 2 and all(np.isfinite(event.value) for event in segments)
    steps = [[step for step, _ in curve] for curve in history.anytime["logits"]]
    assert steps == ([[1], [1]] if eval_every else [[], []])
