"""Replay methods with another memory than the reservoir: the library's others, and one's own."""

from __future__ import annotations

import json
from typing import NamedTuple

import contract_support
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from memory_support import Fading, LastOne
from report_support import picture_stream

import cljax
from cljax import sweep
from cljax.cli import command
from cljax.errors import UserError
from cljax.memory import Contents, Memory, Ring, example_of, reservoir, ring
from cljax.methods import METHODS
from cljax.methods.groups.replay import ReplayOptions
from cljax.report import report
from cljax.runner.config import canonical
from cljax.runner.options import RunOptions
from cljax.runner.prepare import prepare
from cljax.streams.base import on_validation

REPLAYING = [name for name, method in METHODS.items() if isinstance(method, ReplayOptions)]
TINY = {"seeds": 2, "net": cljax.nets.mlp(3), "batch_size": 4}


def test_every_method_of_reservoirs_takes_a_memory():
    of_reservoirs = {"lamaml", "sync-lamaml", "cmaml", "la-er", "mer", "er", "meta-bgd"}
    assert of_reservoirs <= set(REPLAYING)


@pytest.mark.parametrize("memory", ["ring", "ring:per=class", "balanced", Fading(0.5), LastOne()])
@pytest.mark.parametrize("name", REPLAYING)
def test_every_method_replays_from_every_memory(name, memory):
    """The state keeps its form under an update, with every kind of what a memory draws."""
    method = contract_support.make(name, memory=memory)
    learner = method.bind(cljax.nets.mlp(5)(support.NUM_CLASSES), support.spec())

    def once(key):
        state, batch = learner.init(key), support.at(support.batches(1), 0)
        return state, learner.update(state, batch, learner.draw(state, batch, key))[0]

    before, after = jax.eval_shape(once, jax.random.key(0))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert [a.shape for a in jax.tree.leaves(before)] == [a.shape for a in jax.tree.leaves(after)]


@pytest.mark.parametrize("name", ["er", "mer"])
def test_what_a_method_stores_is_what_its_memory_would(name):
    """Also in MER, which offers the examples of a batch one by one while it draws."""
    method = contract_support.make(name, memory="ring")
    learner, batches = support.bind(method), support.batches(6)
    state, losses = support.run(learner, batches)
    assert np.isfinite(losses).all()
    expected, own = ring.init(example_of(support.spec()), support.NUM_TASKS, 2), Ring()
    for i in range(6):
        batch = support.at(batches, i)
        expected = own.offer(expected, method.examples(batch), batch.mask, ())
    jax.tree.map(np.testing.assert_array_equal, state.memory, expected)


def test_replayed_examples_are_those_of_the_memory():
    """The last one alone, so that a step learns from it beside the batch."""
    learner, batches = support.bind(cljax.ER(memory=LastOne(), replay_size=3)), support.batches(3)
    state, _ = support.run(learner, jax.tree.map(lambda a: a[:2], batches))
    draws = learner.draw(state, support.at(batches, 2), jax.random.key(0))
    assert draws.replay_mask.tolist() == [[True, False, False]] and draws.slots == ()
    np.testing.assert_array_equal(draws.replay.x[0, 0], batches.x[1, -1])


def jaxpr(method):
    learner = method.bind(cljax.nets.mlp(5)(support.NUM_CLASSES), support.spec())
    batch = support.at(support.batches(1), 0)

    def once(key):
        state = learner.init(key)
        return learner.update(state, batch, learner.draw(state, batch, key))

    return str(jax.make_jaxpr(once)(jax.random.key(0)))


def test_a_reservoir_has_the_methods_rule_unless_it_says_its_own():
    inclusive = jaxpr(cljax.ER(reservoir_rule="inclusive"))
    assert inclusive != jaxpr(cljax.ER())
    own = cljax.memory.Reservoir(rule="textbook")
    assert jaxpr(cljax.ER(memory=cljax.memory.Reservoir(), reservoir_rule="inclusive")) == inclusive
    assert jaxpr(cljax.ER(memory="reservoir:rule=inclusive")) == inclusive
    assert jaxpr(cljax.ER(memory=own, reservoir_rule="inclusive")) == jaxpr(cljax.ER())


