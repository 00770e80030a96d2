"""``batches``: the updates of a run, one by one, for a loop of one's own.

    state = learner.init(cljax.keys.purpose(seed, "init"))
    for batch, key in batches(stream, seed):
        state, info = learner.update(state, batch, learner.draw(state, batch, key))

These are a run's own updates: the same examples, orders, augmentations and draws. Phases of a
method (exemplars, fine-tuning after a task) are not among them.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from cljax import keys
from cljax.engine.programs import AUGMENT, TrainData, batch_of, train_data
from cljax.streams.base import Stream, plan
from cljax.types import Array, Batch, StepPlan

__all__ = ["batches"]


def batches(
    stream: Stream, seed: int = 0, *, batch_size: int = 10, epochs: int = 1
) -> Iterator[tuple[Batch, Array]]:
    """Yields each update's batch, as the network sees it, with the key of the update's draws.

    Args:
      stream: opened, as ``source.build()`` gives it.
      seed: chooses examples, orders, augmentations and draws.
      batch_size: B; the last batch of a task is padded and masked.
      epochs: passes over each task.

    Raises:
      UserError: for what is no stream, seed, or number above 0.
    """
    steps = plan(stream, seed, batch_size, epochs)
    data, update_key = train_data(stream), keys.purpose(seed, "update")

    @jax.jit  # the images are an argument, for a program would hold a copy of what it closes over
    def made(data: TrainData, row: StepPlan, i: Array) -> tuple[Batch, Array]:
        key = jax.random.fold_in(update_key, i)
        augment_key = jax.random.fold_in(key, AUGMENT)
        return batch_of((), row, data, stream.transform, i, key=augment_key), key

    def each() -> Iterator[tuple[Batch, Array]]:
        for i in range(len(steps.current)):
            row = StepPlan(*(np.asarray(leaf)[i] for leaf in steps))
            yield made(data, row, jnp.asarray(i, jnp.int32))

    return each()
