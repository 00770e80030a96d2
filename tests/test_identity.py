"""A run's identity is its content: what can give other bits has another one, in any process."""

from __future__ import annotations

import collections
import functools
import json
import logging
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import support

import cljax
from cljax.errors import UserError
from cljax.identity.content import content
from cljax.runner import artefacts
from cljax.runner.config import differences
from cljax.runner.options import RunOptions
from cljax.runner.prepare import prepare
from cljax.types import Info, Predictor

RATE = 0.1
TABLE_FILE = pathlib.Path("table.txt")
TABLE = {"inner": {"rate": 0.5}}
OFFSET = 1.0


def hash_of(method=None, stream=None, **options):
    options = {"seeds": 1, "net": "mlp:5", "batch_size": 4, **options}
    method = cljax.Finetune(lr=0.1) if method is None else method
    source = support.stream() if stream is None else stream
    made = prepare(method, source, RunOptions(**options))
    return made.config["config_hash"]


class Net(nn.Module):
    outputs: int
    width: int = 3
    factor = 1.0

    @nn.compact
    def __call__(self, x, train=False):
        h = nn.tanh(nn.Dense(self.width)(x.reshape(x.shape[0], -1)))
        return self.factor * nn.Dense(self.outputs)(h), h


class Wider(Net):
    factor = 2.0


class Maker:
    def __init__(self, width, scale=None):
        self.width, self.scale = width, scale

    def __call__(self, outputs):
        return cljax.nets.from_linen(Net(outputs, self.width))


def linen(width, kind=Net):
    return lambda outputs: cljax.nets.from_linen(kind(outputs, width))


def from_linen(outputs, *, width):
    return cljax.nets.from_linen(Net(outputs, width))


@functools.wraps(cljax.nets.mlp(5))
def disguised(outputs):
    return cljax.nets.mlp(6)(outputs)


disguised.__name__ = "mlp:5"
TWO = [lambda n: cljax.nets.mlp(5)(n), lambda n: cljax.nets.mlp(7)(n)]


def test_different_networks_of_ones_own_never_share_a_hash():
    kinds = [
        "mlp:5", cljax.nets.mlp(6), disguised, *TWO, linen(2), linen(4), linen(2, Wider), Maker(2),
        Maker(4), Maker(2, np.arange(3)), Maker(2, np.arange(3.0)),
        functools.partial(from_linen, width=2), functools.partial(from_linen, width=4),
        jax.tree_util.Partial(from_linen, width=4), Maker(2).__call__,
    ]  # fmt: skip
    hashes = [hash_of(net=net) for net in kinds]
    assert len(set(hashes)) == len(kinds)
    assert hash_of(net=linen(2)) == hashes[5] and hash_of(net=cljax.nets.mlp(5)) == hashes[0]


def test_networks_of_other_libraries_are_told_by_what_makes_them():
    eqx, nnx, hk = (pytest.importorskip(name) for name in ("equinox", "flax.nnx", "haiku"))

    class Equinox(eqx.Module):
        inner: eqx.nn.Linear
        out: eqx.nn.Linear

        def __init__(self, outputs, width, key):
            self.inner = eqx.nn.Linear(6, width, key=key)
            self.out = eqx.nn.Linear(width, outputs, key=key)

        def __call__(self, x):
            h = jnp.tanh(self.inner(x))
            return self.out(h), h

    class Nnx(nnx.Module):
        def __init__(self, outputs, width, rngs):
            self.inner = nnx.Linear(6, width, rngs=rngs)
            self.out = nnx.Linear(width, outputs, rngs=rngs)

        def __call__(self, x):
            h = jnp.tanh(self.inner(x))
            return self.out(h), h

    def haiku(outputs, width):
        def forward(x, train):
            h = jnp.tanh(hk.Linear(width)(x))
            return hk.Linear(outputs)(h), h

        return forward

    makers = {
        "equinox": lambda w: lambda n: cljax.nets.from_equinox(lambda key: Equinox(n, w, key)),
        "nnx": lambda w: lambda n: cljax.nets.from_nnx(lambda rngs: Nnx(n, w, rngs)),
        "haiku": lambda w: lambda n: cljax.nets.from_haiku(haiku(n, w)),
    }
    for name, net in makers.items():
        found = [content(net(width)) for width in (2, 3, 2)]
        assert found[0].json == found[2].json != found[1].json, name
        assert not found[0].unknown and found[0].packages, name


class Hidden(nn.Module):
    _scale: float = 1.0

    def __post_init__(self):
        self._offset = OFFSET
        super().__post_init__()

    def __call__(self, x, train=False):
        return self._scale * x + self._offset, x


