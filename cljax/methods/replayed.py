"""Replayed: gradient descent on a task's data and the exemplars of earlier tasks, together.

    each epoch of task s:   the examples of D(s) and M(s - 1), shuffled, in batches
    update(batch):          theta = theta - rate * Opt(grad mean_B CE(theta; batch))
    after task s:           M(s) = exemplars chosen from D(s), and the best of the old ones

The cross-entropy is over all outputs seen so far, of a softmax or, mean over outputs, of sigmoids.
It is what iTAML's figure 5 calls Joint. ``oracle`` replays all past examples instead.

Symbols: theta ``params``, D(s) the data of task s, M ``exemplars``.

Source: Rajasegaran, Khan, Hayat, Khan, Shah, "iTAML", CVPR 2020 (arXiv:2003.11652), section 4.2;
the paper names the method only, and the code released with it has none.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

from cljax.memory import exemplars as memory
from cljax.method import Method, Problem
from cljax.methods.groups.exemplars import ExemplarOptions
from cljax.methods.groups.sessions import LossOptions
from cljax.methods.incremental import blanked, seen_outputs, training
from cljax.options import Count
from cljax.streams.base import Stream
from cljax.types import Array, Batch, Info, Output, Params, Phase, PyTree, Recall

__all__ = ["Oracle", "Replayed", "State"]


class State(NamedTuple):
    """``exemplars`` is ``()`` where all past examples are replayed."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    exemplars: PyTree


class Replayed(ExemplarOptions, LossOptions, Method):
    """Joint training on the current task's data and exemplars of the earlier ones.

    Paper: Rajasegaran et al., CVPR 2020 (arXiv:2003.11652), section 4.2. Pseudo-code and symbols:
    ``cljax.methods.replayed``.

    Example:
        >>> import cljax
        >>> method = cljax.Replayed(lr=0.3)
        >>> run = cljax.run(method, cljax.streams.toy("class"), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    capacity: Count | None = 2000
    """Exemplars of all classes together; None with per_class or capacity_bytes. All three None
    replay all past examples."""

    def check(self) -> None:
        if self._everything:
            LossOptions.check(self)
        else:
            super().check()

    @property
    def _everything(self) -> bool:
        return self.capacity is None and self.per_class is None and self.capacity_bytes is None

    def init(self, problem: Problem, key: Array) -> State:
        params, model_state = problem.variables(key)
        exemplars = () if self._everything else self.no_exemplars(problem)
        return State(params, model_state, self.opt_state(params), exemplars)

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: tuple[()]
    ) -> tuple[State, Info]:
        """One gradient step on the batch; ``info.loss`` is in nats."""
        batch = blanked(batch)
        seen = seen_outputs(problem.spec.class_mask, batch.clock.task)

        def objective(params: Params, output: Output) -> Array:
            return self.mean_loss(problem.spec, output.logits, batch, seen)

        state, value = self.descend(state, batch, objective, forward=training(problem.model))
        return state, Info(value)

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        chosen = () if self._everything else self.choices(problem)
        return (*self.fresh_optimizer(), *chosen)

    def recall(self, problem: Problem) -> Recall | None:
        return None if self._everything else super().recall(problem)

    def arrange(self, stream: Stream) -> Stream:
        if self._everything:
            return memory.replayed(stream, None, first_epochs=self.first_epochs)
        return super().arrange(stream)


class Oracle(Replayed):
    """Oracle: joint training on the current task's data and all data of the earlier ones.

    Paper: Rajasegaran et al., CVPR 2020 (arXiv:2003.11652), section 4.2. Pseudo-code and symbols:
    ``cljax.methods.replayed``.

    Example:
        >>> import cljax
        >>> run = cljax.run(cljax.Oracle(lr=0.3), cljax.streams.toy("class"), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    capacity: ClassVar[None] = None
    per_class: ClassVar[None] = None
    capacity_bytes: ClassVar[None] = None
    exemplars: ClassVar[Literal["random"]] = "random"
