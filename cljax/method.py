"""The contract of a method: its hyper-parameters, and pure functions of them.

    class Mine(Method):
        lr: Rate = 0.1
        "Step size."

        def update(self, problem, state, batch, draws):
            ...
            return state, Info(loss)

``update`` is all that a new method needs. ``init`` makes its state (by default the network alone),
``draw`` every random choice of an update as data (by default none), and ``phases`` are steps before
or after a task's data (by default none). All are pure: of the method, the problem that it works on,
the state, a batch and what was drawn; ``self`` never changes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cljax.errors import UserError
from cljax.losses import LossFn, classification_loss, masked_mean, row_losses
from cljax.objectives import check_objective
from cljax.options import Options
from cljax.states import WithNetwork
from cljax.types import (
    Array,
    Batch,
    Evaluation,
    Examples,
    Info,
    Learner,
    Model,
    Needs,
    Network,
    Output,
    Params,
    Phase,
    Predictor,
    PyTree,
    Recall,
    Spec,
    Variables,
)

__all__ = [
    "Cost", "Method", "Problem", "check_features", "features_predictor", "holds_network",
    "logits_predictor", "with_features",
]  # fmt: skip


class Problem(NamedTuple):
    """What a method works on: a network, and what may be known of the stream before it is seen."""

    model: Model
    spec: Spec

    @property
    def loss_fn(self) -> LossFn:
        """Losses [B] over the outputs that compete, see ``cljax.losses.LossFn``.

        They are cross-entropies in nats, or what the stream's objective says, times the weights of
        the rows' classes where it has some.
        """
        return classification_loss(self.model, self.spec)

    def value_and_grad(self, state: Any, batch: Batch) -> tuple[tuple[Array, PyTree], Params]:
        """``((loss, model_state), gradient)`` of the mean loss over a batch's valid rows, in nats.

        Args:
          state: with ``params`` and ``model_state``.
        """
        examples = Examples(batch.x, batch.y, batch.task)

        def loss(params: Params) -> tuple[Array, PyTree]:
            losses, model_state = self.loss_fn(params, state.model_state, examples, batch.mask)
            return masked_mean(losses, batch.mask), model_state

        return jax.value_and_grad(loss, has_aux=True)(state.params)

    def variables(self, key: Array) -> Variables:
        """The network's first variables, for examples as the stream shows them."""
        example = jax.tree.map(lambda a: jnp.zeros((1, *a.shape), a.dtype), self.spec.example)
        return self.model.init(key, example)

    def network(self, model_state: PyTree) -> Network:
        """What a penalty may ask of the network, in evaluation mode."""

        def logits(variables: Variables, x: PyTree) -> Array:
            return self.model.apply(variables, x, False)[0].logits

        def losses(variables: Variables, examples: Any) -> Array:
            return row_losses(self.spec, logits(variables, examples.x), examples)

        return Network(logits, losses, model_state, self.spec)


class Cost(NamedTuple):
    """What an update computes: gradients, each over some examples, and all those examples."""

    gradients: int | None = None
    examples: int | None = None


