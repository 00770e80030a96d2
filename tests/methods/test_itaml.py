"""iTAML's update against a plain re-enactment and hand-made numbers, and its identities."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import support
from itaml_support import EACH, INPUTS, SIZE, TASKS, Plain, batch, head, spec

import cljax
from cljax.methods.itaml import ITAML, controller
from cljax.nets import mlp
from cljax.nets.batchnorm import BatchNorm
from cljax.nets.linen import from_linen
from cljax.types import Batch, Clock, Spec


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


class Normalised(nn.Module):
    """A hidden layer with BatchNorm."""

    outputs: int

    @nn.compact
    def __call__(self, x, train, member=None):
        x = nn.Dense(4, param_dtype=x.dtype)(x)
        x = nn.relu(BatchNorm(param_dtype=x.dtype)(x, train, member))
        return nn.Dense(self.outputs, use_bias=False, param_dtype=x.dtype)(x), x


def batchnorm(outputs):
    return from_linen(Normalised(outputs), head="Dense_1")


def learner(net=None, shape=(INPUTS,), **options):
    method = ITAML(capacity=TASKS * EACH * 2, **{"lr": 0.3, **options})
    return method.bind((net or mlp(5, head_bias=False))(TASKS * EACH), spec(shape))


def step(made, batches, state=None):
    state = made.init(jax.random.key(0)) if state is None else state
    update = jax.jit(made.update)
    for one in batches:
        state, info = update(state, one, ())
    return state, info


DIRECTIONS = {
    "sgd": optax.identity,
    "momentum": lambda: optax.trace(0.9),
    "adam": optax.scale_by_adam,
}
CASES = [
    {"mode": mode, "loss_outputs": loss, "optimizer": optimizer, "inner_steps": r}
    for mode, loss, optimizer, r in (
        ("paper", "own", "adam", 2), ("paper", "seen", "momentum", 2),
        ("paper", "seen-frozen", "sgd", 1), ("released", "own", "momentum", 1),
        ("released", "seen", "sgd", 2), ("released", "seen-frozen", "adam", 1),
        ("sequential-mean", "own", "adam", 2), ("sequential-mean", "seen", "momentum", 1),
    )
]  # fmt: skip
CASES += [
    {"mode": "paper", "optimizer": "adam", "inner_steps": 2, "optimizer_state": kept}
    for kept in ("shared", "fresh")
]


@pytest.mark.parametrize("options", CASES, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_the_update_equals_the_plain_loop_of_slices(options):
    made = learner(beta=0.7, **options)
    batches = [batch(seed=0), batch(seed=1, tasks=(0, 1, 1, 2)), batch(seed=2, tasks=(2,) * 12)]
    state = made.init(jax.random.key(0))
    named = {name: value for name, value in options.items() if name != "optimizer"}
    plain = Plain(state.params, DIRECTIONS[options["optimizer"]](), 0.3, **named)
    for one in batches:
        state, _ = step(made, [one], state)
        plain(one, np.exp(-0.7 * 2 / 3))
        support.assert_close(state.params, plain.params, 1e-13)


@pytest.mark.parametrize("mode", ["paper", "released", "sequential-mean"])
def test_two_tasks_by_hand(mode):
    """One weight for each of two outputs, one example of each task: every number in closed form."""
    owner, sigmoid = np.eye(2, dtype=bool), lambda z: 1 / (1 + np.exp(-z))
    problem = Spec(jax.ShapeDtypeStruct((1,), jnp.float64), owner, 2)
    method = ITAML(lr=0.5, mode=mode, beta=1.0, optimizer="momentum", momentum=0.9, capacity=2)
    made = method.bind(mlp(head_bias=False)(2), problem)
    clock = Clock(*(jnp.int32(v) for v in (1, 0, 0)), jnp.bool_(True), jnp.bool_(False))
    one = Batch(
        jnp.array([[1.0], [2.0]]), jnp.array([0, 1]), jnp.array([0, 1]), jnp.ones(2, bool),
        jnp.full(2, -1), clock,
    )  # fmt: skip
    state = made.init(jax.random.key(0))
    state = state._replace(params={"Dense_0": {"kernel": jnp.array([[0.2, -0.4]])}})
    eta = np.exp(-1 / 2)
    # Task 0 sees x = 1 with weight 0.2, task 1 x = 2 with weight -0.4; both targets are 1.
    g0, g1 = sigmoid(0.2) - 1.0, 2 * (sigmoid(-0.8) - 1.0)
    first = {
        "paper": np.array([0.2 - eta / 2 * 0.5 * g0, -0.4 - eta / 2 * 0.5 * g1]),
        # Task 0's momentum moves its weight again, by 0.9 of its step, while task 1 is trained.
        "released": np.array([0.2 - eta * 0.5 * 1.9 * g0, -0.4 - eta * 0.5 * g1]),
        "sequential-mean": np.array([0.2 - eta * 0.5 * 1.45 * g0, -0.4 - eta * 0.5 * 0.5 * g1]),
    }[mode]
    after, info = step(made, [one], state)
    np.testing.assert_allclose(after.params["Dense_0"]["kernel"][0], first, atol=1e-15)
    losses = np.log1p(np.exp(-0.2)), np.log1p(np.exp(0.8))
    margins = {"paper": (0.2 - -0.4, -0.8 - 0.4), "released": None, "sequential-mean": None}[mode]
    np.testing.assert_allclose(info.loss, np.mean(losses), atol=1e-15)
    if margins is not None:
        np.testing.assert_allclose(info.metrics["margin"], np.mean(margins), atol=1e-15)
    assert (
        float(
            np.abs(
                after.params["Dense_0"]["kernel"][0] - state.params["Dense_0"]["kernel"][0]
            ).min()
        )
        > 0.01
    )


@pytest.mark.parametrize("combine", ["mean", "own"])
@pytest.mark.parametrize("loss", ["own", "seen"])
def test_one_gradient_equals_the_general_update(loss, combine):
    if loss == "seen" and combine == "own":
        pytest.skip("refused: more than one task moves a row")
    options = {"loss_outputs": loss, "head_combine": combine}
    batches = [batch(seed=i, tasks=t) for i, t in enumerate([(0, 2, 2, 1), (2,) * 12, (0, 1, 2)])]
    a, info_a = step(learner(**options), batches)
    b, info_b = step(learner(algebra="one-gradient", **options), batches)
    support.assert_close(a.params, b.params, 1e-14)
    support.assert_close(info_a, info_b, 1e-13)


@pytest.mark.parametrize("loss", ["own", "seen"])
def test_one_gradient_equals_the_general_update_with_batchnorm(loss):
    net = batchnorm
    one = batch(tasks=(0, 2, 2, 0, 1, 2, 2))
    made = [learner(net, loss_outputs=loss, algebra=a) for a in ("general", "one-gradient")]
    (a, _), (b, _) = (step(each, [one]) for each in made)
    support.assert_close(a, b, 1e-11)


def test_while_there_is_one_task_all_modes_are_plain_training():
    batches = [batch(task=0, tasks=(0,) * n, seed=n) for n in (12, 5)]
    states = [
        step(learner(mode=mode, optimizer="adam", beta=beta), batches)[0]
        for mode, beta in (("paper", 1.0), ("released", 50.0), ("sequential-mean", 3.0))
    ]
    for other in states[1:]:
        support.assert_close(states[0].params, other.params, 1e-14)
    plain = Plain(states[0].params, optax.identity(), 0.3, mode="released")
    start = learner().init(jax.random.key(0))
    plain.params = start.params
    for one in batches:
        plain(one, 1.0)
    after, _ = step(learner(mode="released"), batches, start)
    support.assert_close(after.params, plain.params, 1e-14)


def test_a_large_beta_holds_the_generic_model():
    state = learner(beta=50.0).init(jax.random.key(0))
    after, _ = step(learner(beta=50.0), [batch(task=2)], state)
    support.assert_close(state.params, after.params, 1e-14)


def test_controllers():
    clock = lambda task: Clock(jnp.int32(task), *[jnp.int32(0)] * 4)
    found = {
        index: [float(controller(clock(s), 0.5, 5, index)) for s in range(5)]
        for index in ("code", "paper", "printed")
    }
    np.testing.assert_allclose(found["code"], np.exp(-0.5 * np.arange(5) / 5))
    np.testing.assert_allclose(found["paper"], np.exp(-0.5 * np.arange(1, 6) / 5))
    np.testing.assert_allclose(found["printed"], np.exp(-0.5) * np.ones(5))


def test_rows_of_absent_tasks_stay_and_momentum_moves_them_only_as_released():
    batches = [batch(tasks=(1, 1, 2, 2), seed=0), batch(tasks=(2, 2), seed=1)]
    for mode, moves in (("paper", False), ("released", True)):
        made = learner(mode=mode, optimizer="momentum")
        one, _ = step(made, batches[:1])
        two, _ = step(made, batches[1:], one)
        start = head(made.init(jax.random.key(0)).params)
        np.testing.assert_array_equal(head(two.params)[:, :2], start[:, :2])  # never seen
        moved = np.abs(head(two.params) - head(one.params))[:, 2:4].max()
        assert (moved > 1e-3) == moves, mode


def test_a_row_moves_by_its_share_of_the_inner_displacement():
    """eta / n of it where all models are averaged, eta where the owner's counts alone."""
    options = {"optimizer": "adam", "inner_steps": 3, "beta": 1.0}
    one, alone = batch(tasks=(0, 0, 1, 2, 2)), batch(tasks=(0, 0))
    alone = alone._replace(x=one.x, y=one.y, mask=one.mask & (one.task == 0), task=one.task)
    start = head(learner().init(jax.random.key(0)).params)
    inner, _ = step(learner(**options), [alone])  # of task 0 alone: eta times its displacement
    mean, _ = step(learner(**options), [one])
    own, _ = step(learner(head_combine="own", **options), [one])
    displacement = (head(inner.params) - start)[:, :2]
    np.testing.assert_allclose((head(mean.params) - start)[:, :2], displacement / 3, atol=1e-15)
    np.testing.assert_allclose((head(own.params) - start)[:, :2], displacement, atol=1e-15)


