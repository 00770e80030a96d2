"""Task-incremental iCaRL: distillation on herded exemplars, prediction by the nearest class mean.

    update(batch):                                      # B examples of task t
      for each of G glances:
        draw one exemplar x_c of each old class, with its stored logits z_c
        D_p   = 1/|p| sum_{c in p} KL(softmax_p(z_c) || softmax_p(theta(x_c)))   # for each p < t
        theta = theta - lr * clip(grad [CE(theta; batch) + strength * sum_p D_p])
      the first stage_size examples of the task's first pass are staged
    after task t:
      n = floor(M / classes seen)
      for each class c of t, f the outputs of t at its staged examples, mu their mean:
        for j in 0..n-1:  take the i that minimises |mu - (f_i + sum of f taken) / (j + 1)|
      cut every class to its first n exemplars, and store theta's logits at all of them
    predict(x, t) = argmin_c |theta(x) - mean of theta over the exemplars of c|,  c in t

softmax_p is over the outputs of task p, the cross-entropy over those of t; the distance to a
mean is over all C logits.

Symbols: theta ``params``, M ``capacity``, G ``glances``, x_c ``exemplars``, z_c ``exlog``.

Source: Rebuffi, Kolesnikov, Sperl, Lampert, "iCaRL: Incremental Classifier and Representation
Learning", CVPR 2017 (arXiv:1611.07725); in the form that the code released with La-MAML
(arXiv:2007.13904) took from that of GEM (Lopez-Paz, Ranzato, NeurIPS 2017, arXiv:1706.08840).

Differs from iCaRL, as that code does: task identities are given, features are raw logits, and
distillation sees one exemplar a class instead of training on them. Differs from the code: a
class with fewer staged examples than n keeps what it has and shortens no other class;
``stage_size`` counts examples, not whole batches; distillation runs the network in evaluation
mode (the reference networks have no other).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import tree
from cljax.errors import UserError
from cljax.losses import masked_mean
from cljax.memory.selection import herd
from cljax.method import Cost, Method, Problem, logits_predictor
from cljax.options import Bound, Count, Rate
from cljax.types import (
    Array,
    Batch,
    Examples,
    Info,
    Model,
    Needs,
    Params,
    Phase,
    Predictor,
    PyTree,
    StepPlan,
    Variables,
)

__all__ = ["Draws", "Exemplars", "ICaRLTI", "Stage", "State"]

_BLOCK = 256  # images a forward pass over a memory: bounds its activations


class Exemplars(NamedTuple):
    """Slots of every class, best first; those from ``count`` on hold finite leftovers."""

    x: PyTree  # [C, n_max, ...]
    exlog: Array  # [C, n_max, C], the network's logits when the last task ended
    count: Array  # [C] int32


class Stage(NamedTuple):
    """Examples of the current task, in order of arrival."""

    x: PyTree  # [stage_size, ...]
    y: Array  # [stage_size] int32
    count: Array  # [] int32


class State(NamedTuple):
    """``exemplars`` are of tasks that have ended, ``stage`` of the one that has not."""

    params: Params
    model_state: PyTree
    exemplars: Exemplars
    stage: Stage


class Draws(NamedTuple):
    """One exemplar of each class for each glance, contents."""

    x: PyTree  # [G, C, ...]
    exlog: Array  # [G, C, C]
    mask: Array  # [G, C] bool, True = the class has exemplars


class ICaRLTI(Method, name="icarl-ti"):
    """iCaRL where the task is known: distillation, herded exemplars, nearest class mean.

    Paper: Rebuffi et al., CVPR 2017 (arXiv:1611.07725), as in GEM's code (arXiv:1706.08840).
    Pseudo-code, symbols and what differs: ``cljax.methods.icarl_ti``.

    Example:
        >>> import cljax
        >>> run = cljax.run(cljax.ICaRLTI(lr=0.3), cljax.streams.toy("task"), seeds=1, net="mlp:16")
        >>> float(run.metric("RA")[0]) > 0.9
        True
    """

    lr: Rate = 0.03
    """Step size."""
    strength: Rate = 1.0
    """Weight of the distillation from the network as it was."""
    capacity: Count = 200
    """Exemplars of all classes together; each seen class has an equal share."""
    stage_size: Count = 2240
    """Examples of a task's first pass from which its exemplars are chosen, the first to arrive."""
    glances: Count = 1
    """Steps on each incoming batch."""
    clip_norm: Bound | None = 5.0
    """Bound of the global norm of the gradient; None disables."""

    @property
    def needs(self) -> Needs:
        return Needs(boundaries=True, task_ids_train=True, task_ids_test=True)

    @property
    def needs_classes(self) -> str:
        return "holds exemplars of each class"

    def fit(self, problem: Problem) -> None:
        spec = problem.spec
        if not spec.multi_head:
            raise UserError(
                "icarl-ti needs a stream whose tasks have outputs of their own, such as "
                "split-mnist with multi_head=True, but this one is single-head."
            )
        if np.any(spec.class_mask.sum(axis=0) > 1):
            raise UserError("icarl-ti needs a stream in which no output belongs to two tasks.")
        classes = int(spec.class_mask.sum())
        if self.capacity < classes:
            raise UserError(
                f"capacity is {self.capacity}, but it must be at least {classes}, an exemplar of "
                "each class of the stream."
            )

    def _shares(self, problem: Problem) -> np.ndarray:
        """[T], exemplars a class once task t has ended."""
        return self.capacity // np.cumsum(problem.spec.class_mask.sum(axis=1))

    def init(self, problem: Problem, key: Array) -> State:
        spec, (params, model_state) = problem.spec, problem.variables(key)
        num_classes, slots = spec.num_classes, int(self._shares(problem)[0])
        exlog = jnp.zeros((num_classes, slots, num_classes), jax.tree.leaves(params)[0].dtype)
        empty = lambda *lead: jax.tree.map(
            lambda leaf: jnp.zeros((*lead, *leaf.shape), leaf.dtype), spec.example
        )
        count, none = jnp.zeros(num_classes, jnp.int32), jnp.zeros((), jnp.int32)
        stage = Stage(empty(self.stage_size), jnp.zeros(self.stage_size, jnp.int32), none)
        return State(params, model_state, Exemplars(empty(num_classes, slots), exlog, count), stage)

    def draw(self, problem: Problem, state: State, batch: Batch, key: Array) -> Draws:
        """Draws an exemplar of each class, uniformly, for each glance."""
        x, exlog, count = state.exemplars
        num_classes = count.shape[0]
        slot = jax.random.randint(key, (self.glances, num_classes), 0, jnp.maximum(count, 1)[None])
        own = jnp.arange(num_classes)[None]
        mask = jnp.broadcast_to((count > 0)[None], slot.shape)
        return Draws(jax.tree.map(lambda a: a[own, slot], x), exlog[own, slot], mask)

    def update(
        self, problem: Problem, state: State, batch: Batch, draws: Draws
    ) -> tuple[State, Info]:
        """G distilled steps on a batch, which is then staged if it is new.

        Returns:
          The new state; ``info.loss`` is the mean loss of the glances with the distillation, in
          nats, and ``info.metrics["distillation"]`` is sum_p D_p without its weight.
        """
        current = Examples(batch.x, batch.y, batch.task)
        heads, weights = _heads(problem.spec.class_mask)

        def glance(carry: Any, drawn: Draws) -> tuple[Any, tuple[Array, Array]]:
            params, model_state = carry

            def objective(params: Params) -> tuple[Array, tuple[PyTree, Array]]:
                losses, after = problem.loss_fn(params, model_state, current, batch.mask)
                # In evaluation mode, so that empty slots reach no statistics.
                logits = problem.model.apply(Variables(params, model_state), drawn.x, False)[
                    0
                ].logits
                apart = _divergence(drawn.exlog, logits, jnp.asarray(heads))
                distilled = jnp.sum(jnp.where(drawn.mask, apart, 0.0) * jnp.asarray(weights))
                return masked_mean(losses, batch.mask) + self.strength * distilled, (
                    after,
                    distilled,
                )

            (loss, (model_state, distilled)), grads = jax.value_and_grad(objective, has_aux=True)(
                params
            )
            params = tree.add_scaled(params, tree.clip_norm(grads, self.clip_norm), -self.lr)
            # Distillation alone is no step.
            after = tree.select(jnp.any(batch.mask), (params, model_state), carry)
            return after, (loss, distilled)

        (params, model_state), (losses, distilled) = jax.lax.scan(
            glance, (state.params, state.model_state), draws
        )
        state = State(params, model_state, state.exemplars, _staged(state.stage, batch))
        return state, Info(jnp.mean(losses), {"distillation": jnp.mean(distilled)})

    def phases(self, problem: Problem) -> tuple[Phase, ...]:
        return (_task_end(problem.model, problem.spec.class_mask, self._shares(problem)),)

    def predictors(self, problem: Problem) -> Mapping[str, Predictor]:
        return {
            "nearest-mean": _nearest_mean(problem.model, problem.spec.class_mask),
            "logits": logits_predictor(problem.model),
        }

    def cost(self, problem: Problem) -> Cost:
        spec = problem.spec
        return Cost(self.glances, self.glances * (spec.batch_size + spec.num_classes))


