"""Replay methods with another memory than the reservoir: the library's others, and one's own."""

from __future__ import annotations

import json
import re
import sys
from typing import NamedTuple

import contract_support
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from folders_support import call, one_sentence
from memory_support import Fading, LastOne
from report_support import picture_stream

import cljax
from cljax import sweep
from cljax.checks import check_offer
from cljax.cli import command
from cljax.errors import UserError
from cljax.memory import (
    Balanced,
    Contents,
    Memory,
    Reservoir,
    Ring,
    example_of,
    memories,
    reservoir,
    ring,
)
from cljax.methods import METHODS
from cljax.methods.groups.replay import ReplayOptions
from cljax.report import report
from cljax.runner.config import canonical
from cljax.runner.options import RunOptions
from cljax.runner.prepare import prepare
from cljax.runner.remade import remade
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


def test_on_a_stream_without_tasks_a_ring_for_each_class_is_the_way_out():
    blurry = support.stream(boundaries=False)
    learn = lambda m: support.learn(m, cljax.nets.mlp(3)(4), blurry, [0], batch_size=4)
    refused = "er needs task boundaries, .* or a memory that needs none, such as ring:per=class.$"
    with pytest.raises(UserError, match=refused):
        learn(cljax.ER(memory="ring"))
    history = learn(cljax.ER(memory="ring:per=class"))
    assert np.asarray(history.states[0].memory.contents.mask).any()
    with_both = cljax.ER(memory="ring", penalty=cljax.penalties.SI())  # which needs them too
    with pytest.raises(UserError, match=r"or split-mnist\.$"):
        learn(with_both)


def config_of(method, **options):
    return prepare(method, support.stream(), RunOptions(**{**TINY, **options})).config


def test_the_default_memory_is_not_said_and_another_is():
    said = [
        config_of(cljax.ER(memory=memory))
        for memory in ("reservoir", "ring", "ring:per=class", "balanced", Fading(0.5), Fading(0.25))
    ]
    assert "memory" not in said[0]["method"]["options"]
    assert said[0]["config_hash"] == config_of(cljax.ER())["config_hash"]
    assert said[1]["method"]["options"]["memory"] == "ring"
    assert said[4]["method"]["options"]["memory"] == {"name": "fading", "options": {"share": 0.5}}
    assert len({config["config_hash"] for config in said}) == len(said)
    told = [config["identity"].get("method", {}).get("options", {}) for config in said]
    assert ["memory" in options for options in told] == [False] * 4 + [True] * 2
    assert not any("unknown" in config["identity"] for config in said)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("reservoir", Reservoir()), ("ring", Ring()), ("ring", Ring(per="task")),
        ("ring:per=class", Ring(per="class")), ("balanced", Balanced()),
        ("reservoir:rule=inclusive", Reservoir(rule="inclusive")),
    ],
)  # fmt: skip
def test_a_memory_of_the_library_and_its_name_are_one(name, made):
    configs = [config_of(cljax.ER(memory=memory)) for memory in (name, made)]
    assert configs[0]["config_hash"] == configs[1]["config_hash"]
    assert configs[1]["method"] == configs[0]["method"]


class LikeRing(Ring, name="ring"):
    """One's own, which is called as one of the library is."""


def test_ones_own_memory_is_none_of_the_library_whatever_its_name():
    assert memories.called(LikeRing()) == LikeRing()
    told = [config_of(cljax.ER(memory=m))["config_hash"] for m in (Ring(), LikeRing())]
    assert told[0] != told[1]


OWN = """
import jax
from cljax.memory import Reservoir, reservoir, example_of, Memory
from cljax.options import Share

class Half(Memory):
    share: Share = 0.5

    def init(self, spec, capacity):
        return reservoir.init(example_of(spec), capacity)

    def draw(self, memory, examples, mask, key):
        return reservoir.draw_slots(memory, mask, key)

    def offer(self, memory, examples, mask, drawn):
        return reservoir.write(memory, examples, drawn, mask)

def made():
    return Half(share=0.25)

word = 3
def none():
    return 3
"""


