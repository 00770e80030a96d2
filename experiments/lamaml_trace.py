"""La-MAML's Figure 3 on MNIST rotations: accuracy inside and after the meta-update.

    python experiments/lamaml_trace.py --data-dir DIR
    python experiments/lamaml_trace.py --smoke

Every 25 meta-updates (5 batches of 5 glances), over the first 5 tasks: the mean accuracy over the
tasks seen so far, on 1000 test images a task, at two points of that meta-update: at theta_K, where
its inner loop ends, and at theta after it. The paper draws both over CIFAR-100 and sees dips of the
first that vanish later. Each seed is saved under --runs, so the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import cljax
from cljax import keys, plot
from cljax.evaluate import Evaluation, correct_fn, test_data
from cljax.losses import classification_loss
from cljax.segments import batch_of, device_plan, make_step, train_data
from cljax.streams.base import plan
from cljax.types import Examples

BATCH, EVERY, TESTED = 10, 25, 1000
INNER, META = "end of the inner loop", "after the meta-update"
RESULTS = Path("experiments/results")
TITLE = """# Inner against meta accuracy of La-MAML

Made by `python experiments/lamaml_trace.py --data-dir DIR`: mnist-rotations, first 5 tasks of 1000
images, the recipe's values, {seeds} seeds; every 25 meta-updates the mean accuracy over the tasks
seen so far, 1000 test images a task, at the end of that meta-update's inner loop and after it.
The figure is `lamaml_trace.png`. Mean gap ± standard deviation over seeds.

"""


def inner_loop(loss_fn, params, alpha, model_state, examples: Examples):
    """theta_K: steps on one example each, with relu(alpha) as rates, as the recipe's are."""

    def step(params, example):
        one = jax.tree.map(lambda a: a[None], example)
        grads = jax.grad(lambda p: loss_fn(p, model_state, one)[0].sum())(params)
        return jax.tree.map(lambda p, a, g: p - jax.nn.relu(a) * g, params, alpha, grads), None

    return jax.lax.scan(step, params, examples)[0]


def traced_update(learner, loss_fn):
    """``(state, batch, draws) -> (state, theta_K)``, theta_K of the update's last glance."""

    def update(state, batch, draws):
        glances = ("order", "replay", "replay_mask")
        cut = {name: jax.tree.map(lambda a: a[:-1], getattr(draws, name)) for name in glances}
        # The same glances but the last one: what its inner loop starts from.
        before, _ = learner.update(state, batch, draws._replace(**cut))
        examples = Examples(batch.x, batch.y, batch.task)
        shuffled = jax.tree.map(lambda a: a[draws.order[-1]], examples)
        fast = inner_loop(loss_fn, before.params, before.alpha, state.model_state, shuffled)
        return learner.update(state, batch, draws)[0], fast

    return update


def compile_trace(options, stream):
    """``(plan, data, tests, key_init, key_update) -> correct [records, 2, T]``, compiled.

    A record's two rows are theta_K and theta after the update.
    """
    model, spec = cljax.nets.mlp(100, 100)(stream.num_classes), stream.spec(BATCH)
    learner = cljax.lamaml(**options).bind(model, spec)
    step = make_step(learner, stream.transform, None)
    traced = traced_update(learner, classification_loss(model, spec))
    predictor = learner.predictors["logits"]
    correct = correct_fn(Evaluation(), learner.predictors, stream.transform, stream.class_mask)
    allowed, stride = jnp.ones(stream.num_classes, bool), EVERY // options["glances"]

    def run(rows, data, tests, key_init, key_update):
        def test(state):
            views, tasks = {"logits": predictor.prepare(state)}, jnp.arange(stream.num_tasks)
            return jax.lax.map(lambda t: correct(views, tests, t, allowed), tasks)

        def plain(state, i_row):
            i, row = i_row
            return step(state, row, data, key_update, i)[0], None

        def block(state, i_rows):
            first, (i, row) = (jax.tree.map(lambda a, s=s: a[s], i_rows) for s in (slice(-1), -1))
            state, _ = jax.lax.scan(plain, state, first)
            batch = batch_of(state, row, data, stream.transform, i)
            draws = learner.draw(state, batch, jax.random.fold_in(key_update, i))
            state, fast = traced(state, batch, draws)
            return state, jnp.stack([test(state._replace(params=fast)), test(state)])

        i_rows = (jnp.arange(rows.current.shape[0]), rows)
        blocks = jax.tree.map(lambda a: a.reshape(-1, stride, *a.shape[1:]), i_rows)
        return jax.lax.scan(block, learner.init(key_init), blocks)[1]

    # Seeds run in threads, one core each: XLA's own threads would only get in their way.
    xla = {"xla_cpu_multi_thread_eigen": False} if jax.default_backend() == "cpu" else None
    return jax.jit(run, compiler_options=xla), stride


