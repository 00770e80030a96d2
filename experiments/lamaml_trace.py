"""La-MAML's Figure 3: accuracy inside and after the meta-update.

    python experiments/lamaml_trace.py --data-dir DIR
    python experiments/lamaml_trace.py --data-dir DIR --recipe cpu_small
    python experiments/lamaml_trace.py --smoke

On MNIST rotations, or on CIFAR-100 with the network and sizes of ``lamaml_table3.py``. Every 25
meta-updates (5 batches of 5 glances; on CIFAR-100 every 20, 10 batches of 2), over the first 5
tasks: the mean accuracy over the tasks seen so far, on at most 1000 test images a task, at two
points of that meta-update: at theta_K, where its inner loop ends, and at theta after it. The paper
draws both over CIFAR-100 and sees dips of the first that vanish later. Each seed is saved under
--runs, so the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
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
    counted,
    number,
    one_core_each,
    over_seeds,
    printed,
    recorded,
    spread,
    write,
)
from lamaml_table3 import NET, SAMPLES, reduced
from matplotlib.figure import Figure

import cljax
from cljax import keys, plot
from cljax.engine.programs import device_plan, make_step, train_data
from cljax.evaluation.accuracy import Evaluation, allowed_outputs, correct_fn, test_data
from cljax.inner_loop import sgd_step, split, unroll
from cljax.losses import classification_loss, masked_mean
from cljax.resolve import net as net_of
from cljax.streams.base import first_tasks, of_seed, plan
from cljax.types import Examples, Info

BATCH, TASKS, TESTED = 10, 5, 1000
STRIDE = {"mnist": 5, "cpu_small": 10}  # batches from record to record
INNER, META = "end of the inner loop", "after the meta-update"
ABOUT = (
    ": first {tasks} tasks of {size} images, {values}, {seeds} seeds; every {every} meta-updates "
    "the mean accuracy over the tasks seen so far, {tested} test images a task, at the end of that "
    "meta-update's inner loop and after it. The figure is `{figure}`. Mean gap ± standard "
    "deviation over seeds."
)


def inner_loop(loss_fn, state, examples: Examples, mask, options):
    """theta_K: the steps of an update's inner loop, as the recipe has them."""

    def loss(params, chunk):
        return masked_mean(loss_fn(params, state.model_state, *chunk)[0], chunk[1])

    rates = jax.tree.map(jax.nn.relu, state.alpha) if options["inner_relu"] else state.alpha
    step = sgd_step(loss, rates, clip=options["inner_clip"])
    chunks = split((examples, mask), options["inner_steps"] or BATCH)
    return unroll(step, state.params, chunks).params


def traced(learner, loss_fn, options):
    """The learner, its updates also reporting theta_K of their last glance."""

    def update(state, batch, draws):
        glances = ("order", "replay", "replay_mask")
        cut = {name: jax.tree.map(lambda a: a[:-1], getattr(draws, name)) for name in glances}
        # The same glances but the last one: what its inner loop starts from.
        before, _ = learner.update(state, batch, draws._replace(**cut))
        examples = Examples(batch.x, batch.y, batch.task)
        shuffled = jax.tree.map(lambda a: a[draws.order[-1]], (examples, batch.mask))
        fast = inner_loop(loss_fn, before, *shuffled, options)
        state, info = learner.update(state, batch, draws)
        return state, Info(info.loss, {"fast": fast})

    return learner._replace(update=update)


def compile_trace(method, net, stream, stride):
    """``(plan, data, tests, key_init, key_update) -> correct [records, 2, T]``, compiled.

    A record's two rows are theta_K and theta after the update.
    """
    model, spec = net(stream.num_classes), stream.spec(BATCH)
    learner = method.bind(model, spec)
    step = make_step(learner, stream.transform, None)
    recorded = traced(learner, classification_loss(model, spec), method.options)
    recorded = make_step(recorded, stream.transform, None)
    predictor = learner.predictors["logits"]
    correct = correct_fn(Evaluation(), learner.predictors, stream.transform, stream.class_mask)
    allowed = jnp.asarray(
        [allowed_outputs(stream.class_mask, stream.scenario, t, TASKS) for t in range(TASKS)]
    )

    def run(rows, data, tests, key_init, key_update):
        def test(state):
            views, tasks = {"logits": predictor.prepare(state)}, jnp.arange(stream.num_tasks)
            return jax.lax.map(lambda t: correct(views, tests, t, allowed[t]), tasks)

        def plain(state, i_row):
            i, row = i_row
            return step(state, row, data, key_update, i)[0], None

        def block(state, i_rows):
            first, (i, row) = (jax.tree.map(lambda a, s=s: a[s], i_rows) for s in (slice(-1), -1))
            state, _ = jax.lax.scan(plain, state, first)
            state, info, _ = recorded(state, row, data, key_update, i)
            fast = info.metrics["fast"]
            return state, jnp.stack([test(state._replace(params=fast)), test(state)])

        i_rows = (jnp.arange(rows.current.shape[0]), rows)
        blocks = jax.tree.map(lambda a: a.reshape(-1, stride, *a.shape[1:]), i_rows)
        return jax.lax.scan(block, learner.init(key_init), blocks)[1]

    return jax.jit(run, compiler_options=one_core_each())