class Method(Options):
    """A continual-learning method; see the module."""

    unmeasured: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Measures that have no meaning for the method, such as LA of one that learns all tasks at
    once, and why."""

    @property
    def name(self) -> str:
        """Its name in tables and folders."""
        return self.kind

    @property
    def needs(self) -> Needs:
        """What it must be told while it learns and when it is tested."""
        return Needs()

    @property
    def instead_of_boundaries(self) -> str:
        """What to choose where a stream has no task boundaries, but ``needs`` asks for them."""
        return "choose a stream of tasks, such as mnist-rotations or split-mnist"

    @property
    def needs_classes(self) -> str:
        """Why the targets must be classes, after "because it"; "" where any numbers will do."""
        return ""

    @property
    def fixed_loss(self) -> str:
        """Why it minimises no loss but its own, likewise; "" where it takes ``Problem.loss_fn``."""
        return ""

    @property
    def unweighted(self) -> str:
        """Why it takes no weights of classes, likewise; "" where it does."""
        return ""

    def fit(self, problem: Problem) -> None:
        """Raises UserError for a problem that the method is not defined on."""

    def init(self, problem: Problem, key: Array) -> Any:
        """The state before the first update; by default the network's ``Variables``."""
        return problem.variables(key)

    def draw(self, problem: Problem, state: Any, batch: Batch, key: Array) -> Any:
        """Every random choice of one update, as data; by default none."""
        return ()

    def update(self, problem: Problem, state: Any, batch: Batch, draws: Any) -> tuple[Any, Info]:
        """One update; deterministic, so recorded draws go straight in."""
        raise NotImplementedError

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        """Steps before or after each task's data."""
        return ()

    def predictors(self, problem: Problem) -> Mapping[str, Predictor]:
        """Ways to predict from a state; by default the logits of the network in it."""
        return {"logits": logits_predictor(problem.model)}

    def evaluations(self, problem: Problem) -> tuple[Evaluation, ...]:
        """What the method is judged by; (): one evaluation for each predictor."""
        return ()

    def recall(self, problem: Problem) -> Recall | None:
        """What puts remembered examples in the places of the plan's rows below -1, if any."""
        return None

    def learned_rule(self, problem: Problem) -> Callable[[PyTree], PyTree] | None:
        """State -> the learned update rule in it, which a run keeps in its folder, if any."""
        return None

    def cost(self, problem: Problem) -> Cost:
        """What an update computes, where that can be said."""
        return Cost()

    def arrange(self, stream: Any) -> Any:
        """The stream as the method sees it, by default as it is; for bounds like joint training."""
        return stream

    @property
    def rearranges(self) -> bool:
        """Whether ``arrange`` may change the stream."""
        return type(self).arrange is not Method.arrange

    def bind(self, model: Model, spec: Spec) -> Learner:
        """The functions above for one problem.

        Raises:
          UserError: for a problem that the method is not defined on.
        """
        problem = Problem(model, spec)
        check_objective(self, spec)
        self.fit(problem)
        cost = self.cost(problem)
        return Learner(
            functools.partial(self.init, problem),
            functools.partial(self.draw, problem),
            functools.partial(self.update, problem),
            self.predictors(problem),
            self.phases(problem),
            self.recall(problem),
            self.evaluations(problem),
            cost.gradients,
            cost.examples,
            self.learned_rule(problem),
        )


def logits_predictor(model: Model) -> Predictor:
    """Scores are the network's logits in evaluation mode, for states with ``params``."""
    return _predictor(model, lambda output: output.logits)


def features_predictor(model: Model) -> Predictor:
    """Scores are the network's features [B, D] in evaluation mode: what a readout is fitted on."""
    return _predictor(model, lambda output: output.features)


def _predictor(model: Model, part: Callable[[Output], Array]) -> Predictor:
    def prepare(state: PyTree) -> Variables:
        return Variables(state.params, state.model_state)

    def scores(variables: Variables, batch: Batch) -> Array:
        return part(model.apply(variables, batch.x, False)[0])

    return Predictor(prepare, scores)


def with_features(learner: Learner, model: Model) -> Learner:
    """The learner with a predictor "features", its own or that of the network in its state."""
    added = {"features": features_predictor(model)}
    return learner._replace(predictors={**added, **learner.predictors})


def holds_network(init: Callable[[Array], Any], problem: Problem) -> bool:
    """Whether the fields ``params`` and ``model_state`` of a state are one network of the problem.

    Args:
      init: key -> the state, which is traced alone.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    state, network = jax.eval_shape(lambda k: (init(k), problem.variables(k)), key)
    own = (state.params, state.model_state) if isinstance(state, WithNetwork) else None
    shapes = lambda tree: [leaf.shape for leaf in jax.tree.leaves(tree)]
    return shapes(own) == shapes(network)


def check_features(learner: Learner, model: Model, spec: Spec) -> None:
    """Checks that the state of a learner holds the network that ``with_features`` looks into.

    Raises:
      UserError: if it does not, and the learner has no predictor "features" of its own.
    """
    if "features" in learner.predictors:
        return
    if not holds_network(learner.init, Problem(model, spec)):
        raise UserError(
            "A readout needs features, but the method's state has no params and model_state of "
            "the network to take them from; give its learner a predictor named features."
        )
