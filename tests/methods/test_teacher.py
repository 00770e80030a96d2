"""The teacher's method and its meta-training as phases: end to end, resumed, in parts, refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transfer_support import stream

import cljax
from cljax.cli.command import main
from cljax.engine.options import Running
from cljax.errors import Interrupted, UserError
from cljax.methods.teacher import Teacher
from cljax.update_rules import meta_training
from cljax.update_rules.gate import SGD
from cljax.update_rules.stored import save_rule

SMALL = {
    "hidden": 4, "episodes_at_once": 3, "truncation": 2, "truncation_step": 1, "truncation_cap": 3,
    "level_every": 2, "longest": 7, "episodes": 6, "windows": 12, "target": 4, "old_size": 5,
}  # fmt: skip
FLAT = {**SMALL, "truncation_step": 0, "truncation_cap": 2}  # one level: one program of windows


def run(method, on=None, **options):
    return cljax.run(
        method, on or stream(), seeds=1, net=cljax.nets.mlp(4), batch_size=5, **options,
    )  # fmt: skip


@pytest.fixture(scope="module", name="trained")
def _trained(tmp_path_factory):
    return run(Teacher(lr=0.1, **SMALL), out=tmp_path_factory.mktemp("trained") / "run")


def test_meta_training_moves_the_rule_and_records_its_episodes(trained):
    state = trained.states[0].inner
    leaves = jax.tree_util.tree_leaves_with_path(state.theta)
    kappas = [leaf for path, leaf in leaves if "kappa" in jax.tree_util.keystr(path)]
    assert kappas and all(float(jnp.abs(kappa - SGD).min()) > 1e-3 for kappa in kappas)
    lengths = np.asarray(state.training.lengths)
    ended = int(state.training.episodes)
    assert ended >= 6
    assert ((lengths[:6] >= 1) & (lengths[:6] <= 7)).all()
    assert float(state.training.rho) > 0


def test_old_and_new_examples_are_those_of_the_episode():
    """Old rows are the source task's, new ones of the lane's held classes, labels their places."""
    method = Teacher(lr=0.1, rho=1.0, **SMALL)
    own = stream()
    spec = own.spec(5)
    learner = method.bind(cljax.nets.mlp(4)(own.num_classes), spec)
    state = learner.init(jax.random.key(0))
    rows = own.subsets(0)[0]
    kept = state.training._replace(
        rows=state.training.rows.at[: len(rows)].set(rows), count=jnp.asarray(len(rows)),
        classes=jnp.asarray([[[0, 1, 2]], [[3, 1, 0]], [[2, 3, 1]]]),
    )  # fmt: skip
    phase = next(phase for phase in learner.phases if phase.name == "meta-training")
    row = jax.tree.map(lambda a: a[0], phase.plan(0, own.planner(0, 5, 1)))
    chosen = phase.select(state._replace(training=kept), row, jax.random.key(1)).index
    shape = (3, 3, 10)  # steps, lanes, old and new
    y = np.asarray(own.train_y)[np.asarray(chosen)].reshape(shape)
    assert np.isin(np.asarray(chosen).reshape(shape)[..., :5], rows).all()
    held_labels = own.train_y[own.held[:, 0]]
    for lane, classes in enumerate(np.asarray(kept.classes)[:, 0]):
        assert np.isin(y[:, lane, 5:], held_labels[classes]).all()
    assert len(np.unique(y[:, 1, 5:])) == 3
    batch = cljax.types.Batch(
        jnp.zeros((90, 4, 4, 1)), jnp.asarray(y.reshape(-1)), None, None, None, None
    )  # fmt: skip
    course = _course(phase)
    shown = meta_training._shown(course, kept, batch)
    assert (np.asarray(shown.y)[..., :5] == y[..., :5]).all()
    for lane, classes in enumerate(np.asarray(kept.classes)[:, 0]):
        place = {int(held_labels[c]): 3 + i for i, c in enumerate(classes)}
        assert (np.asarray(shown.y)[:, lane, 5:] == np.vectorize(place.get)(y[:, lane, 5:])).all()
    assert (np.asarray(shown.outputs)[..., 5:, :] == spec.class_mask[1]).all()
    assert (np.asarray(shown.outputs)[..., :5, :] == spec.class_mask[0]).all()


def _course(phase):
    return phase.select.args[0]


def test_episodes_begin_at_the_source_with_new_rows_of_the_head():
    method = Teacher(lr=0.1, rho=1.0, **SMALL)
    own = stream()
    model = cljax.nets.mlp(4)(own.num_classes)
    learner = method.bind(model, own.spec(5))
    state = learner.init(jax.random.key(0))
    phase = next(phase for phase in learner.phases if phase.name == "source-rows")
    chance = phase.draw(state, None, jax.random.key(5))
    batch = cljax.types.Batch(None, None, None, None, jnp.arange(7), None)
    lanes = phase.update(state, batch, chance)[0].training.lanes
    same = lambda a, b: np.testing.assert_array_equal(a, b)
    jax.tree.map(same, lanes.teacher, lanes.student)
    head = lanes.student["Dense_1"]["kernel"]
    for lane in range(3):
        same(lanes.student["Dense_0"]["kernel"][lane], state.params["Dense_0"]["kernel"])
        same(head[lane][:, :3], state.params["Dense_1"]["kernel"][:, :3])
        assert not np.allclose(head[lane][:, 3:], state.params["Dense_1"]["kernel"][:, 3:])
    assert not np.allclose(head[0], head[1])
    assert not lanes.done.any()


def test_the_new_task_is_learned_by_the_rule_and_the_source_is_only_pretrained(trained, tmp_path):
    """Rows of the source's outputs stand still; a rule at its start is fine-tuning."""
    own = stream()
    learner = Teacher(lr=0.1, **SMALL).bind(cljax.nets.mlp(4)(own.num_classes), own.spec(5))
    first = jax.jit(learner.init)(jax.random.key(1)).theta
    save_rule(tmp_path, first, seed=0)
    plain = run(Teacher(lr=0.1, rule=str(tmp_path), hidden=4)).states[0]
    tuned = run(cljax.Finetune(lr=0.1)).states[0]
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
    jax.tree.map(close, plain.params, tuned.params)
    ours = trained.states[0]
    assert not np.allclose(ours.params["Dense_0"]["kernel"], tuned.params["Dense_0"]["kernel"])
    head = [np.asarray(s.params["Dense_1"]["kernel"]) for s in (ours, tuned)]
    np.testing.assert_array_equal(head[0][:, :3], head[1][:, :3])


