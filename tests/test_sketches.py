"""Five workflows of a researcher, in the few lines that they should take."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cljax
from cljax import plot
from cljax.errors import UserError
from cljax.types import Examples, Info

SMALL = {"sample": True, "num_tasks": 2, "samples_per_task": 60}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_reproduce_a_row():
    recipe = cljax.recipe("lamaml", "mnist-rotations", source="lamaml-table1", variant="reference")
    recipe = recipe.replace(net="mlp:5", **SMALL)
    run = cljax.run(recipe, seeds=range(2), out="runs/rot")
    target = cljax.published("lamaml-table1", method="lamaml", stream="mnist-rotations")["RA"]
    verdict = cljax.stats.equivalence(run.metric("RA"), target, margin=0.015)

    assert cljax.run(recipe, seeds=range(2), out="runs/rot").resumed  # the stored run
    assert (target.mean, target.std, target.n) == (0.7742, 0.0065, 5)
    assert verdict.verdict in ("equivalent", "different", "undecided") and verdict.n == (2, 5)
    assert "mnist-rotations" in run.protocol() and "RA" in run.table()
    assert r"\toprule" in run.table("latex") and "@" in run.cite("bibtex")
    assert run.accuracy_matrix().shape == (2, 3, 2)


class PathState(NamedTuple):
    anchor: cljax.types.Params
    weight: cljax.types.Params
    path: cljax.types.Params


class PathPenalty(cljax.penalties.Penalty):
    strength: cljax.Real = cljax.options.positional(default=1.0)

    def init(self, params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return PathState(params, zeros, zeros)

    def value(self, state, params):
        return self.strength * cljax.tree.weighted_sq(state.weight, params, state.anchor)

    def observe(self, state, params, grads, updates):
        path = jax.tree.map(lambda a, g, u: a - g * u, state.path, grads, updates)
        return state._replace(path=path)

    def consolidate(self, state, params, batch, network, key):
        weight = jax.tree.map(jnp.maximum, state.path, state.weight)
        return PathState(params, weight, jax.tree.map(jnp.zeros_like, weight))


def test_my_penalty_against_lamaml_on_my_stream():
    rng = np.random.default_rng(0)
    y, site = np.arange(80) % 2, np.repeat([0, 1], 40)
    x = rng.integers(0, 100, (80, 6), dtype=np.uint8) + np.uint8(100) * y[:, None].astype(np.uint8)
    mine, ref = cljax.ER(capacity=20, penalty=PathPenalty()), cljax.LaMAML(capacity=20)
    stream = cljax.streams.from_arrays(
        (x, y, site), test=(x, y, site), val=0.2, name="clinic", licence="private"
    )
    study = cljax.compare(
        {"mine": (mine, {"strength": [0.1, 1.0], "lr": [0.1]}),
         "lamaml": (ref, {"alpha_init": [0.1, 0.3], "alpha_lr": [0.1]})},
        stream, net=cljax.nets.mlp(5), seeds=2, out="runs/clinic",
        tune=cljax.Tune(metric="RA", seeds=range(100, 101)),
    )  # fmt: skip
    assert "clinic, 2 seeds; each method tuned over 2 settings" in study.table()
    assert study.pairs()[0].test.diff is not None
    assert cljax.load("runs/clinic/tune/mine").config["method"] == "er"


def test_reservoir_and_unroll_in_my_loop():
    shapes = {"x": jax.ShapeDtypeStruct((4, 3), jnp.uint8), "y": jax.ShapeDtypeStruct((), "int32")}
    mem = cljax.memory.reservoir.init(shapes, capacity=50)
    tx = optax.adam(1e-2)

    def my_loss(params, examples):
        x = examples["x"].reshape(examples["y"].shape[0], -1) / 255.0
        return cljax.losses.cross_entropy(x @ params["w"], examples["y"])

    @jax.jit
    def step(params, log_lr, opt_state, mem, batch, key):
        k_draw, k_add = jax.random.split(key)
        replay, mask = cljax.memory.reservoir.sample(mem, 32, k_draw)

        def meta(params, log_lr):
            out = cljax.unroll(
                cljax.sgd_step(my_loss, jax.tree.map(jnp.exp, log_lr)), params,
                cljax.inner_loop.split(batch, 5), order=2,
                loop=cljax.inner_loop.LoopOptions(remat=True, unroll_steps=5),
                probe_fn=lambda p: cljax.losses.masked_mean(my_loss(p, replay), mask),
            )  # fmt: skip
            return out.probes.mean()

        loss, grads = jax.value_and_grad(meta, argnums=(0, 1))(params, log_lr)
        updates, opt_state = tx.update(grads, opt_state, (params, log_lr))
        params, log_lr = optax.apply_updates((params, log_lr), updates)
        return params, log_lr, opt_state, cljax.memory.reservoir.add(mem, batch, k_add), loss

    rng = np.random.default_rng(0)
    params = {"w": jnp.zeros((12, 2))}
    log_lr = jax.tree.map(lambda a: jnp.full_like(a, -1.0), params)
    opt_state, losses = tx.init((params, log_lr)), []
    for i in range(40):
        y = rng.integers(0, 2, 10)
        x = rng.integers(0, 100, (10, 4, 3)) + 150 * y[:, None, None] * (np.arange(3) == 0)
        batch = {"x": jnp.asarray(x, jnp.uint8), "y": jnp.asarray(y, jnp.int32)}
        params, log_lr, opt_state, mem, loss = step(
            params, log_lr, opt_state, mem, batch, jax.random.key(i)
        )
        losses.append(float(loss))
    assert losses[0] == 0.0 and losses[-1] < 0.5 < losses[1]  # nothing is stored at first
    assert int(cljax.memory.reservoir.fill(mem)) == 50 and step._cache_size() == 1


def test_lanes_on_a_cluster():
    recipe = cljax.recipe("lamaml", "mnist-rotations", source="lamaml-table1")
    recipe = recipe.replace(net="mlp:5", **SMALL)
    grid = cljax.sweep.grid(alpha_init=[0.05, 0.15], alpha_lr=[0.1], seed=[1000, 1001])
    plan = cljax.sweep.plan(recipe, None, grid, metric="RA")
    assert "4 lanes (2 settings, 2 seeds), 1 compiled program" in str(plan)
    for job in range(2):  # each job of an array; the same line in the next one continues
        sweep = cljax.sweep.run(plan, out="runs/scratch", shard=(job, 2))
        assert sweep.exit_code == 0
    best = cljax.load("runs/scratch").best()
    assert best.setting["alpha_init"] in (0.05, 0.15) and list(best.diverged) == [None, None]
    final = cljax.load("runs/scratch").recipe()
    assert final.method_options["alpha_init"] == best.setting["alpha_init"]
    with pytest.raises(UserError, match="Python objects"):
        cljax.sweep.Sweep(sweep.path, {**sweep.config, "base": None}, sweep.results).recipe(best)


class State(NamedTuple):
    params: cljax.types.Params


def test_a_class_in_a_notebook():
    stream = cljax.streams.SplitMNIST(sample=True, samples_per_task=60).build()
    methods = {
        "naive": cljax.Finetune(lr=0.1),
        "replay": cljax.ER(lr=0.1, capacity=200),
        "ewc": cljax.Finetune(lr=0.1, penalty=cljax.penalties.EWC(100.0, num_examples=20)),
    }
    runs = {name: cljax.run(m, stream, seeds=2, net="mlp:20") for name, m in methods.items()}
    plot.accuracy_matrix(runs["replay"])
    plot.over_time(runs, metric="average_accuracy")
    after = {}
    for scenario in ("task", "domain", "class"):  # same weights, three questions
        after[scenario] = {
            name: cljax.evaluate(run.state, stream, scenario=scenario).RA
            for name, run in runs.items()
        }
    assert after["task"]["naive"] > after["class"]["naive"] + 0.3  # told the task, it remembers
    assert after["class"]["replay"] > after["class"]["naive"]
    for name, run in runs.items():
        assert after["class"][name] == pytest.approx(np.nanmean(run.metric("RA")))
        assert after["class"][name] <= min(after["task"][name], after["domain"][name])

    # Exercise: fill in the line that forgets.
    class Yours(cljax.Method):
        lr: cljax.options.Rate = 0.05

        def update(self, problem, state, batch, draws):
            def loss(params):
                examples = Examples(batch.x, batch.y, batch.task)
                losses, _ = problem.loss_fn(params, state.model_state, examples, batch.mask)
                return cljax.losses.masked_mean(losses, batch.mask)

            value, grads = jax.value_and_grad(loss)(state.params)
            params = cljax.tree.add_scaled(state.params, grads, -self.lr)
            return state._replace(params=params), Info(value)

    yours = Yours()
    runs["yours"] = cljax.run(yours, stream, seeds=2, out="runs/yours")
    assert runs["yours"].accuracy_matrix()[:, 1, 0].min() > 0.8  # learns its first task
    assert cljax.run(yours, stream, seeds=2, out="runs/yours").resumed
    with pytest.raises(UserError, match="holds another run"):

        class Other(Yours):
            def update(self, problem, state, batch, draws):
                return state, Info(jnp.zeros(()))

        cljax.run(Other(), stream, seeds=2, out="runs/yours")
    with pytest.raises(UserError, match="state of the method plain is a dict"):

        class Plain(Yours):
            def init(self, problem, key):
                return {"w": jnp.zeros(1)}

        cljax.run(Plain(), stream, seeds=1)