def curves(method, net, stream, seeds, stride, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean accuracy over the tasks seen so far [seeds, 2, records], and the task of each record."""

    def cut(seed):
        """The first tasks as the seed sees them, and at most so many of their tests."""
        own = first_tasks(of_seed(stream, seed), TASKS)
        short = tuple(index[:TESTED] for index in own.test_index)
        return dataclasses.replace(own, test_index=short)

    run = compile_trace(method, net, cut(seeds[0]), stride)
    identity = [stream.checksum, TASKS, TESTED, stride, net.__name__, dict(method.options)]
    identity = json.dumps(identity, sort_keys=True)

    def measured(seed):
        own = cut(seed)
        rows, data, tests = plan(own, seed, BATCH), train_data(own), test_data(own)
        made = [keys.purpose(seed, name) for name in ("init", "update")]
        correct = run(device_plan(rows), data, tests._replace(counts=None), *made)
        task = rows.current[stride - 1 :: stride]
        seen = np.arange(TASKS) <= task[:, None, None]
        accuracy = (np.asarray(correct) / tests.counts).mean(axis=-1, where=seen).T
        return {"accuracy": accuracy, "task": task}

    def one(seed):
        return recorded(folder / f"seed{seed}.npz", identity, lambda: measured(seed))

    results = over_seeds(one, seeds)
    return np.stack([found["accuracy"] for found in results]), results[0]["task"]


def draw(accuracy: np.ndarray, task: np.ndarray, every: int, path: Path) -> None:
    figure = Figure(figsize=(8.6, 5.6), layout="constrained")
    x = every * np.arange(1, len(task) + 1)
    titles = ("seed 0", f"mean of {len(accuracy)} seeds, band: 95 % interval")
    panels = figure.subplots(2, 1, sharex=True)
    for ax, values, title in zip(panels, (accuracy[:1], accuracy), titles, strict=True):
        named = {META: values[:, 1], INNER: values[:, 0]}
        plot.over_time(named, x, ax, xlabel="", ylabel="Accuracy, tasks seen (%)", title=title)
        for start in x[np.flatnonzero(np.diff(task))]:  # each task's last record
            ax.axvline(start, color="#999999", linewidth=0.8, zorder=0)
        top = min(100, 10 * np.ceil(10 * accuracy.max()) + 5)
        ax.set_ylim(10 * np.floor(10 * accuracy.min()), top)
    panels[0].get_legend().remove()  # the same as the other panel's
    panels[1].legend(loc="lower right", fontsize=8)
    panels[1].set_xlabel("Meta-updates (grey: a new task begins)", fontsize=9)
    plot.save(figure, path)


def table(accuracy: np.ndarray, task: np.ndarray) -> Table:
    """Gap of theta_K to theta after the update, by task, in points."""
    gap = 100 * (accuracy[:, 1] - accuracy[:, 0])  # [seeds, records]
    columns = ["task", "inner, %", "meta, %", "gap, points: mean", "largest",
               "records with a gap above 5 points"]  # fmt: skip
    rows = []
    for t in range(int(task.max()) + 1):
        own = task == t
        inner, meta = (number(100 * accuracy[:, k][:, own].mean(), ".1f") for k in (0, 1))
        row = [t + 1, inner, meta, spread(gap[:, own].mean(axis=1), "std"),
               number(gap[:, own].max(), ".1f"),
               counted(int((gap[:, own] > 5).sum()), gap[:, own].size)]  # fmt: skip
        rows.append(printed(row))
    return Table(columns, rows)


def problem(args: argparse.Namespace):
    """The recipe, and the stream that it runs on."""
    if args.recipe == "mnist":
        recipe = cljax.recipe("lamaml", "mnist-rotations")
        data = {"sample": True, "samples_per_task": 100} if args.smoke else {}
        stream = cljax.streams.MNISTRotations(
            num_tasks=TASKS, data_dir=None if args.smoke else args.data_dir, **data
        ).build()
        return recipe, stream
    recipe = cljax.recipe("lamaml", "cifar100-20x5", "lamaml-table3-single", "reference")
    recipe = reduced(recipe, NET, 100 if args.smoke else SAMPLES)
    options = {**recipe.stream_options, "data_dir": args.data_dir}
    return recipe, cljax.streams.make("cifar100-20x5", **options).build()


def main() -> None:
    args = arguments(
        __doc__, smoke="100 images a task, 2 seeds", recipes=tuple(STRIDE), seeds=5,
        runs="lamaml_trace",
    ).parse_args()  # fmt: skip
    cljax.runtime.keep_freed_memory()
    recipe, stream = problem(args)
    method = cljax.LaMAML(**recipe.method_options)
    stride, seeds = STRIDE[args.recipe], range(2 if args.smoke else args.seeds)
    every, folder = stride * recipe.method_options["glances"], args.runs / args.recipe
    if args.smoke:
        folder = folder.with_name(f"{folder.name}-smoke")
    accuracy, task = curves(method, net_of(recipe.net), stream, seeds, stride, folder)
    gaps = table(accuracy, task)
    out, mnist = folder if args.smoke else RESULTS, args.recipe == "mnist"
    path = out / ("lamaml_trace.md" if mnist else "lamaml_trace_cifar100_cpu_small.md")
    draw(accuracy, task, every, path.with_suffix(".png"))
    if args.smoke:
        return
    about = ABOUT.format(
        tasks=TASKS, size=len(stream.subsets(0)[0]), seeds=len(accuracy), every=every,
        values="the recipe's values" if mnist else f"{recipe.net} and at most 2 glances",
        tested=min(TESTED, len(of_seed(stream, 0).test_index[0])),
        figure=path.with_suffix(".png").name,
    )  # fmt: skip
    title = f"Inner against meta accuracy of La-MAML, {stream.name}"
    command = "python experiments/lamaml_trace.py --data-dir DIR"
    command += "" if mnist else f" --recipe {args.recipe}"
    write(path, Report(title, command, about, [gaps]))


if __name__ == "__main__":
    main()
