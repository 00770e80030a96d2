"""Methods are pure functions: they go under jit, scan, vmap, grad and shard_map of one's own."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import support
from support import learn

import cljax
from cljax import keys
from cljax.engine.programs import device_plan, train_data, whole
from cljax.errors import UserError
from cljax.methods import METHODS, make
from cljax.streams import plan
from cljax.types import Variables

NUM_TASKS, PER_TASK, BATCH = 2, 8, 4


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def arrays():
    rng = np.random.default_rng(0)
    y = np.arange(NUM_TASKS * PER_TASK) % 2
    task = np.repeat(np.arange(NUM_TASKS), PER_TASK)
    x = rng.normal(size=(len(y), 3)) + np.where(y, 1.0, -1.0)[:, None]
    return x, y, task


def problem(**options):
    """La-MAML bound to a network and a stream of two tasks, and a run of it as a function."""
    x, y, task = arrays()
    stream = cljax.streams.from_arrays((x, y, task), test=(x, y, task), val=0.0, dtype="float64")
    method = cljax.LaMAML(
        **{"alpha_init": 0.2, "capacity": 6, "replay_size": 3, "glances": 2, **options}
    )
    model = cljax.nets.mlp(4)(stream.num_classes)
    learner = method.bind(model, stream.spec(BATCH))
    return stream, model, learner, device_plan(plan(stream, 0, BATCH)), train_data(stream)


def run_of(learner, stream, rows, data):
    """key -> (state, losses): initial weights and a whole run of both tasks, in one scan."""

    def run(key):
        return whole(learner, stream.transform)(learner.init(key), rows, data, key)

    return run


def test_jit_scan_and_vmap_of_ones_own_find_what_a_plain_loop_finds():
    stream, _, learner, rows, data = problem()
    key, losses = jax.random.key(3), []
    init, draw, update = (jax.jit(f) for f in (learner.init, learner.draw, learner.update))
    state = init(key)
    x, y, task = (jnp.asarray(a) for a in arrays())
    for i in range(len(rows.current)):  # every line here is the user's
        row = jax.tree.map(lambda a, i=i: a[i], rows)
        clock = cljax.types.Clock(row.current, row.epoch, jnp.int32(i), row.first_pass, row.last)
        batch = cljax.types.Batch(
            x[row.index], y[row.index].astype(jnp.int32), task[row.index].astype(jnp.int32),
            row.mask, row.index, clock,
        )  # fmt: skip
        draws = draw(state, batch, jax.random.fold_in(key, i))
        state, info = update(state, batch, draws)
        losses.append(info.loss)
    run = run_of(learner, stream, rows, data)
    support.assert_close(jax.jit(run)(key), (state, jnp.stack(losses)), 1e-12)
    many = jax.jit(jax.vmap(run))(jnp.stack([jax.random.key(1), key]))
    support.assert_close(support.at(many, 1), (state, jnp.stack(losses)), 1e-12)
    assert float(jnp.abs(many[1][0] - many[1][1]).max()) > 1e-3


SHARDED = """
import jax
import numpy as np
import test_compose
from jax.sharding import Mesh, PartitionSpec as P

jax.config.update("jax_enable_x64", True)
assert jax.device_count() == 2
stream, _, learner, rows, data = test_compose.problem()
run = test_compose.run_of(learner, stream, rows, data)
lanes = jax.random.split(jax.random.key(0), 4)
mesh = Mesh(np.array(jax.devices()), ("seed",))
split = jax.shard_map(
    jax.vmap(run), mesh=mesh, in_specs=P("seed"), out_specs=P("seed"), check_vma=False
)
state, losses = jax.jit(split)(lanes)
assert len(losses.sharding.device_set) == 2
single = jax.jit(run)
for i in range(4):
    own, own_losses = single(lanes[i])
    np.testing.assert_allclose(losses[i], own_losses, rtol=0, atol=1e-12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[i], b, rtol=0, atol=1e-12), state, own
    )