def test_a_given_rule_is_used_without_meta_training(trained, tmp_path):
    rule = trained.states[0].inner.theta
    again = run(Teacher(lr=0.1, rule=rule, hidden=4))
    assert again.states[0].inner.training == ()
    jax.tree.map(np.testing.assert_array_equal, again.states[0].params, trained.states[0].params)
    own = stream()
    problem = cljax.nets.mlp(4)(own.num_classes), own.spec(5)
    save_rule(tmp_path, rule, seed=3)
    for where in ({"rule": str(trained.path)}, {"rule": str(tmp_path), "rule_seed": 3}):
        learner = Teacher(hidden=4, **where).bind(*problem)  # a run keeps what it learned
        read = learner.init(jax.random.key(0)).theta
        jax.tree.map(np.testing.assert_array_equal, read, rule)
    with pytest.raises(UserError, match="No learned update rule for seed 0"):
        run(Teacher(rule=str(tmp_path), hidden=4))
    with pytest.raises(UserError, match="made for another network"):
        run(Teacher(rule=str(tmp_path), rule_seed=3, hidden=5))


@pytest.mark.slow
def test_two_parts_go_on_from_each_other():
    """Classes of the second part become old examples; lengths count both parts."""
    own = stream(groups=((0, 1, 2), (3, 4), (5, 6)), held=(3, 4, 5, 6, 7), share=0.5)
    state = run(Teacher(lr=0.1, **FLAT), own).states[0].inner
    assert state.training.classes.shape == (3, 2, 2)
    lengths = np.asarray(state.training.lengths)
    assert (lengths[lengths > 0] <= 14).all()
    assert (lengths > 0).any()


