"""Pretrained: the first task by plain steps, what else is the method's own, and its identity."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import support
import transfer_support

import cljax
from cljax.errors import UserError
from cljax.method import Cost
from cljax.runner.options import RunOptions
from cljax.runner.prepare import prepare
from cljax.types import Pretraining

HOW = Pretraining(steps=3, lr=0.2, batch_size=4, optimizer="sgd", milestones=(0.5,))
ER = cljax.ER(lr=0.1, capacity=6, replay_size=3)
KEY = jax.random.key(5)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def at_step(batch, task, step):
    clock = batch.clock._replace(task=np.int32(task), step=np.int32(step))
    return batch._replace(clock=clock)


def test_the_first_task_is_learned_by_the_phase_alone():
    """Its steps are those of gradient descent, at a tenth of the rate behind the milestone."""
    learner, plain = (support.bind(m) for m in (cljax.Pretrained(ER, HOW), cljax.SGD(lr=0.2)))
    batch = support.at(support.batches(1), 0)
    state = learner.init(jax.random.key(0))
    same, info = learner.update(state, at_step(batch, 0, 0), learner.draw(state, batch, KEY))
    support.assert_close(same, state)
    assert info.loss == 0
    phase = learner.phases[0]
    assert phase.name == "pretrain" and phase.before and phase.augment
    first, _ = phase.update(state, at_step(batch, 0, 0), ())
    expected, _ = plain.update(plain.init(jax.random.key(0)), batch, ())
    support.assert_close(first.params, expected.params, 1e-12)
    late, _ = phase.update(state, at_step(batch, 0, 2), ())
    moved = lambda a: np.asarray(a.params["Dense_1"]["kernel"] - state.params["Dense_1"]["kernel"])
    np.testing.assert_allclose(moved(late), 0.1 * moved(first), rtol=1e-8)


def test_from_the_second_task_on_an_update_is_the_methods():
    learner, own = support.bind(cljax.Pretrained(ER, HOW)), support.bind(ER)
    batch = support.at(support.batches(3), 1)
    state = learner.init(jax.random.key(0))
    draws = learner.draw(state, batch, KEY)
    support.assert_close(draws, own.draw(state.inner, batch, KEY))
    after, _ = learner.update(state, batch, draws)
    support.assert_close(after.inner, own.update(state.inner, batch, draws)[0])


def test_what_it_does_not_change_is_the_methods():
    method = cljax.Pretrained(cljax.Joint(), HOW)
    assert (method.name, method.needs) == ("joint", cljax.Joint().needs)
    assert method.unmeasured == cljax.Joint().unmeasured
    stream = support.stream()
    assert method.arrange(stream).checksum == cljax.Joint().arrange(stream).checksum
    problem = cljax.Problem(cljax.nets.mlp(5)(4), support.spec())
    assert method.cost(problem) == Cost(1, support.BATCH)
    penalised = cljax.Finetune(penalty=cljax.penalties.EWC())
    ewc = support.bind(cljax.Pretrained(penalised, HOW))
    names = [phase.name for phase in support.bind(penalised).phases]
    assert [phase.name for phase in ewc.phases] == ["pretrain", *names]


def test_a_method_that_pretrains_by_itself_stays_as_it_is():
    stream = transfer_support.stream()
    model, spec = cljax.nets.mlp(6, 4)(stream.num_classes), stream.spec(5)
    own, wrapped = (m.bind(model, spec) for m in (cljax.Rep(), cljax.Pretrained(cljax.Rep(), HOW)))
    state = wrapped.init(jax.random.key(0))
    support.assert_close(state, own.init(jax.random.key(0)))
    assert [phase.name for phase in wrapped.phases] == ["pretrain"]


def test_it_is_a_pytree_whose_leaves_are_the_methods():
    method = cljax.Pretrained(ER, HOW)
    assert jax.tree.leaves(method) == jax.tree.leaves(ER)
    assert method.replace(lr=0.3).method == ER.replace(lr=0.3)


def test_a_run_of_a_stream_with_pretraining_keeps_the_options_of_the_method_alone():
    """The stream's own pretraining is told by its checksum; one by hand is an option."""
    with jax.enable_x64(False):
        stream, net = transfer_support.stream(), cljax.nets.mlp(4)
        config = prepare(ER, stream, RunOptions(seeds=1, net=net, batch_size=5)).config
        assert set(config["method"]["options"]) == set(ER.recorded)
        hashes = set()
        for how in (HOW, HOW._replace(lr=0.1), HOW):
            method = cljax.Pretrained(ER, how)
            options = RunOptions(seeds=1, net=net, batch_size=4)
            config = prepare(method, support.stream(), options).config
            hashes.add(config["config_hash"])
        told = config["method"]["options"]
        assert told["how"]["lr"] == 0.2 and told["method"]["options"]["capacity"] == 6
        assert len(hashes) == 2 and "mark" not in config["identity"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"steps": 0}, "pretrain_steps"),
        ({"batch_size": 0}, "pretrain_batch_size"),
        ({"lr": float("nan")}, "pretrain_lr"),
        ({"milestones": (1.0,)}, "shares of the steps"),
        ({"optimizer": "fast"}, "optimizer"),
    ],
)
def test_bad_pretraining_is_refused(changes, match):
    with pytest.raises(UserError, match=match):
        cljax.Pretrained(ER, HOW._replace(**changes))


def test_exemplars_join_a_pretrained_method_unless_it_has_a_plan_of_its_own():
    method = cljax.Pretrained(ER, HOW)
    assert cljax.WithExemplars(method, "herding", exemplars_per_class=2).name == "er+exemplars"
    with pytest.raises(UserError, match="a plan of its own"):
        joint = cljax.Pretrained(cljax.Joint(), HOW)
        cljax.WithExemplars(joint, "herding", exemplars_per_class=2)


@pytest.mark.parametrize("how", ["by hand", "of the stream"])
def test_a_method_without_one_network_to_pretrain_is_refused(how):
    method = cljax.Independent(lr=0.1)
    with pytest.raises(UserError, match="independent cannot start from pretrained weights"):
        if how == "by hand":
            support.bind(cljax.Pretrained(method, HOW))
        else:
            with jax.enable_x64(False):
                net = cljax.nets.mlp(4)
                cljax.run(method, transfer_support.stream(), seeds=1, net=net, batch_size=5)


def test_what_is_no_method_is_refused():
    with pytest.raises(UserError, match="must be a Method"):
        cljax.Pretrained(cljax.ER)