def _task_end(model: Model, class_mask: np.ndarray, shares: np.ndarray) -> Phase:
    """One step after each task: its staged examples become exemplars, and all logits are new."""
    width = int(class_mask.sum(axis=1).max())
    owned = np.full((len(class_mask), width), class_mask.shape[1])  # C = no class
    for task, row in enumerate(class_mask):
        owned[task, : row.sum()] = np.flatnonzero(row)

    def plan(task: int, rows: StepPlan) -> StepPlan:
        return StepPlan(*(column[-1:] for column in rows))._replace(last=np.ones(1, bool))

    def update(state: State, batch: Batch, draws: tuple[()]) -> tuple[State, Info]:
        stage, (x, exlog, count) = state.stage, state.exemplars
        task = batch.clock.task
        classes, share = jnp.asarray(owned)[task], jnp.asarray(shares, jnp.int32)[task]
        variables = Variables(state.params, state.model_state)
        # Outputs of other tasks are 0 everywhere, which adds nothing to a distance.
        features = jnp.where(
            jnp.asarray(class_mask)[task][None], _logits(model, variables, stage.x), 0.0
        )
        filled = jnp.arange(stage.y.shape[0]) < stage.count
        members = filled[None] & (stage.y[None] == classes[:, None])  # [width, stage_size]
        chosen = jax.lax.map(lambda mask: herd(features, mask, exlog.shape[1]), members)
        x = jax.tree.map(lambda old, new: old.at[classes].set(new[chosen], mode="drop"), x, stage.x)
        count = count.at[classes].set(jnp.sum(members, axis=1, dtype=jnp.int32), mode="drop")
        exlog = jax.lax.map(lambda own: _logits(model, variables, own), x)
        exemplars = Exemplars(x, exlog, jnp.minimum(count, share))
        emptied = stage._replace(count=jnp.zeros_like(stage.count))
        return state._replace(exemplars=exemplars, stage=emptied), Info(jnp.zeros(()))

    return Phase("exemplars", plan, lambda state, batch, key: (), update)


