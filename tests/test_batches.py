"""``cljax.batches``: a loop of one's own gives what a run gives."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

import cljax
from cljax import keys
from cljax.errors import UserError

_STREAMS = {
    "tasks": cljax.streams.SplitMNIST(sample=True, samples_per_task=25),
    "rotated": cljax.streams.MNISTRotations(sample=True, num_tasks=2, samples_per_task=30),
}


@pytest.mark.parametrize("name", _STREAMS)
@pytest.mark.parametrize("method", [cljax.ER(capacity=20), cljax.LaMAML(capacity=20, glances=1)])
def test_own_loop_gives_the_weights_of_a_run(name: str, method: cljax.Method) -> None:
    stream, net = _STREAMS[name].build(), cljax.nets.mlp(8)
    run = cljax.run(method, stream, seeds=[3], net=net, batch_size=10, epochs=2)
    learner = method.bind(net(stream.num_classes), stream.spec(10))
    update = jax.jit(lambda s, b, key: learner.update(s, b, learner.draw(s, b, key))[0])
    state = learner.init(keys.purpose(3, "init"))
    for batch, key in cljax.batches(stream, 3, batch_size=10, epochs=2):
        state = update(state, batch, key)
    assert run.state is not None
    near = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(near, state.params, run.state.states[0].params)


def test_a_mistake_is_told_before_the_first_batch() -> None:
    with pytest.raises(UserError, match="batch_size"):
        cljax.batches(_STREAMS["tasks"].build(), batch_size=0)
