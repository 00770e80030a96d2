"""Class prediction by models adapted to one task, on its exemplars (iTAML, Algorithms 2 and 3).

    adapt(i):      Phi_i <- Phi;  b epochs over the exemplars of task i, in batches of Q:
                       Phi_i <- Adam(Phi_i, grad L_i(Phi_i))
    infer(C):      argmax_i  mean over x in C of  max_u z_{i,u}(x; Phi)
    predict(x, i): argmax over the outputs of task i of  z(x; Phi_i)

L_i is the sigmoid cross-entropy over the outputs of task i, z are logits. The adapted models depend
on the exemplars alone, so they are made once an evaluation and serve all continua. A task without
exemplars keeps Phi, and so does every task while there is only one. The order of the exemplars and
their augmentation are drawn anew for every seed, task and number of tasks.

Symbols: Phi ``variables``, b ``epochs``, Q ``batch_size``, C a continuum.

Source: Rajasegaran et al., "iTAML", CVPR 2020 (arXiv:2003.11652), section 3.3. As in the released
code, b counts epochs (the text speaks of one gradient step) and the optimiser is Adam.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cljax import keys
from cljax.losses import binary_cross_entropy, masked_mean, weighted
from cljax.nets.masked import masked
from cljax.optimizers import make_optimizer
from cljax.types import (
    Array,
    Batch,
    Evaluation,
    Model,
    Params,
    Predictor,
    PyTree,
    Spec,
    Variables,
)

__all__ = ["adapt_key", "adapted_predictor", "protocols"]


def adapt_key(key: Array) -> Array:
    """What a state keeps of its first key for adaptation, [2] uint32: a state holds plain arrays.

    Args:
      key: the one that ``Learner.init`` gets.
    """
    return jax.random.bits(keys.derived(key, "adapt"), (2,), "uint32")


def protocols(
    continuum: int, *, predictor: str = "adapted", generic: str = "logits"
) -> tuple[Evaluation, ...]:
    """iTAML's protocols: task inferred, task given, per sample; and the inferred tasks themselves.

    Args:
      continuum: examples known to share one task where that is inferred.
      predictor: of the classes, once a task is known; "logits" serves methods that do not adapt.
      generic: of tasks, and of classes per sample.
    """
    return (
        Evaluation(
            "task-agnostic", predictor, "class", continuum, generic, metric="accuracy_task_agnostic"
        ),
        Evaluation("task-aware", predictor, "task", metric="accuracy_task_aware"),
        Evaluation("no-update", generic, "class", metric="accuracy_no_update"),
        Evaluation(
            "task", generic, "class", continuum, generic, hit="task", metric="task_accuracy"
        ),
    )


def adapted_predictor(
    model: Model, spec: Spec, *, epochs: int, lr: Array | float, batch_size: int
) -> Predictor:
    """Scores of each example by the model adapted to its task, the true or the inferred one.

    For states with ``params``, ``model_state``, ``exemplars`` and ``adapt_key``.
    """
    adam, owner = make_optimizer("adam", lr), jnp.asarray(spec.class_mask)

    def loss(params: Params, model_state: PyTree, batch: Batch) -> tuple[Array, PyTree]:
        variables = Variables(params, model_state)
        output, model_state = masked(model, variables, batch.x, batch.mask)
        targets = jax.nn.one_hot(batch.y, spec.num_classes, dtype=output.logits.dtype)
        losses = binary_cross_entropy(output.logits, targets, owner[batch.task])
        losses = weighted(spec, losses, batch.y)
        return masked_mean(losses, batch.mask), model_state

    def prepare(state: PyTree) -> Variables:
        """Every task's own variables, leaves [T, ...]."""
        kept, capacity = state.exemplars, state.exemplars.y.shape[0]
        padding = -capacity % batch_size
        ended = jnp.max(jnp.where(kept.mask, kept.task + 1, 0))  # tasks that left exemplars

        def adapt(task: Array) -> Variables:
            member = kept.mask & (kept.task == task)
            count = jnp.where(ended > 1, jnp.sum(member), 0)
            own = jax.random.wrap_key_data(state.adapt_key, impl="threefry2x32")
            key = jax.random.fold_in(own, ended * spec.num_tasks + task)

            def epoch(number: Array, carry: PyTree) -> PyTree:
                key_order, key_augment = jax.random.split(jax.random.fold_in(key, number))
                ranks = jnp.where(member, jax.random.uniform(key_order, (capacity,)), jnp.inf)
                order = jnp.pad(jnp.argsort(ranks), (0, padding))

                def step(i: Array, carry: PyTree) -> PyTree:
                    params, model_state, opt_state = carry
                    rows = jax.lax.dynamic_slice_in_dim(order, i * batch_size, batch_size)
                    mask = i * batch_size + jnp.arange(batch_size) < count
                    tasks = jnp.full(batch_size, task)
                    x = jax.tree.map(lambda a: a[rows], kept.x)
                    x = spec.show(x, tasks, jax.random.fold_in(key_augment, i))
                    batch = Batch(x, kept.y[rows], tasks, mask, rows, None)  # type: ignore[arg-type]
                    grads, model_state = jax.grad(loss, has_aux=True)(params, model_state, batch)
                    updates, opt_state = adam.update(grads, opt_state, params)
                    return jax.tree.map(jnp.add, params, updates), model_state, opt_state

                return jax.lax.fori_loop(0, -(-count // batch_size), step, carry)

            start = (state.params, state.model_state, adam.init(state.params))
            params, model_state, _ = jax.lax.fori_loop(0, epochs, epoch, start)
            return Variables(params, model_state)

        return jax.lax.map(adapt, jnp.arange(spec.num_tasks, dtype=jnp.int32))

    def scores(adapted: Variables, batch: Batch) -> Array:
        shape = jax.eval_shape(
            lambda: model.apply(jax.tree.map(lambda a: a[0], adapted), batch.x, False)[0].logits
        )

        def one(total: Array, i_variables: tuple[Array, Variables]) -> tuple[Array, None]:
            i, variables = i_variables
            mine = batch.task == i
            logits = jax.lax.cond(
                jnp.any(mine),
                lambda: model.apply(variables, batch.x, False)[0].logits,
                lambda: total,
            )
            return jnp.where(mine[:, None], logits, total), None

        zero = jnp.zeros(shape.shape, shape.dtype)
        numbers = jnp.arange(np.shape(spec.class_mask)[0])
        return jax.lax.scan(one, zero, (numbers, adapted))[0]

    return Predictor(prepare, scores, needs_task_ids=True)