def _nearest_mean(model: Model, class_mask: np.ndarray) -> Predictor:
    """Scores are minus the distances to the class means, lower than any where there is no mean."""

    def prepare(state: State) -> tuple[Variables, Array, Array]:
        variables = Variables(state.params, state.model_state)
        x, _, count = state.exemplars

        def mean(drawn: tuple[PyTree, Array]) -> Array:
            own, count = drawn
            logits = _logits(model, variables, own)
            filled = jnp.arange(logits.shape[0]) < count
            return jnp.sum(jnp.where(filled[:, None], logits, 0.0), axis=0) / jnp.maximum(count, 1)

        return variables, jax.lax.map(mean, (x, count)), count > 0

    def scores(view: tuple[Variables, Array, Array], batch: Batch) -> Array:
        variables, means, known = view
        logits = model.apply(variables, batch.x, False)[0].logits
        distances = jnp.linalg.norm(logits[:, None] - means[None], axis=-1)
        lowest = jnp.finfo(distances.dtype).min
        # Without exemplars a task's classes tie, above all outputs of other tasks.
        within = jnp.where(known[None], -distances, lowest / 2)
        return jnp.where(jnp.asarray(class_mask)[batch.task], within, lowest)

    return Predictor(prepare, scores, needs_task_ids=True)


def _staged(stage: Stage, batch: Batch) -> Stage:
    """Appends a batch's valid examples while they are new and there is room."""
    size = stage.y.shape[0]
    new = batch.mask & batch.clock.first_pass
    slots = jnp.where(new, stage.count + jnp.cumsum(new) - 1, size)  # from size on: dropped
    x, y = jax.tree.map(
        lambda old, a: old.at[slots].set(a.astype(old.dtype), mode="drop"),
        (stage.x, stage.y),
        (batch.x, batch.y),
    )
    count = jnp.minimum(stage.count + jnp.sum(new, dtype=jnp.int32), size)
    return Stage(x, y, count)


def _logits(model: Model, variables: Variables, x: PyTree) -> Array:
    """Logits ``[N, C]`` of N examples, a block at a time."""
    one = lambda x: model.apply(variables, jax.tree.map(lambda a: a[None], x), False)[0].logits[0]
    return jax.lax.map(one, x, batch_size=_BLOCK)


def _heads(class_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[C, C]`` outputs of each class's task, and ``[C]`` one over their number.

    An output of no task is alone in its head, so that its softmax is finite.
    """
    together = class_mask.T.astype(int) @ class_mask.astype(int) > 0
    heads = together | np.eye(class_mask.shape[1], dtype=bool)
    return heads, 1.0 / heads.sum(axis=1)


def _divergence(old: Array, new: Array, heads: Array) -> Array:
    """``KL(softmax(old) || softmax(new))`` of each row, over the outputs in ``heads``."""
    log_old, log_new = (
        jnp.where(heads, z - jax.nn.logsumexp(z, axis=1, where=heads, keepdims=True), 0.0)
        for z in (old, new)
    )
    return jnp.sum(jnp.where(heads, jnp.exp(log_old) * (log_old - log_new), 0.0), axis=1)
