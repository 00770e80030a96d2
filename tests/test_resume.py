"""A run that is cut anywhere and continued gives the bits of the unbroken one."""

from __future__ import annotations

import functools

import incremental_support
import jax
import numpy as np
import pytest
import support
from memory_support import Fading
from support import learn

import cljax
from cljax.engine.learn import Checkpoints
from cljax.errors import Interrupted, UserError
from cljax.nets import mlp
from cljax.storage import checkpoint

IDENTITY = {"config_hash": "one", "versions": "these"}
LAMAML = cljax.LaMAML(capacity=6, replay_size=3, glances=2, algebra="low-rank")
EWC = cljax.Finetune(lr=0.05, optimizer="adam", penalty=cljax.penalties.EWC(3.0, num_examples=7))
MNEMONICS = cljax.LUCIR(
    per_class=2, capacity=None, exemplars="mnemonics:inner_steps=2,outer_epochs=1",
    balanced_epochs=1, optimizer="momentum",
)  # fmt: skip
METHODS = {
    "lamaml": LAMAML,
    "ewc with adam": EWC,  # an optimiser's state, phases
    "gem": cljax.GEM(lr=0.05, per_task=3),
    "own memory": cljax.ER(memory=Fading(0.5), capacity=6, replay_size=3),
    "lucir": MNEMONICS,  # a teacher, phases before and after tasks, exemplars that are learned
}
# Units of work in each attempt: a run is cut a few times.
PARTS = {"lamaml": 8, "ewc with adam": 10, "gem": 6, "own memory": 6, "lucir": 20}


@functools.cache
def problem(exemplars):
    """A network and a stream."""
    if exemplars:
        return mlp(5, head="cosine")(6), incremental_support.stream(per_class=4)
    return mlp(5)(support.NUM_CLASSES), support.stream()


def run(folder=None, *, method=LAMAML, seeds=(0, 1), stop_after=None, every=1, **options):
    """Runs, keeping a checkpoint every update, and is interrupted after some units of work."""
    asked = iter(range(10**6))
    return learn(
        method, *problem(method is MNEMONICS), list(seeds), batch_size=4,
        checkpoints=folder and Checkpoints(folder, IDENTITY),
        interrupted=lambda: stop_after is not None and next(asked) >= stop_after,
        **{"segment": 2, "eval_every": 2, "online": True, **options}, checkpoint_every=str(every),
    )  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _shared_programs():
    """Attempts of a run share what is compiled, as they do by JAX's cache in other processes."""
    with pytest.MonkeyPatch.context() as patched:
        support.share_programs(patched)
        yield


@pytest.fixture(name="unbroken", scope="module")
def _unbroken():
    """La-MAML's run that nothing interrupts: threads, a lane a seed."""
    return run()


def assert_same(a, b):
    """Everything but times."""
    jax.tree.map(np.testing.assert_array_equal, a._replace(time={}), b._replace(time={}))


@pytest.mark.parametrize("name", METHODS)
def test_cut_anywhere_and_continued_it_is_the_unbroken_run(name, tmp_path):
    method = METHODS[name]
    unbroken, attempts = run(method=method), 0
    while True:
        attempts += 1
        try:
            found = run(tmp_path, method=method, stop_after=PARTS[name])
            break
        except Interrupted:
            assert len(list(tmp_path.iterdir())) <= 3
    assert attempts >= 2  # threads may be past a cut before they are stopped
    assert_same(found, unbroken)


@pytest.mark.parametrize("lanes", ["vmap", "map"])
def test_batched_lanes_are_kept_too(lanes, unbroken, tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, lanes=lanes, stop_after=4)
    found = run(tmp_path, lanes=lanes)
    assert_same(found, unbroken if lanes == "map" else run(lanes=lanes))


def test_a_finished_lane_is_not_run_again(unbroken, tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, lanes="sequential", lanes_at_a_time=1, stop_after=15)
    events = []
    again = run(tmp_path, lanes="sequential", lanes_at_a_time=1, progress=events.append)
    assert_same(again, unbroken)
    assert 0 not in {event.run for event in events} and 1 in {event.run for event in events}


def test_a_checkpoint_that_cannot_be_used_is_skipped_with_a_sentence(unbroken, tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, stop_after=12)
    newest = sorted(tmp_path.iterdir())[-1]
    (newest / "position.json").write_text("{}")
    notes = []
    found = run(tmp_path, progress=lambda e: notes.append(e.note) if e.kind == "note" else None)
    assert len(notes) == 1 and str(newest) in notes[0] and "damaged" in notes[0]
    assert_same(found, unbroken)


def test_other_versions_are_refused_and_foreign_checkpoints_skipped(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, method=cljax.Finetune(), stop_after=6)
    with pytest.raises(UserError, match="versions was these and is others"):
        checkpoint.newest(tmp_path, {**IDENTITY, "versions": "others"})
    kept, skipped = checkpoint.newest(tmp_path, {**IDENTITY, "config_hash": "two"})
    assert kept is None and all("another run" in sentence for sentence in skipped)


def test_the_same_identity_with_other_shapes_is_refused(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, method=cljax.Finetune(), stop_after=6)
    with pytest.raises(UserError, match="does not fit this run"):
        run(tmp_path, method=cljax.Finetune(optimizer="momentum"))


def test_settings_share_one_program_and_equal_their_single_runs():
    settings = [{"alpha_init": 0.1, "alpha_lr": 0.2}, {"alpha_init": 0.3}]
    methods = [cljax.LaMAML(**{**dict(LAMAML.options), **setting}) for setting in settings]
    both = run(method=methods)
    single = run(method=methods[1], seeds=(1,))
    jax.tree.map(np.testing.assert_array_equal, both.states[1], single.states[0])
    with pytest.raises(AssertionError):
        jax.tree.map(np.testing.assert_array_equal, both.states[0], single.states[0])
    with pytest.raises(UserError, match="differ in more than real options"):
        run(method=[LAMAML, LAMAML.replace(capacity=3)])
    with pytest.raises(UserError, match="There are 1 methods and 2 seeds"):
        run(method=[LAMAML])


def test_mapped_lanes_have_the_bits_of_single_runs(unbroken):
    assert_same(run(lanes="map"), unbroken)
    assert_same(run(lanes="map", lanes_at_a_time=1), unbroken)


def test_batchnorm_and_keys_in_the_state_survive(tmp_path):
    """Types that numpy does not know: random keys and bfloat16."""
    key = jax.random.split(jax.random.key(3), 2)
    half = jax.numpy.arange(3, dtype=jax.numpy.bfloat16) / 7
    arrays = {name: checkpoint.host_copy(a) for name, a in {"key": key, "half": half}.items()}
    arrays["empty"] = np.zeros((0, 3), np.float32)
    kept = checkpoint.Snapshot(arrays, {"lanes": {}})
    checkpoint.save(tmp_path, kept, IDENTITY, number=1)
    found, skipped = checkpoint.newest(tmp_path, IDENTITY)
    assert not skipped and found.arrays["empty"].shape == (0, 3)
    for name, original in {"key": key, "half": half}.items():
        like = jax.eval_shape(lambda a: a, original)
        again = checkpoint.revived(found.arrays[name], like)
        assert again.dtype == original.dtype
        np.testing.assert_array_equal(checkpoint.host_copy(again), checkpoint.host_copy(original))