def test_fields_of_linen_modules_that_begin_with_an_underscore_are_part_of_them(monkeypatch):
    inside = lambda scale: nn.Sequential([Hidden(_scale=scale)])
    base = content(Hidden())
    assert base.json == content(Hidden()).json and not base.unknown
    assert content(Hidden(_scale=2.0)).json != base.json
    assert content(inside(1.0)).json != content(inside(2.0)).json
    one = Hidden()
    one.init(jax.random.key(0), jnp.ones(3))
    assert content(one).json == base.json  # what Flax keeps of its use is no part of it
    monkeypatch.setitem(globals(), "OFFSET", 2.0)
    assert content(Hidden()).json != base.json


def test_globals_that_nested_code_reads_are_part_of_it(monkeypatch):
    def update(state, batch, key):
        def inner(w):
            return w * RATE + TABLE["inner"]["rate"]

        return jax.tree.map(inner, state), Info(0.0)

    before = content(update)
    assert content(update).json == before.json
    monkeypatch.setitem(globals(), "RATE", 0.2)
    assert content(update).json != before.json
    monkeypatch.setitem(globals(), "RATE", 0.1)
    monkeypatch.setitem(globals(), "unrelated", object())
    assert content(update).json == before.json
    monkeypatch.setitem(globals(), "TABLE", {"inner": {"rate": 0.25}})
    assert content(update).json != before.json
    assert content(jax.jit(update)).json != content(update).json
    assert not content(jax.jit(jax.vmap(update))).unknown


def test_what_is_only_remembered_is_no_part_of_a_thing():
    class Lazy:
        @functools.cached_property
        def rate(self):
            return 0.5

    @functools.singledispatch
    def rate(x):
        return 0.0

    lazy, log, numbers = Lazy(), logging.getLogger("cljax.tests"), lambda: (lazy, log, rate)
    before = content(numbers)
    log.isEnabledFor(10), rate(1), lazy.rate
    assert content(numbers).json == before.json and not before.unknown
    rate.register(int, lambda x: 1.0)
    assert content(numbers).json != before.json


def test_values_are_told_apart_by_type_order_and_bits():
    values = [
        1, 1.0, True, "1", (1,), [1], {1}, {"a": 1, "b": 2}, {"b": 2, "a": 1}, {1: 2}, None,
        np.float32(1), np.float64(1), jnp.float32(1), np.arange(2), np.arange(2.0), -0.0, 0.0,
        float("nan"), float("inf"), b"1", np.array([[1]]), slice(1), range(1), jax.random.key(0),
        jax.random.key(1), np.ma.masked_array([0, 1], [True, False]),
    ]  # fmt: skip
    texts = [json.dumps(content(value).json, sort_keys=True) for value in values]
    same = [(a, b) for a in range(len(texts)) for b in range(a) if texts[a] == texts[b]]
    assert [(values[a], values[b]) for a, b in same] == []


def test_containers_of_own_classes_are_told_by_class_and_attributes():
    def made(base, *given, rate=None, **body):
        value = type("Kind", (base,), body)(*given)
        if rate is not None:
            value.rate = rate
        return value

    for base, given in ((dict, {"a": 1}), (list, [1]), (tuple, [1]), (set, [1])):
        kinds = [
            base(given), made(base, given), made(base, given, rate=1), made(base, given, rate=2),
            made(base, given, K=1), made(base, given, K=2),
        ]  # fmt: skip
        assert len({json.dumps(content(value).json) for value in kinds}) == len(kinds), base
    classes = [type("Meta", (type,), {"rate": rate})("Kind", (), {}) for rate in (1, 2)]
    rates = [collections.defaultdict(lambda r=r: r) for r in (1, 2)]
    queues = [collections.deque([1], n) for n in (2, 3)]
    table = [np.zeros(2), np.zeros(2).view(np.recarray)]
    for a, b in (classes, rates, queues, table):
        assert content(a).json != content(b).json and not content(b).unknown


def test_optimisers_schedules_and_penalties_are_told_by_content():
    def schedule(rate):
        return lambda step: rate / (1 + step)

    def quadratic(factor):
        class Quadratic(cljax.penalties.EWC):
            def value(self, state, params):
                return factor * jnp.zeros(())

        return Quadratic(1.0)

    class Faster(cljax.Finetune):
        def bind(self, model, spec):
            return cljax.Finetune(lr=0.3).bind(model, spec)

    make = cljax.Finetune
    methods = [
        make(optimizer=optax.sgd(0.1)), make(optimizer=optax.sgd(0.2)),
        make(optimizer=optax.sgd(schedule(0.1))), make(optimizer=optax.sgd(schedule(0.2))),
        make(optimizer=optax.sgd(optax.cosine_decay_schedule(0.1, 6))),
        make(penalty=cljax.penalties.EWC(1.0)), make(penalty=cljax.penalties.EWC(2.0)),
        make(penalty=quadratic(1.0)), make(penalty=quadratic(2.0)),
        cljax.resolve.method("ewc", strength=1.0), make(),
        Faster(), make(lr=np.float32(0.01)), make(lr=0.01),
    ]  # fmt: skip
    hashes = [hash_of(method) for method in methods]
    assert hashes[-1] == hashes[10] and hashes[5] == hashes[9]  # the same, made in two ways
    assert len(set(hashes)) == len(methods) - 2
    assert hash_of(make(optimizer=optax.sgd(schedule(0.2)))) == hashes[3]


