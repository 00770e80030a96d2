"""La-MAML's Figure 4: do the gradients of old tasks agree while new ones are learned?

    python experiments/lamaml_similarity.py --data-dir DIR --recipe cpu_small|full
    python experiments/lamaml_similarity.py --data-dir DIR --smoke

CIFAR-100 in 20 tasks, its first eleven, with the network and sizes of ``lamaml_table3.py``. After
each task t = 3..11: the cosine between the cross-entropy's gradients, over all parameters, of every
pair of the old tasks 1..t-1, averaged over pairs; a task's gradient is taken on all its validation
images, which no task learns from. The caption of the paper's figure says dot product and its axis
cosine; here it is the cosine. A second curve leaves the heads out: each task has its own, so their
gradients are orthogonal between tasks and only lengthen the vectors. Each method and seed is saved
under --runs, so the script goes on where it stopped.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import (
    RESULTS,
    Report,
    Table,
    arguments,
    difference,
    number,
    one_core_each,
    over_seeds,
    printed,
    recorded,
    spread,
    write,
)
from jax.flatten_util import ravel_pytree
from lamaml_table3 import NET, SAMPLES, reduced
from matplotlib.figure import Figure

import cljax
from cljax import keys, plot, stats
from cljax.engine.programs import device_plan, make_step, train_data
from cljax.losses import classification_loss
from cljax.resolve import net as net_of
from cljax.streams.base import first_tasks, of_seed, plan
from cljax.types import Examples

BATCH, TASKS, FIRST = 10, 11, 3
METHODS = ("lamaml", "cmaml")
PARTS = ("all parameters", "without heads")


def compile_run(method, net, stream):
    """``(plan, valid [T, n], data, key_init, key_update) -> cosines [T, 2, T, T]``, compiled."""
    model, spec = net(stream.num_classes), stream.spec(BATCH)
    learner, loss_fn = method.bind(model, spec), classification_loss(model, spec)
    step, tasks = make_step(learner, stream.transform, None), jnp.arange(stream.num_tasks)

    def gradient(state, data, rows, task):
        """[2, P]: the task's, and the same without heads."""
        where = jnp.full(rows.shape, task, jnp.int32)
        x = stream.transform.apply(data.tables, data.x[rows], where)
        examples = Examples(x, data.y[rows], where)
        valid = jnp.ones(rows.shape, bool)
        loss = lambda p: jnp.mean(loss_fn(p, state.model_state, examples, valid)[0])
        grads = jax.grad(loss)(state.params)
        body = {**grads, "head": jax.tree.map(jnp.zeros_like, grads["head"])}
        return jnp.stack([ravel_pytree(part)[0] for part in (grads, body)])

    def run(rows, valid, data, key_init, key_update):
        def learn_one(state, i_row):
            i, row = i_row
            return step(state, row, data, key_update, i)[0], None

        def task(state, i_rows):
            state, _ = jax.lax.scan(learn_one, state, i_rows)
            grads = jax.lax.map(lambda own: gradient(state, data, *own), (valid, tasks))
            unit = grads / jnp.linalg.norm(grads, axis=-1, keepdims=True)
            return state, jnp.einsum("akp,bkp->kab", unit, unit, precision="highest")

        i_rows = (jnp.arange(rows.current.shape[0]), rows)
        cut = lambda a: a.reshape(stream.num_tasks, -1, *a.shape[1:])
        return jax.lax.scan(task, learner.init(key_init), jax.tree.map(cut, i_rows))[1]

    return jax.jit(run, compiler_options=one_core_each())


def among_old(cosines: np.ndarray, first: int = FIRST) -> np.ndarray:
    """Mean over pairs of old tasks, [T - first + 1, 2], of cosines [T, 2, T, T] after each task."""
    means = []
    for t in range(first, len(cosines) + 1):
        pairs = np.triu_indices(t - 1, k=1)
        means.append(cosines[t - 1][:, pairs[0], pairs[1]].mean(axis=-1))
    return np.array(means)