@pytest.mark.slow
def test_episodes_start_from_networks_of_their_own_first_weights():
    """Pretrained like the run's own, with other weights; the run's own is not among them."""
    state = run(Teacher(lr=0.1, checkpoints=4, **FLAT)).states[0].inner
    kernels = np.asarray(state.sources.params["Dense_0"]["kernel"])
    assert kernels.shape[0] == 4
    assert len({kernel.tobytes() for kernel in kernels}) == 4
    own = run(Teacher(lr=0.0, **{**SMALL, "meta_lr": 0.0})).states[0].params["Dense_0"]["kernel"]
    assert not any(np.allclose(kernel, own) for kernel in kernels)
    model, on = cljax.nets.mlp(4)(6), stream()
    x = jnp.asarray(on.test_x[on.test_index[0]] / 255.0, jnp.float32)
    y, right = on.test_y[on.test_index[0]], []
    for i in range(4):
        params = jax.tree.map(lambda a, i=i: a[i], state.sources.params)
        logits = model.apply(cljax.types.Variables(params, {}), x, False)[0].logits
        right.append(float((logits[:, :3].argmax(1) == y).mean()))
    assert np.mean(right) > 0.5


@pytest.mark.parametrize("estimator", ["window", pytest.param("per-step", marks=pytest.mark.slow)])
def test_meta_training_resumes_bit_for_bit(trained, tmp_path, estimator):
    """Interrupted inside the phase, its 36th segment, with a checkpoint at every update."""
    method = Teacher(lr=0.1, **{**SMALL, "estimator": estimator})
    whole = trained if estimator == "window" else run(method)
    stopped = tmp_path / "stopped"
    seen = []

    def stop(event):
        if event.kind == "segment":
            seen.append(event)
            if len(seen) == 36:
                raise KeyboardInterrupt

    running = Running(checkpoint_every="1", segment_seconds=1e-6)
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        run(method, out=stopped, progress=stop, running=running)
    after = run(method, out=stopped, running=running)
    jax.tree.map(np.testing.assert_array_equal, after.states, whole.states)


def test_thresholds_that_end_every_episode_at_once_are_reported_and_end():
    tiny = {**FLAT, "threshold": 1e-9, "threshold_step": 0.0, "threshold_cap": 1e-9}
    state = run(Teacher(lr=0.1, rho=1.0, **tiny)).states[0].inner
    assert (np.asarray(state.training.lengths) == 1).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"episodes_at_once": 0}, "episodes_at_once"),
        ({"truncation": 5, "truncation_cap": 5, "longest": 4}, "longer than an episode"),
        ({"order": 3}, "order 1 or 2"),
        ({"estimator": "pes"}, "pes"),
        ({"rho": float("nan")}, "rho"),
        ({"target": 0}, "target"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(UserError, match=match):
        Teacher(**options)


def test_streams_without_what_it_practises_on_are_refused():
    with pytest.raises(UserError, match="holds out none"):
        run(Teacher(**SMALL), stream(held=()))
    with pytest.raises(UserError, match="only 2"):
        run(Teacher(**SMALL), stream(held=(6, 7)))
    with pytest.raises(UserError, match="equal size"):
        run(Teacher(**SMALL), stream(groups=((0, 1, 2), (3, 4), (5,))))


def test_its_options_are_flags_beside_those_of_its_streams(capsys):
    """No option has the name of another: the command line would refuse both."""
    with pytest.raises(SystemExit) as done:
        main(["run", "teacher", "fashion-5-5", "--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    for flag in ("--rule", "--truncation-cap", "--episodes-at-once", "--pretrain-steps", "--steps"):
        assert flag in out