class State(NamedTuple):
    w: jax.Array


def own_method(rate, start=None):
    weights = np.zeros((6, 4)) if start is None else start

    class Own(cljax.Method):
        def init(self, problem, key):
            return State(jnp.asarray(weights))

        def update(self, problem, state, batch, draws):
            return State(state.w - rate), Info(jnp.zeros(()))

        def predictors(self, problem):
            scores = lambda state, batch: batch.x.reshape(batch.x.shape[0], -1) @ state.w
            return {"logits": Predictor(lambda state: state, scores)}

    return Own()


def of_update(update):
    """A method of one number that has this update."""

    class Own(cljax.Method):
        def init(self, problem, key):
            return State(jnp.ones(()))

        def update(self, problem, state, batch, draws):
            return update(state, batch, draws)

    return Own()


def test_methods_of_ones_own_are_told_by_what_their_functions_hold():
    hashes = {
        hash_of(own_method(0.1)), hash_of(own_method(0.2)),
        hash_of(own_method(0.1, np.ones((6, 4)))), hash_of(cljax.Finetune(lr=0.1)),
    }  # fmt: skip
    assert len(hashes) == 4 and hash_of(own_method(0.1)) in hashes


def test_differences_are_named_as_their_owner_would():
    def config(method=None, net=None):
        options = RunOptions(net=net or linen(2), seeds=1, batch_size=4)
        return prepare(method or own_method(0.1), support.stream(), options).config

    base = config()
    assert differences(base, config(net=linen(4))) == ["net.width"]
    assert "method.update.rate" in differences(base, config(method=own_method(0.2)))
    assert "net.Net" not in differences(base, config(net="mlp:5"))
    assert differences(base, config(net=linen(2))) == []
    inside = lambda w: {"identity": {"net": {"__wrapped__": {"closure": {"w": {"pairs": w}}}}}}
    assert differences(inside([1]), inside([2])) == ["net.w"]


def test_jitted_functions_run_with_the_values_that_tell_them(monkeypatch):
    helper = jax.jit(lambda x: x * RATE)
    update = jax.jit(lambda state, batch, key: (State(helper(state.w)), Info(0.0)))
    method = of_update(update)
    results = []
    for rate in (0.25, 0.5):
        monkeypatch.setitem(globals(), "RATE", rate)
        results.append((hash_of(method), float(update(State(1.0), None, None)[0].w)))
    assert results[0][0] != results[1][0] and [value for _, value in results] == [0.25, 0.5]
    cached = functools.cache(lambda: RATE)
    assert content(lambda: cached()).unknown == ("closure.cached (it keeps earlier results)",)


def scanned(carry, _):
    return carry * RATE, None


def times_rate(value):
    return value * RATE