def similarities(recipe, stream, seeds, folder: Path, num_tasks: int) -> np.ndarray:
    """[seeds, T - 2, 2]."""
    own = lambda seed: first_tasks(of_seed(stream, seed), num_tasks)
    method = cljax.methods.make(recipe.method, **recipe.method_options)
    run = compile_run(method, net_of(recipe.net), own(seeds[0]))
    identity = [stream.checksum, num_tasks, recipe.net, dict(recipe.method_options)]
    identity = json.dumps(identity, sort_keys=True)

    def cosines(seed):
        seen = own(seed)
        valid = jnp.asarray(np.stack(seen.valid(seed)))
        made = [keys.purpose(seed, name) for name in ("init", "update")]
        found = run(device_plan(plan(seen, seed, BATCH)), valid, train_data(seen), *made)
        return {"cosines": np.asarray(found)}

    def one(seed):
        path = folder / f"{recipe.method}-seed{seed}.npz"
        return among_old(recorded(path, identity, lambda: cosines(seed))["cosines"])

    return np.stack(over_seeds(one, seeds))


def draw(found: dict[str, np.ndarray], path: Path) -> None:
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    means = 100 * np.stack([values.mean(axis=0) for values in found.values()])
    for k, (ax, title) in enumerate(zip(figure.subplots(1, 2, sharey=True), PARTS, strict=True)):
        x = np.arange(FIRST, FIRST + next(iter(found.values())).shape[1])
        curves = {method: values[:, :, k] for method, values in found.items()}
        plot.over_time(
            curves, x, ax, xlabel="Tasks learned", title=title,
            ylabel="Cosine x 100, pairs of old tasks" if k == 0 else "",
        )  # fmt: skip
        ax.set_ylim(means.min() - 12, means.max() + 18)
        ax.axhline(0, color="black", linewidth=0.8, zorder=0)
        if k == 0:
            ax.get_legend().remove()  # the same as the other panel's
    plot.save(figure, path)


def tables(found: dict[str, np.ndarray]) -> tuple[Table, Table]:
    """Cosines after each task, and the difference between the methods."""
    columns = ["tasks learned", *(f"{method}, {part}" for method in found for part in PARTS)]
    rows = [
        printed([FIRST + i, *(spread(v[:, i, k], scale=100) for v in found.values()
                              for k in range(len(PARTS)))])
        for i in range(next(iter(found.values())).shape[1])
    ]  # fmt: skip
    ours, others = (found[name].mean(axis=1) for name in METHODS)
    pairs = [stats.paired(ours[:, k], others[:, k]) for k in range(len(PARTS))]
    differences = [
        printed([part, difference(pair), number(pair.p_value, ".3g")])
        for part, pair in zip(PARTS, pairs, strict=True)
    ]
    return Table(columns, rows), Table(["cosine of", "difference", "p"], differences)


def main() -> None:
    args = arguments(
        __doc__, smoke="4 tasks of 40 images, 2 seeds", recipes=("cpu_small", "full"), seeds=5,
        runs="lamaml_similarity",
    ).parse_args()  # fmt: skip
    cljax.runtime.keep_freed_memory()
    seeds, num_tasks = range(2 if args.smoke else args.seeds), 4 if args.smoke else TASKS
    folder = args.runs / (args.recipe + "-smoke" * args.smoke)
    found, said = {}, ""
    for name in METHODS:
        recipe = cljax.recipe(name, "cifar100-20x5", "lamaml-table3-single", "reference")
        if args.recipe == "cpu_small" or args.smoke:
            recipe = reduced(recipe, NET, 40 if args.smoke else SAMPLES)
        options = {**recipe.stream_options, "data_dir": args.data_dir}
        stream = cljax.streams.make("cifar100-20x5", **options).build()
        found[name] = similarities(recipe, stream, seeds, folder, num_tasks)
        said = f"{recipe.net}, {len(stream.subsets(0)[0])} images a task"
    cosines, differences = tables(found)
    out = folder if args.smoke else RESULTS
    draw(found, out / f"lamaml_similarity_{args.recipe}.png")
    if args.smoke:
        return
    about = (
        f": {said}, {len(seeds)} seeds. Mean cosine between the gradients of all pairs of old "
        "tasks on their validation images, after so many tasks; x 100, with 95 % t-intervals. "
        f"Drawn in `lamaml_similarity_{args.recipe}.png`."
    )
    between = f"{METHODS[0]} less {METHODS[1]}, mean over tasks, paired over seeds, x 100:"
    command = f"python experiments/lamaml_similarity.py --data-dir DIR --recipe {args.recipe}"
    parts = [cosines, "", between, "", differences]
    report = Report("Gradients of old tasks, CIFAR-100", command, about, parts)
    write(out / f"lamaml_similarity_{args.recipe}.md", report)


if __name__ == "__main__":
    main()
