"""Fine-tuning: gradient steps on the stream as it comes, with a penalty if one is given.

    update(batch):   theta = theta - lr * grad [CE(theta; batch) + penalty(theta)]

Without a penalty it is the lower bound that papers call Online (single pass, one example a
step), FineTune or SGD; with one it is EWC, online EWC, SI, MAS, RWalk or LwF.

Symbols: theta ``params``, lr ``lr``; the optimiser is optax's.

Source: Riemer et al., "Learning to Learn without Forgetting by Maximizing Transfer and
Minimizing Interference", ICLR 2019 (arXiv:1810.11910), Online; the penalties name their own.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

from cljax.method import Method, Problem
from cljax.methods.groups.descent import Descent, DescentOptions, mean_weights
from cljax.types import Array, Batch, Examples, Info, Params, PyTree

__all__ = ["SGD", "Finetune", "Online", "State"]


class State(NamedTuple):
    """``penalty`` is the penalty's own state, ``()`` without one."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    penalty: PyTree


class Finetune(DescentOptions, Method):
    """Gradient descent on the examples as they come: the lower bound, or a penalty's carrier.

    With a penalty its name is the penalty's: ``Finetune(penalty=EWC())`` is ``ewc``.

    Paper: Riemer et al., ICLR 2019 (arXiv:1810.11910), its lower bound. Pseudo-code and symbols:
    ``cljax.methods.finetune``.

    Example:
        >>> import cljax
        >>> run = cljax.run(cljax.Finetune(lr=0.3), cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("BTI")[0]) < -0.2  # it forgets
        True
    """

    @property
    def name(self) -> str:
        return self.kind if self.penalty is None else self.penalty.name

    @property
    def summary(self) -> str:
        return super().summary if self.penalty is None else self.penalty.summary

    def init(self, problem: Problem, key: Array) -> State:
        return State(*self.start(problem, key))

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: tuple[()]
    ) -> tuple[State, Info]:
        examples, weights = Examples(batch.x, batch.y, batch.task), mean_weights(batch.mask)
        after, loss = self.descend(problem, Descent(*state), examples, weights, batch)
        return State(*after), Info(loss)


class Online(Finetune):
    """Online: stochastic gradient descent on the stream, once, without any memory (Riemer 2019).

    Paper: Riemer et al., ICLR 2019 (arXiv:1810.11910). Pseudo-code and symbols:
    ``cljax.methods.finetune``.

    Example:
        >>> import cljax
        >>> run = cljax.run(cljax.Online(lr=0.3), cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("BTI")[0]) < -0.2  # it forgets
        True
    """

    penalty: ClassVar[None] = None
    optimizer: ClassVar[Literal["sgd"]] = "sgd"
    optimizer_at_border: ClassVar[Literal["keep"]] = "keep"


class SGD(Finetune):
    """SGD: plain gradient descent, the hand-made rule that learned ones are compared with.

    Paper: Xiong et al. 2019 (arXiv:1910.04650), its baseline. Pseudo-code and symbols:
    ``cljax.methods.finetune``.

    Example:
        >>> import cljax
        >>> run = cljax.run(cljax.SGD(lr=0.3), cljax.streams.toy(), seeds=1, net="mlp:16")
        >>> float(run.metric("BTI")[0]) < -0.2  # it forgets
        True
    """

    penalty: ClassVar[None] = None
    optimizer: ClassVar[Literal["sgd"]] = "sgd"
    optimizer_at_border: ClassVar[Literal["keep"]] = "keep"