@pytest.fixture(name="own")
def _own(tmp_path, monkeypatch):
    (tmp_path / "own_memory.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_memory", None)


SPLIT = ["split-mnist", "--sample", "--samples-per-task", "20", "--net", "mlp:3", "--seeds", "1",
         "--batch-size", "10"]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "share"),
    [("own_memory:Half", 0.5), ("own_memory:made", 0.25), ("own_memory:Half:share=0.75", 0.75)],
)
def test_a_memory_of_ones_own_is_named_on_the_command_line(name, share, own, tmp_path, capsys):
    code, _, err = call(capsys, "run", "er", *SPLIT, "--out", "done", "--memory", name)
    assert code == 0, err
    config = json.loads((tmp_path / "done" / "config.json").read_text())
    said = {"name": "half", "options": {"share": share}}
    assert config["method"]["options"]["memory"] == said
    assert config["begun_as"]["method_options"]["memory"] == name
    with pytest.raises(UserError, match=f"names the code {name}"):
        remade(tmp_path / "done", config, trust=False)
    again = remade(tmp_path / "done", config, trust=True)
    assert again.config["config_hash"] == config["config_hash"]
    assert again.method.store.share == share


def test_a_sweep_of_the_command_line_takes_memories_of_ones_own(own, tmp_path, capsys):
    over = "memory=ring:per=class,own_memory:Half"
    asked = ("sweep", "er", *SPLIT, "--over", over, "--out", "done")
    assert call(capsys, *asked)[0] == 0
    lanes = json.loads((tmp_path / "done" / "sweep.json").read_text())["lanes"]
    assert [lane["setting"]["memory"] for lane in lanes] == over.partition("=")[2].split(",")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_memory:word", "memory own_memory:word is 3, but it must be a function"),
        ("own_memory:none", "own_memory:none is 3, but it must be a cljax.memory.Memory, or make"),
        ("own_memory:Half:size=3", "has 'size=3', .* the names share"),
        ("own_memory:Third", "which the module own_memory does not have"),
        ("nowhere:Half", "names the module nowhere, which cannot be imported"),
    ],
)
def test_a_name_of_no_memory_is_one_sentence(name, words, own, capsys):
    said = call(capsys, "run", "er", *SPLIT, "--memory", name)
    assert one_sentence(*said) and re.search(words, said[2])


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


class Careless(NoOffer):
    """Stores each row of a batch, masked or not."""

    def offer(self, memory, examples, mask, drawn):
        slots = memory.age + jnp.arange(len(mask))
        return reservoir.write(memory, examples, slots, jnp.ones_like(mask))


class Unmasked(NoOffer):
    """Counts valid rows alone, but gives slots to all."""

    def offer(self, memory, examples, mask, drawn):
        return reservoir.write(memory, examples, memory.age + jnp.arange(len(mask)), mask)


@pytest.mark.parametrize("of", ["labels", "targets", "a method inside another"])
@pytest.mark.parametrize("memory", [Careless(), Unmasked()])
def test_a_memory_that_stores_masked_rows_is_refused(memory, of, tmp_path):
    method = cljax.ER(memory=memory)
    if of == "a method inside another":
        method = cljax.WithExemplars(method, "random", exemplars_per_class=1)
    stream = REGRESSION if of == "targets" else cljax.streams.toy("class")
    refused = f"The memory {memory.name} stores rows that are masked: .* whose mask is False"
    with pytest.raises(UserError, match=refused):
        cljax.run(method, stream, out=tmp_path / "run", progress=False, **TINY)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("memory", [Fading(0.5), LastOne(), LikeRing(), LikeRing(per="class")])
def test_a_memory_that_passes_over_masked_rows_is_taken(memory):
    check_offer(memory, support.spec(), 8)


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