@pytest.mark.parametrize(("optimizer", "holds"), [("sgd", True), ("adam", False)])
def test_the_inner_displacement_telescopes_for_sgd_alone(optimizer, holds):
    """Lemma 1: (Phi_base - Phi_i) / lr is the sum of the r gradients along the way, from 0 on."""
    one, r = batch(task=0, tasks=(0,) * 8), 3
    made = learner(optimizer=optimizer, inner_steps=r, lr=0.1)
    start = made.init(jax.random.key(0))
    after, _ = step(made, [one], start)
    plain = Plain(start.params, DIRECTIONS[optimizer](), 0.1, mode="paper")
    state, psi, total = plain.optimizer.init(start.params), start.params, None
    for _ in range(r):
        grads = jax.grad(plain.loss)(psi, one.x[:8], one.y[:8], np.arange(2))
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        towards, state = plain.optimizer.update(grads, state, psi)
        psi = jax.tree.map(lambda p, d: p - 0.1 * d, psi, towards)
    gap = jax.tree.map(
        lambda a, b, g: jnp.abs((a - b) / 0.1 - g).max(), start.params, after.params, total
    )
    assert (max(jax.tree.leaves(gap)) < 1e-12) == holds


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_padding_reaches_nothing_with_and_without_batchnorm(mode):
    for net in (None, batchnorm):
        made, one = learner(net, mode=mode, optimizer="adam"), batch()
        other = one._replace(
            x=jnp.where(one.mask[:, None], one.x, 1e3), y=jnp.where(one.mask, one.y, 5),
            task=jnp.where(one.mask, one.task, 1),
        )  # fmt: skip
        (a, _), (b, _) = step(made, [one]), step(made, [other])
        support.assert_close(a, b, 1e-12)