def test_a_ring_for_each_task_needs_their_ids_and_one_for_each_class_does_not():
    assert cljax.ER(memory="ring").needs.task_ids_train
    assert not cljax.ER(memory="ring:per=class").needs.task_ids_train
    with_both = cljax.ER(memory="ring", penalty=cljax.penalties.SI())
    assert with_both.needs.boundaries and with_both.needs.task_ids_train
    blurry = support.stream(boundaries=False)
    with pytest.raises(UserError, match="er needs task boundaries"):
        support.learn(cljax.ER(memory="ring"), cljax.nets.mlp(3)(4), blurry, [0], batch_size=4)


def config_of(method, **options):
    return prepare(method, support.stream(), RunOptions(**{**TINY, **options})).config


def test_the_default_memory_is_not_said_and_another_is():
    said = [
        config_of(cljax.ER(memory=memory))
        for memory in ("reservoir", "ring", Ring(), Ring(per="class"), Fading(0.5), Fading(0.25))
    ]
    assert "memory" not in said[0]["method"]["options"]
    assert said[0]["config_hash"] == config_of(cljax.ER())["config_hash"]
    assert said[1]["method"]["options"]["memory"] == "ring"
    assert said[4]["method"]["options"]["memory"] == {"name": "fading", "options": {"share": 0.5}}
    assert len({config["config_hash"] for config in said}) == len(said)
    told = [config["identity"].get("method", {}).get("options", {}) for config in said]
    assert ["memory" in options for options in told] == [False] * 4 + [True] * 2
    assert not any("unknown" in config["identity"] for config in said)


def test_a_memory_of_ones_own_runs_is_read_back_and_reported(tmp_path):
    method = cljax.ER(memory=Fading(0.5), capacity=20, replay_size=4)
    done = cljax.run(method, picture_stream(), out=tmp_path / "run", **TINY)
    kept = np.load(tmp_path / "run" / "kept.npz")
    assert kept["memory/counts"].sum() == 20
    page = report(tmp_path / "run", out=tmp_path / "report.html").page.read_text()
    assert "What the memory of the first seed holds" in page and "fading(share=0.5)" in page
    written = (tmp_path / "run" / "results.json").stat().st_mtime_ns
    again = cljax.run(method, picture_stream(), out=tmp_path / "run", **TINY)
    assert (tmp_path / "run" / "results.json").stat().st_mtime_ns == written
    assert again.results["metrics"] == done.results["metrics"]
    with pytest.raises(UserError, match="method.options.memory.options.share, "):
        other = method.replace(share=0.25)
        cljax.run(other, picture_stream(), out=tmp_path / "run", **TINY)


def test_a_sweep_takes_memories_and_their_options(tmp_path):
    """Shares are traced: one program for all; each memory has its own."""
    small = {"capacity": 6, "replay_size": 3}
    tuned = support.stream()
    plan = sweep.plan(cljax.ER(memory=Fading(), **small), tuned, sweep.grid(share=[0.2, 0.9]),
                      seeds=1, net="mlp:3", batch_size=4)  # fmt: skip
    assert len(plan.groups) == 1
    settings = sweep.grid(memory=["reservoir", "balanced", Fading(0.5)])
    other = sweep.plan(cljax.ER(**small), tuned, settings, seeds=1, net="mlp:3", batch_size=4)
    assert len(other.groups) == 3
    sweep.run(plan, tmp_path)
    lane = plan.lanes[-1]
    single = cljax.run(
        cljax.ER(memory=Fading(0.9), **small), on_validation(tuned, lane.seed), seeds=[lane.seed],
        net="mlp:3", batch_size=4, entries="diagonal-last",
    )  # fmt: skip
    found = json.loads((tmp_path / "lanes" / lane.name / "results.json").read_text())
    assert lane.setting == {"share": 0.9}
    assert canonical(found["evaluations"]) == canonical(single.results["evaluations"])


class NoInit(Memory):
    def offer(self, memory, examples, mask, drawn):
        return memory


