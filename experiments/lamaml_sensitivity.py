"""La-MAML's Figures 5 and 6 on MNIST rotations: retained accuracy (RA) over learning rates.

    python experiments/lamaml_sensitivity.py
    python experiments/lamaml_sensitivity.py --data-dir DIR --tasks 20 --samples 1000 --seeds 5
    python experiments/lamaml_sensitivity.py --smoke

One rate at a time, 7 values from 0.001 to 0.3, the others as in the recipe, for C-MAML, Sync and
La-MAML; and a 5 x 5 grid of alpha_init and alpha_lr for La-MAML. By default 10 tasks of 200 images
of the sample that cljax ships, RA on its test images: a description, no value is chosen from it.
Rates are traced: a method compiles once, and its lanes (a setting and a seed) run in threads on
CPUs, under one vmap on accelerators. Each method is saved under --runs, where the script goes on.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import (
    RESULTS,
    Report,
    Table,
    arguments,
    number,
    one_core_each,
    over_seeds,
    printed,
    recorded,
    spread,
    write,
)
from matplotlib.figure import Figure

import cljax
from cljax import keys, plot
from cljax.engine.bundles import resolve_lanes
from cljax.engine.programs import device_plan, train_data, whole
from cljax.evaluation.accuracy import Evaluation, correct_fn, test_data
from cljax.streams.base import plan

RATES = {"cmaml": ("alpha_init", "lr"), "sync-lamaml": ("alpha_init", "lr", "alpha_lr"),
         "lamaml": ("alpha_init", "alpha_lr")}  # fmt: skip
NAMES = {"alpha_init": "initial inner rate α₀", "lr": "outer rate β", "alpha_lr": "rate of rates η"}
# Nearly even in the logarithm; with every value of the recipes, and the paper's bounds of eta.
CURVE, GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.15, 0.3), np.geomspace(1e-3, 0.3, 5).tolist()
options_of = lambda method: dict(cljax.recipe(method, "mnist-rotations").method_options)
BATCH, WIDE = 10, 0.003
ABOUT = (
    ": {name}, {tasks} tasks of {samples} images, {seeds} seeds; retained accuracy on the test "
    "images, percent, mean ± standard deviation over seeds. One rate varies, the others are the "
    "recipe's. Spread: largest minus smallest mean. No value is chosen from these numbers. The "
    'paper (Appendix E, CIFAR-100) has "only 6%" between the RA of La-MAML for eta from 0.003 to '
    "0.3; these are other data, and fewer of them than in Table 1. The figures are "
    "`lamaml_sensitivity.png`, with 95 % intervals, and `lamaml_sensitivity_grid.png`."
)


def lane_fn(method: str, stream, traces: list):
    """``(rates, plan, key_init, key_update, data, tests) -> correct [T]``; counts its traces."""
    model, spec = cljax.nets.mlp(100, 100)(stream.num_classes), stream.spec(BATCH)
    allowed, tasks = jnp.ones(stream.num_classes, bool), jnp.arange(stream.num_tasks)

    def lane(rates, rows, key_init, key_update, data, tests):
        traces.append(method)
        learner = cljax.methods.make(method, **{**options_of(method), **rates}).bind(model, spec)
        run, predictor = whole(learner, stream.transform), learner.predictors["logits"]
        state, _ = run(learner.init(key_init), rows, data, key_update)
        views = {"logits": predictor.prepare(state)}
        correct = correct_fn(Evaluation(), learner.predictors, stream.transform, stream.class_mask)
        return jax.lax.map(lambda t: correct(views, tests, t, allowed), tasks)

    return lane


def measure(method: str, stream, settings: Sequence[dict], seeds, policy: str) -> np.ndarray:
    """RA [settings, seeds], by one program compiled once."""
    data, tests = train_data(stream), test_data(stream)
    plans = {seed: device_plan(plan(stream, seed, BATCH)) for seed in seeds}
    lanes = [
        ({name: jnp.float32(value) for name, value in setting.items()}, plans[seed],
         keys.purpose(seed, "init"), keys.purpose(seed, "update"))
        for setting, seed in itertools.product(settings, seeds)
    ]  # fmt: skip
    shared, lane = (data, tests._replace(counts=None)), lane_fn(method, stream, traces := [])
    if policy == "vmap":
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)
        correct = jax.jit(jax.vmap(lane, (0, 0, 0, 0, None, None)))(*stacked, *shared)
    else:
        program = jax.jit(lane, compiler_options=one_core_each())
        correct = np.stack(over_seeds(lambda lane: np.asarray(program(*lane, *shared)), lanes))
    assert len(traces) == 1, f"{method} was traced {len(traces)} times instead of once"
    return (np.asarray(correct) / tests.counts).mean(axis=-1).reshape(len(settings), len(seeds))


def settings_of(method: str, smoke: bool) -> list[tuple[str, dict]]:
    """(figure, setting): ``figure`` is the rate that varies, or ``grid``."""
    fixed = {name: options_of(method)[name] for name in RATES[method]}
    curve, grid = (CURVE[::3], GRID[::4]) if smoke else (CURVE, GRID)
    listed = [(name, {**fixed, name: value}) for name in RATES[method] for value in curve]
    if method == "lamaml":
        listed += [("grid", {"alpha_init": a, "alpha_lr": b}) for a in grid for b in grid]
    return listed


def measured(method: str, stream, seeds, policy: str, smoke: bool, folder: Path) -> dict:
    """``figure -> (settings, RA [settings, seeds])``, read back where it is saved."""
    listed = settings_of(method, smoke)
    figures, settings = zip(*listed, strict=True)
    identity = json.dumps([stream.checksum, list(seeds), listed, options_of(method)])
    compute = lambda: {"RA": measure(method, stream, settings, seeds, policy)}
    accuracy = recorded(folder / f"{method}.npz", identity, compute)["RA"]
    own = {figure: [i for i, f in enumerate(figures) if f == figure] for figure in figures}
    return {figure: ([settings[i] for i in rows], accuracy[rows]) for figure, rows in own.items()}


def draw_curves(results, path: Path) -> None:
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for (method, figures), ax in zip(results.items(), axes, strict=True):
        values = [setting["alpha_init"] for setting in figures["alpha_init"][0]]
        # One colour a rate in all panels: a rate that a method has not is drawn as gaps.
        gaps = (None, np.full((len(values), 1), np.nan))
        named = {name: figures.get(rate, gaps)[1].T for rate, name in NAMES.items()}
        plot.over_time(named, np.log10(values), ax, xlabel="log₁₀ of the rate",
                       ylabel="RA (%)" if method == "cmaml" else "", title=method)  # fmt: skip
        ax.set_ylim(0, 100)
        ax.get_legend().remove()
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    plot.save(figure, path)


def draw_grid(settings, accuracy: np.ndarray, path: Path) -> None:
    side = int(len(settings) ** 0.5)
    values = 100 * accuracy.mean(axis=1).reshape(side, side)
    ax = Figure(figsize=(4.6, 3.8), layout="constrained").add_subplot()
    ax.set_title("lamaml", fontsize=10)
    image = ax.imshow(values, cmap="viridis", origin="lower")
    for (row, column), value in np.ndenumerate(values):
        ink = "black" if image.norm(value) > 0.6 else "white"  # viridis ends in yellow
        ax.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=ink)
    for axis, name in ((ax.xaxis, "alpha_lr"), (ax.yaxis, "alpha_init")):
        axis.set_ticks(range(side), [f"{np.log10(s['alpha_lr']):.2f}" for s in settings[:side]])
        axis.set_label_text(f"log₁₀ of the {NAMES[name]}")
    ax.figure.colorbar(image, ax=ax, label="RA (%)").outline.set_visible(False)
    plot.save(ax, path)


def table(results) -> Table:
    """RA of every setting, and the spread of the means."""
    rates = np.array([setting["alpha_init"] for setting in results["cmaml"]["alpha_init"][0]])
    columns = ["method", "rate", *(f"{rate:g}" for rate in rates), "spread", f"from {WIDE:g} on"]
    rows = []
    for method in results:
        for name in RATES[method]:
            accuracy = 100 * results[method][name][1]
            mean = accuracy.mean(axis=1)
            cells = [spread(row, "std", spec=".1f") for row in accuracy]
            cells += [number(np.ptp(values), ".1f") for values in (mean, mean[rates >= WIDE])]
            rows.append(printed([method, NAMES[name], *cells]))
    return Table(columns, rows)


def main() -> None:
    parser = arguments(
        __doc__, smoke="2 tasks, 2 seeds, 3 values a rate", data_dir=False, seeds=3,
        runs="lamaml_sensitivity",
    )  # fmt: skip
    parser.add_argument("--data-dir", help="the whole MNIST; else the sample")
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--samples", type=int, default=200, help="images a task")
    parser.add_argument("--lanes", choices=("auto", "threads", "vmap"), default="auto")
    if (args := parser.parse_args()).smoke:
        args.data_dir, args.tasks, args.samples, args.seeds = None, 2, 50, 2
    size = {"num_tasks": args.tasks, "samples_per_task": args.samples}
    stream = cljax.streams.MNISTRotations(
        data_dir=args.data_dir, sample=not args.data_dir, **size
    ).build()
    policy, results = resolve_lanes(args.lanes), {}
    for method in RATES:
        began, seeds = time.perf_counter(), range(args.seeds)
        results[method] = measured(method, stream, seeds, policy, args.smoke, args.runs)
        print(f"{method}: {time.perf_counter() - began:.0f} s, lanes: {policy}", flush=True)
    found, out = table(results), args.runs if args.smoke else RESULTS
    draw_curves(results, out / "lamaml_sensitivity.png")
    draw_grid(*results["lamaml"]["grid"], out / "lamaml_sensitivity_grid.png")
    if not args.smoke:
        about = ABOUT.format(name=stream.name, **vars(args))
        command = "python experiments/lamaml_sensitivity.py"
        report = Report("Sensitivity to the learning rates", command, about, [found])
        write(out / "lamaml_sensitivity.md", report)


if __name__ == "__main__":
    main()