@pytest.mark.parametrize("mode", ["paper", "released", "sequential-mean"])
def test_a_mini_batch_of_padding_changes_nothing(mode):
    net = batchnorm
    made = learner(net, mode=mode, optimizer="radam", weight_decay=0.1)
    state, _ = step(made, [batch()])
    empty = batch()._replace(mask=jnp.zeros(SIZE, bool))
    after, info = step(made, [empty], state)
    jax.tree.map(np.testing.assert_array_equal, state, after)
    assert float(info.loss) == 0.0


def test_an_absent_tasks_optimiser_does_not_advance():
    made = learner(mode="paper", optimizer="adam")
    state, _ = step(made, [batch(tasks=(0, 0, 2)), batch(tasks=(2, 2))])
    np.testing.assert_array_equal(state.opt_state.count, [1, 0, 2])


def test_statistics_follow_the_batch_in_paper_mode_and_the_tasks_as_released():
    net = batchnorm
    one = batch(tasks=(0, 2, 2, 0))
    model = net(TASKS * EACH)
    start = learner(net).init(jax.random.key(0))
    variables = cljax.types.Variables(start.params, start.model_state)
    whole = model.grouped(variables, one.x, one.mask[:, None])[1]
    paper, _ = step(learner(net, mode="paper"), [one])
    support.assert_close(paper.model_state, whole, 1e-13)
    first = one.mask & (one.task == 0)
    # The stem sees the same images whatever the parameters: its statistics by hand.
    expected = model.grouped(variables._replace(model_state=whole), one.x, first[:, None])[1]
    later = model.grouped(
        variables._replace(model_state=expected), one.x, (one.mask & (one.task == 2))[:, None]
    )[1]
    released, _ = step(learner(net, mode="released", lr=0.0), [one])
    support.assert_close(released.model_state, later, 1e-13)
    silent, _ = step(learner(net, mode="released", lr=0.0, log_forward=False), [one])
    gap = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), silent.model_state, later)
    assert max(jax.tree.leaves(gap)) > 1e-4


def test_the_last_tasks_own_steps():
    one, early = batch(task=2), batch(task=1, tasks=(0, 1, 1))
    four = learner(mode="released", last_inner_steps=4)
    plain = Plain(four.init(jax.random.key(0)).params, optax.identity(), 0.3, mode="released")
    after, _ = step(four, [early])
    same, _ = step(learner(mode="released"), [early])
    support.assert_close(after.params, same.params, 0)
    # Of the last task, by slices: task 0 once, then task 2 four times.
    first = one._replace(mask=one.mask & (one.task == 0))
    second = one._replace(mask=one.mask & (one.task == 2))
    for part in (first, *[second] * 4):
        plain(part, 1.0)
    ours, _ = step(learner(mode="released", last_inner_steps=4, beta=0.0), [one])
    support.assert_close(ours.params, plain.params, 1e-13)


def test_a_session_makes_the_optimiser_anew_and_nothing_else():
    made = learner(mode="paper", optimizer="adam")
    state, _ = step(made, [batch()])
    begin = next(phase for phase in made.phases if phase.name == "session")
    after, _ = begin.update(state, batch(), ())
    assert after.opt_state.count.tolist() == [0] * TASKS
    support.assert_close(after._replace(opt_state=()), state._replace(opt_state=()), 0)