LOOPS = {
    "scan": lambda x: jax.lax.scan(scanned, x, None, length=1)[0],
    "while": lambda x: jax.lax.while_loop(lambda x: x > 0.9, times_rate, x),
    "cond": lambda x: jax.lax.cond(x > 0, times_rate, times_rate, x),
    "checkpoint": lambda x: jax.checkpoint(times_rate)(x),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_functions_in_loops_run_with_the_values_that_tell_them(loop, monkeypatch):
    """JAX keeps the trace of a function that it has met, whatever the globals have become."""

    def update(state, batch, key):
        return State(LOOPS[loop](state.w)), Info(0.0)

    method = of_update(update)
    results = []
    for rate in (0.25, 0.5):
        monkeypatch.setitem(globals(), "RATE", rate)
        hash_of(method)
        results.append(float(jax.jit(lambda x: update(State(x), None, None)[0].w)(1.0)))
    assert results == [0.25, 0.5]


def once(folder, **options):
    options = {"net": linen(2), "seeds": 1, "batch_size": 4, "out": folder, **options}
    return cljax.run(cljax.Finetune(lr=0.1), support.stream(), **options)


def test_a_folder_gives_back_its_own_run_alone(tmp_path):
    assert not once(tmp_path / "a").resumed and once(tmp_path / "a").resumed
    with pytest.raises(UserError, match=r"another run: net.width differ; name another folder"):
        once(tmp_path / "a", net=linen(4))


def test_a_run_that_cannot_be_told_needs_an_id_to_be_read_back(tmp_path):
    rng = np.random.default_rng(0)

    def net(outputs):
        assert rng is not None
        return cljax.nets.mlp(2)(outputs)

    done = once(tmp_path / "a", net=net)
    assert "net.rng" in done.table().replace("closure.", "")
    with pytest.raises(UserError, match=r"neither read back nor continued.*rng.*pass id='...'"):
        once(tmp_path / "a", net=net)
    assert not once(tmp_path / "b", net=net, id="first").resumed
    assert once(tmp_path / "b", net=net, id="first").resumed
    with pytest.raises(UserError, match="id differ"):
        once(tmp_path / "b", net=net, id="second")
    assert hash_of(net=net) != hash_of(net=net)  # so "auto" gives each a folder of its own
    settings = [{"lr": 0.1}]
    plans = [
        cljax.sweep.plan("finetune", support.stream(), settings, seeds=1, net=net, id=id)
        for id in (None, None, "a", "a")
    ]
    hashes = [one.config["sweep_hash"] for one in plans]
    assert len(set(hashes)) == 3 and hashes[2] == hashes[3]
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.json").write_text(json.dumps({**plans[0].config, "begun_as": None}))
    artefacts.seal(tmp_path / "s", hashes[0])
    with pytest.raises(UserError, match=r"sweep in .*rng.*pass id='...'"):
        cljax.sweep.run(plans[1], tmp_path / "s")


SCRIPT = """
import numpy as np, cljax, functools, json, sys
from cljax.identity.content import content
NAMES = {"b", "a", "c"}
KEEP = frozenset({1.5, "x", None})
class Own:
    def __init__(self): self.table = np.arange(3); self.names = {"z", "y"}
    def __call__(self, n): return [n, NAMES, KEEP]
def f(x, *, k=(1, 2)): return lambda y: x + y
value = [Own(), f(3), functools.partial(f, k={"p": 1}), {"s": NAMES}, cljax.LaMAML().bind]
found = content(value)
assert not found.unknown, found.unknown
print(json.dumps(found.json, sort_keys=True))
"""


def test_two_processes_give_equal_hashes(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    outputs = {
        subprocess.run(
            [sys.executable, str(tmp_path / "script.py")], check=True, capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(outputs) == 1 and b"0x" not in outputs.pop()


def test_two_functions_of_one_line_are_unknown_without_columns(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from cljax.identity.content import content\n"
        "two = [lambda x: x + 1, lambda x: x + 2]\n"
        "one = lambda x: x\n"
        "print(*(bool(content(f).unknown) for f in (*two, one)))\n"
    )
    without = ("-X", "no_debug_ranges")
    for options, said in (((), "False False False"), (without, "True True False")):
        command = [sys.executable, *options, str(script)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split() == said.split()


def test_a_notebooks_cells_are_told_by_their_own_lines():
    pytest.importorskip("IPython")
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    cell = (
        "RATE = {rate}\n{more}def act(x):\n    return RATE * x\n"
        "class Own:\n    def go(self): return RATE"
    )
    found = {}
    for name, rate, more in (("a", 1, ""), ("same", 1, "y = 5\n"), ("other", 2, "")):
        assert shell.run_cell(cell.format(rate=rate, more=more)).success
        shell.user_ns["unrelated"] = name
        made = content([shell.user_ns["act"], shell.user_ns["Own"]()])
        assert not made.unknown
        found[name] = made.json
    assert found["a"] == found["same"] != found["other"]
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 10**30, 0.5, "3", True, None])
def test_a_seed_is_a_whole_number_of_32_bits(seed):
    calls = (
        lambda: cljax.keys.purpose(seed, "init"),
        lambda: hash_of(seeds=[seed]),
        lambda: cljax.sweep.plan("er", support.stream(), [{"lr": 0.1}], seeds=[seed]),
        lambda: cljax.compare({"a": (cljax.ER, {"lr": [0.1]})}, support.stream(), seeds=[seed]),
    )
    for call in calls:
        with pytest.raises(UserError, match=r"must be a whole number from 0 to 4294967295"):
            call()


@pytest.mark.parametrize("seeds", ["3", 0.5, True, [], None, 2**32 + 1])
def test_seeds_are_a_number_or_a_list(seeds):
    with pytest.raises(UserError, match="seed"):
        hash_of(seeds=seeds)
    assert hash_of(seeds=[2**32 - 1]) != hash_of(seeds=[0])