print("same")
"""


def test_shard_map_over_two_devices_finds_what_single_runs_find():
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == "same\n", done.stderr


@functools.cache
def whole_run():
    """Initial rates, and the loss after both tasks as a function of them: value and gradient."""
    stream, model, learner, rows, data = problem(order="second")
    key = keys.purpose(0, "update")
    start = jax.jit(learner.init)(key)
    x, y, _ = arrays()

    def final_loss(alpha):
        run = whole(learner, stream.transform)
        state, _ = run(start._replace(alpha=alpha), rows, data, key)
        output, _ = model.apply(Variables(state.params, state.model_state), jnp.asarray(x), False)
        return cljax.losses.cross_entropy(output.logits, jnp.asarray(y)).mean()

    return start.alpha, jax.jit(jax.value_and_grad(final_loss))


def test_the_hyper_gradient_of_a_whole_run_with_respect_to_the_initial_rates():
    """Of the loss after both tasks, through every meta-update, against finite differences."""
    alpha, both = whole_run()
    loss, gradient = both(alpha)
    leaves, structure = jax.tree.flatten(alpha)
    assert jax.tree.structure(gradient) == structure and float(loss) < 0.5
    step, rng = 1e-5, np.random.default_rng(1)
    for direction in range(3):
        towards = jax.tree.unflatten(structure, [rng.normal(size=leaf.shape) for leaf in leaves])
        up, down = (both(cljax.tree.add_scaled(alpha, towards, sign * step))[0] for sign in (1, -1))
        slope = float((up - down) / (2 * step))
        expected = float(cljax.tree.dot(gradient, towards))
        assert abs(slope) > 1e-4, direction
        np.testing.assert_allclose(expected, slope, rtol=1e-5)


def test_the_initial_rates_can_be_learned_over_whole_runs():
    """Ten steps of Adam on the hyper-gradient lower the loss after both tasks."""
    alpha, both = whole_run()
    alpha, tx = jax.tree.map(lambda a: jnp.full_like(a, 0.02), alpha), optax.adam(0.05)

    @jax.jit
    def step(alpha, opt_state, gradient):
        updates, opt_state = tx.update(gradient, opt_state, alpha)
        return optax.apply_updates(alpha, updates), opt_state

    opt_state, losses = tx.init(alpha), []
    for _ in range(10):
        loss, gradient = both(alpha)
        losses.append(float(loss))
        alpha, opt_state = step(alpha, opt_state, gradient)
    assert losses[-1] < 0.8 * losses[0]


# Methods with an option ``optimizer``; the others share the code of one of them.
STEPS = {
    "er": {"capacity": 6, "replay_size": 3}, "gem": {"per_task": 3}, "finetune": {},
    "replayed": {"capacity": 24}, "itaml": {"capacity": 24}, "reptile": {"capacity": 24},
    "fomaml": {"capacity": 24},
}  # fmt: skip


def trained(name, **more):
    """Final parameters after six updates of three tasks, and the losses."""
    form = {"own_classes": name not in ("er", "gem", "finetune")}
    learner = support.bind(make(name, **STEPS[name], **more), **form)
    state, losses = support.run(learner, support.batches(6, **form))
    return state.params, losses


@pytest.mark.parametrize("name", STEPS)
def test_an_optax_optimiser_brings_its_own_steps_and_schedule(name):
    named = trained(name, lr=0.1)
    support.assert_close(named, trained(name, optimizer=optax.sgd(0.1), lr=7.0), 1e-12)
    if name in ("itaml", "reptile"):  # whose optimiser steps more than once an update
        return
    falling = optax.piecewise_constant_schedule(0.1, {3: 0.0})  # after three steps: none
    short = trained(name, optimizer=optax.sgd(falling))
    np.testing.assert_allclose(short[1][:3], named[1][:3], atol=1e-12)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), short[0], named[0])
    assert max(jax.tree.leaves(moved)) > 1e-6


def test_an_optimiser_beside_milestones_that_it_would_not_follow_is_refused():
    for options in ({"milestones": (1,)}, {"weight_decay": 0.1}):
        with pytest.raises(UserError, match="brings its own schedule and decay"):
            cljax.ICaRL(optimizer=optax.adam(1e-3), **options)


def test_a_schedule_stops_learning_when_it_says_so():
    """Steps of zero length leave the parameters bit for bit."""
    stops = optax.sgd(optax.piecewise_constant_schedule(0.1, {2: 0.0}))
    learner = support.bind(cljax.Finetune(optimizer=stops))
    batches = support.batches(6)
    early = support.run(learner, jax.tree.map(lambda a: a[:2], batches))[0].params
    late = support.run(learner, batches)[0].params
    jax.tree.map(np.testing.assert_array_equal, early, late)


def test_every_method_with_an_optimiser_takes_one_of_optax():
    with_one = {name for name, method in METHODS.items() if "optimizer" in method.options}
    assert with_one >= set(STEPS)
    for name in sorted(with_one):
        make(name, optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)))


def test_a_run_with_an_optax_schedule_has_its_own_identity():
    stream = support.stream(num_tasks=2)
    hashes = set()
    with jax.enable_x64(False):
        for rate in (0.1, 0.2, 0.1):
            falling = optax.sgd(optax.cosine_decay_schedule(rate, 6))
            method = cljax.ER(capacity=6, optimizer=falling)
            done = cljax.run(method, stream, seeds=1, net="mlp:5", batch_size=4)
            hashes.add(done.config["config_hash"])
    assert len(hashes) == 2


def test_own_data_and_a_method_in_ten_lines():
    x, y, site = arrays()
    stream = cljax.streams.from_arrays((x, y, site), test=(x, y, site), dtype="float64", val=0.0)
    method = cljax.LaMAML(alpha_init=0.3, capacity=8)
    history = learn(method, cljax.nets.mlp(4)(2), stream, [0], batch_size=4, epochs=3)
    assert history.evaluations["logits"][0, -1].mean() > 0.9