class NoOffer(Memory):
    def init(self, spec, capacity):
        return reservoir.init(example_of(spec), capacity)


class Breaks(NoOffer):
    def offer(self, memory, examples, mask, drawn):
        return memory._replace(age=memory.age + examples.x["image"])


class Grows(NoOffer):
    def offer(self, memory, examples, mask, drawn):
        return jax.tree.map(lambda a: jnp.concatenate([jnp.atleast_1d(a)] * 2), memory)


class DrawsOnce(Grows):
    def draw(self, memory, examples, mask, key):
        return jax.random.uniform(key)


class SamplesOne(Fading):
    def sample(self, memory, num, key, *, replace=False):
        return reservoir.sample(memory, 1, key, replace=replace)


class Silent(Memory):
    def init(self, spec, capacity):
        return jnp.zeros(capacity)


class FlatState(NamedTuple):
    rows: jax.Array

    @property
    def contents(self):
        none = jnp.zeros(len(self.rows), jnp.int32)
        return Contents(self.rows, none, none, none > 0)


class Flat(Memory):
    def init(self, spec, capacity):
        return FlatState(jnp.zeros((capacity, 2)))


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (NoInit(), r"The memory no-init needs a function init\(self, spec, capacity\)"),
        (NoOffer(), r"The memory no-offer needs a function offer\(self, memory, examples,"),
        (Breaks(), "The memory breaks fails in offer: "),
        (Grows(), "The memory grows changes its form in offer: "),
        (DrawsOnce(), r"draws-once draws float32\[\] for 3 examples, but it must draw a row for"),
        (SamplesOne(), r"samples-one samples float32\[1, 6\], .* a mask of bools, \[10, ...\]"),
        (
            Silent(),
            r"silent makes an array of shape .* in init, but it must make what has a property",
        ),
        (Flat(), r"flat says contents float32\[200, 2\], .* rows like float32\[6\],"),
    ],
)
def test_a_memory_that_is_none_is_refused_before_a_run_begins(memory, words, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        cljax.run(cljax.ER(memory=memory), support.stream(), out=tmp_path / "run", **TINY)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_memory_is_named_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = ["run", "er", "split-mnist", "--sample", "--samples-per-task", "20", "--net", "mlp:3",
            "--seeds", "1", "--batch-size", "10", "--out", "done"]  # fmt: skip
    with pytest.raises(SystemExit) as done:
        command.main([*line, "--memory", "ring:per=class"])
    assert done.value.code == 0
    config = json.loads((tmp_path / "done" / "config.json").read_text())
    assert config["method"]["options"]["memory"] == "ring:per=class"
    assert config["origins"]["memory"] == "command line"
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        command.main([*line, "--memory", "ring:per=head"])
    assert done.value.code == 2 and capsys.readouterr().err.count("\n") == 1


REGRESSION = cljax.streams.from_arrays(
    *[(np.eye(6, dtype=np.float32), np.linspace(-1.0, 1.0, 12).reshape(6, 2), np.arange(6) // 3)],
    test=(np.eye(6, dtype=np.float32), np.ones((6, 2)), np.arange(6) // 3),
    dtype="float32", loss="squared-error", val=0.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("memory", "why"),
    [
        ("balanced", "balances the examples of the classes"),
        ("ring:per=class", "has a buffer for each class"),
    ],
)
def test_a_memory_by_class_says_that_regression_has_none(memory, why):
    method = cljax.ER(memory=memory, capacity=6)
    words = rf"The memory {method.store.name} needs classes, because it {why}, .* float32\[2\]"
    with pytest.raises(UserError, match=words):
        prepare(method, REGRESSION, RunOptions(**TINY))


@pytest.mark.parametrize("memory", ["ring", Fading(0.5)])
def test_other_memories_store_targets_of_any_shape(memory):
    method = cljax.ER(memory=memory, capacity=6)
    stored = prepare(method, REGRESSION, RunOptions(**TINY))
    state = stored.method.store.init(stored.stream.spec(4), 6)
    assert state.contents.y.shape[-1] == 2 and state.contents.y.dtype == np.float32