def curves(options, stream, seeds, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean accuracy over the tasks seen so far [seeds, 2, records], and the task of each record."""
    run, stride = compile_trace(options, stream)
    data, tests = train_data(stream), test_data(stream)
    identity = json.dumps([stream.checksum, TESTED, dict(options)], sort_keys=True)

    def one(seed):
        path = folder / f"seed{seed}.npz"
        if path.exists() and (saved := dict(np.load(path)))["identity"] == identity:
            return saved["accuracy"], saved["task"]
        rows = plan(stream, seed, BATCH)
        made = [keys.purpose(seed, name) for name in ("init", "update")]
        correct = run(device_plan(rows), data, tests._replace(counts=None), *made)
        task = rows.current[stride - 1 :: stride]
        seen = np.arange(stream.num_tasks) <= task[:, None, None]
        accuracy = (np.asarray(correct) / tests.counts).mean(axis=-1, where=seen).T
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, identity=identity, accuracy=accuracy, task=task)
        return accuracy, task

    first = one(seeds[0])  # compiles
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = [first, *pool.map(one, seeds[1:])]
    return np.stack([accuracy for accuracy, _ in results]), first[1]


def draw(accuracy: np.ndarray, task: np.ndarray, path: Path) -> None:
    figure = Figure(figsize=(8.6, 5.6), layout="constrained")
    x = EVERY * np.arange(1, len(task) + 1)
    titles = ("seed 0", f"mean of {len(accuracy)} seeds, band: 95 % interval")
    panels = figure.subplots(2, 1, sharex=True)
    for ax, values, title in zip(panels, (accuracy[:1], accuracy), titles, strict=True):
        named = {META: values[:, 1], INNER: values[:, 0]}
        plot.over_time(named, x, ax, xlabel="", ylabel="Accuracy, tasks seen (%)", title=title)
        for start in x[np.flatnonzero(np.diff(task))]:  # each task's last record
            ax.axvline(start, color="#999999", linewidth=0.8, zorder=0)
        ax.set_ylim(10 * np.floor(10 * accuracy.min()), 100)
    panels[0].get_legend().remove()  # the same as the other panel's
    panels[1].legend(loc="lower right", fontsize=8)
    panels[1].set_xlabel("Meta-updates (grey: a new task begins)", fontsize=9)
    plot.save(figure, path)


def table(accuracy: np.ndarray, task: np.ndarray) -> list[str]:
    """Gap of theta_K to theta after the update, by task, in points."""
    gap = 100 * (accuracy[:, 1] - accuracy[:, 0])  # [seeds, records]
    lines = ["| task | inner, % | meta, % | gap, points: mean | largest | "
             "records with a gap above 5 points |", "| --- " * 6 + "|"]  # fmt: skip
    for t in range(int(task.max()) + 1):
        own = task == t
        inner, meta = (100 * accuracy[:, k][:, own].mean() for k in (0, 1))
        means = gap[:, own].mean(axis=1)
        std = f" ± {means.std(ddof=1):.2f}" if len(means) > 1 else ""
        large = f"{int((gap[:, own] > 5).sum())} of {gap[:, own].size}"
        cells = (t + 1, f"{inner:.1f}", f"{meta:.1f}", f"{means.mean():.2f}{std}",
                 f"{gap[:, own].max():.1f}", large)  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", default=os.environ.get("CLJAX_DATA_DIR"))
    parser.add_argument("--runs", type=Path, default=Path("runs/lamaml_trace"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="2 tasks of the sample, 2 seeds")
    args = parser.parse_args()
    small = {"sample": True, "num_tasks": 2, "samples_per_task": 200}
    data = small if args.smoke else {"data_dir": args.data_dir, "num_tasks": 5}
    stream = cljax.streams.mnist_rotations(**data)
    short = tuple(index[:TESTED] for index in stream.test_index)
    stream = dataclasses.replace(stream, test_index=short)
    options = cljax.recipe("lamaml", "mnist-rotations").method_options
    accuracy, task = curves(options, stream, range(2 if args.smoke else args.seeds), args.runs)
    lines = "\n".join(table(accuracy, task))
    print(lines)
    out = args.runs if args.smoke else RESULTS
    draw(accuracy, task, out / "lamaml_trace.png")
    if not args.smoke:
        path, text = out / "lamaml_trace.md", TITLE.format(seeds=len(accuracy)) + lines
        old = path.read_text() if path.exists() else ""
        _, mark, reading = old.partition("\n## Reading")  # kept
        path.write_text(text + "\n" + mark + reading)


if __name__ == "__main__":
    main()
