"""La-MAML's Figures 5 and 6 on MNIST rotations: retained accuracy (RA) over learning rates.

    python experiments/lamaml_sensitivity.py
    python experiments/lamaml_sensitivity.py --data-dir DIR --tasks 20 --samples 1000 --seeds 5
    python experiments/lamaml_sensitivity.py --smoke

One rate at a time, 7 values from 0.001 to 0.3, the others as in the recipe, for C-MAML, Sync and
La-MAML; and a 5 x 5 grid of alpha_init and alpha_lr for La-MAML. By default 10 tasks of 200 images
of the sample that cljax ships, RA on its test images: a description, no value is chosen from it.
The grid is one program: rates are traced, so that a method compiles once, and its lanes (a setting
and a seed) run in threads on CPUs and under one vmap on accelerators. Each method's RA is saved
under --runs, so the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import cljax
from cljax import keys, plot
from cljax.evaluate import correct_fn, test_data
from cljax.learn import resolve_lanes
from cljax.segments import device_plan, train_data, whole
from cljax.streams.base import plan

RATES = {
    "cmaml": ("alpha_init", "lr"),
    "sync-lamaml": ("alpha_init", "lr", "alpha_lr"),
    "lamaml": ("alpha_init", "alpha_lr"),
}
NAMES = {"alpha_init": "initial inner rate α₀", "lr": "outer rate β", "alpha_lr": "rate of rates η"}
# Nearly even in the logarithm; with every value of the recipes, and the paper's bounds of eta.
CURVE, GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.15, 0.3), np.geomspace(1e-3, 0.3, 5)
BATCH, WIDE, OUT = 10, 0.003, Path("experiments/results")
TITLE = """# Sensitivity to the learning rates

Made by `python experiments/lamaml_sensitivity.py`: {name}, {tasks} tasks of {samples} images,
{seeds} seeds; retained accuracy on the test images, percent, mean ± standard deviation over seeds.
One rate varies, the others are the recipe's. Spread: largest minus smallest mean. No value is
chosen from these numbers. Figures: `lamaml_sensitivity.png`, `lamaml_sensitivity_grid.png`.

"""
NOTES = """
The paper (Appendix E, CIFAR-100, one rate at a time): the RA of La-MAML differs by "only 6%" for
eta from 0.003 to 0.3. Other data, and this is a shorter stream than Table 1's.
"""


class Traced:
    """One method as one compiled program, and how often it was traced."""

    def __init__(self, method: str, stream, lanes: str):
        self.count, self.lanes = 0, lanes
        self.options = cljax.recipe(method, "mnist-rotations").method_options
        self.data, tests = train_data(stream), test_data(stream)
        self.counts, self.tests = tests.counts, tests._replace(counts=None)
        model, spec = cljax.nets.mlp(100, 100)(stream.num_classes), stream.spec(BATCH)
        factory = getattr(cljax, method.replace("-", "_"))
        allowed, tasks = jnp.ones(stream.num_classes, bool), jnp.arange(stream.num_tasks)

        def lane(rates, rows, key_init, key_update, data, tests):
            self.count += 1
            learner = factory(**{**self.options, **rates}).bind(model, spec)
            state = learner.init(key_init)
            state, _ = whole(learner, stream.transform)(state, rows, data, key_update)
            predictor = learner.predictors["logits"]
            view, correct = predictor.prepare(state), correct_fn(predictor, stream.transform)
            return jax.lax.map(lambda t: correct(view, tests, t, allowed), tasks)

        fn = jax.vmap(lane, (0, 0, 0, 0, None, None)) if lanes == "vmap" else lane
        # Lanes run in threads, one core each: XLA's own threads would only get in their way.
        alone = jax.default_backend() == "cpu" and lanes != "vmap"
        options = {"xla_cpu_multi_thread_eigen": False} if alone else None
        self.fn = jax.jit(fn, compiler_options=options)

    def measure(self, stream, settings: list[dict], seeds) -> np.ndarray:
        """RA [settings, seeds]."""
        plans = {seed: device_plan(plan(stream, seed, BATCH)) for seed in seeds}
        lanes = [
            ({name: jnp.float32(value) for name, value in setting.items()}, plans[seed],
             keys.purpose(seed, "init"), keys.purpose(seed, "update"))
            for setting, seed in itertools.product(settings, seeds)
        ]  # fmt: skip
        if self.lanes == "vmap":
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)
            correct = np.asarray(self.fn(*stacked, self.data, self.tests))
        else:
            one = lambda lane: np.asarray(self.fn(*lane, self.data, self.tests))
            first = one(lanes[0])  # compiles
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                correct = np.stack([first, *pool.map(one, lanes[1:])])
        assert self.count == 1, f"traced {self.count} times; every setting must share one program"
        return (correct / self.counts).mean(axis=-1).reshape(len(settings), len(seeds))


def settings_of(method: str, smoke: bool) -> list[tuple[str, dict]]:
    """(figure, setting): ``figure`` is the rate that varies, or ``grid``."""
    options = cljax.recipe(method, "mnist-rotations").method_options
    fixed = {name: options[name] for name in RATES[method]}
    values = CURVE[::3] if smoke else CURVE
    listed = [(name, {**fixed, name: float(v)}) for name in RATES[method] for v in values]
    if method == "lamaml":
        pairs = itertools.product(GRID[::4] if smoke else GRID, repeat=2)
        listed += [("grid", {"alpha_init": float(a), "alpha_lr": float(b)}) for a, b in pairs]
    return listed


def measured(method: str, stream, seeds, lanes: str, smoke: bool, folder: Path):
    """``figure -> (settings, RA [settings, seeds])``, read back where it is saved."""
    listed = settings_of(method, smoke)
    identity = json.dumps([stream.checksum, list(seeds), listed], sort_keys=True)
    path = folder / f"{method}.npz"
    if path.exists() and (saved := dict(np.load(path)))["identity"] == identity:
        accuracy = saved["RA"]
    else:
        traced = Traced(method, stream, lanes)
        accuracy = traced.measure(stream, [setting for _, setting in listed], seeds)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, identity=identity, RA=accuracy)
    figures = {}
    for (figure, setting), row in zip(listed, accuracy, strict=True):
        figures.setdefault(figure, ([], []))[0].append(setting)
        figures[figure][1].append(row)
    return {figure: (s, np.stack(rows)) for figure, (s, rows) in figures.items()}


def new_figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_curves(results, path: Path) -> None:
    figure = new_figure(9.6, 3.6)
    for ax, (method, figures) in zip(figure.subplots(1, 3, sharey=True), results.items(),
                                     strict=True):  # fmt: skip
        curves = {NAMES[rate]: figures[rate][1].T for rate in NAMES if rate in figures}
        values = [[s[rate] for s in figures[rate][0]] for rate in RATES[method]]
        # One colour a rate in all panels: rates that a method has not are drawn as gaps.
        named = {name: curves.get(name, np.full(len(values[0]), np.nan)) for name in NAMES.values()}
        plot.over_time(named, np.log10(values[0]), ax, xlabel="log₁₀ of the rate",
                       ylabel="RA (%)" if method == "cmaml" else "", title=method)  # fmt: skip
        ax.set_ylim(0, 100)
        ax.get_legend().remove()
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    plot.save(figure, path)


def draw_grid(settings, accuracy: np.ndarray, path: Path) -> None:
    side = int(len(settings) ** 0.5)
    values = 100 * accuracy.mean(axis=1).reshape(side, side)
    figure = new_figure(4.6, 3.8)
    ax = figure.add_subplot()
    image = ax.imshow(values, cmap="viridis", origin="lower")
    for (row, column), value in np.ndenumerate(values):
        light = image.norm(value) > 0.6  # viridis ends in yellow
        ax.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8,
                color="black" if light else "white")  # fmt: skip
    ticks = [f"{np.log10(s['alpha_lr']):.2f}" for s in settings[:side]]
    ax.set_xticks(range(side), ticks)
    ax.set_yticks(range(side), ticks)
    ax.set_xlabel(f"log₁₀ of the {NAMES['alpha_lr']}")
    ax.set_ylabel(f"log₁₀ of the {NAMES['alpha_init']}")
    ax.set_title("La-MAML", fontsize=10)
    figure.colorbar(image, ax=ax, label="RA (%)").outline.set_visible(False)
    plot.save(figure, path)


def table(results) -> list[str]:
    """RA of every setting, mean ± standard deviation over seeds, and the spread of the means."""
    rates = [setting["alpha_init"] for setting in results["cmaml"]["alpha_init"][0]]
    lines = [
        "| method | rate | " + " | ".join(f"{rate:g}" for rate in rates)
        + f" | spread | spread from {WIDE:g} |", "| --- " * (len(rates) + 4) + "|",
    ]  # fmt: skip
    for method, figures in results.items():
        for name in RATES[method]:
            accuracy = 100 * figures[name][1]
            mean, std = accuracy.mean(axis=1), accuracy.std(axis=1, ddof=1)
            cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(mean, std, strict=True)]
            wide = mean[np.array(rates) >= WIDE]
            cells += [f"{np.ptp(mean):.1f}", f"{np.ptp(wide):.1f}"]
            lines.append(f"| {method} | {NAMES[name]} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", help="the whole MNIST; else the sample")
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--samples", type=int, default=200, help="images a task")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lanes", choices=("auto", "threads", "vmap"), default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs/lamaml_sensitivity"))
    parser.add_argument("--smoke", action="store_true", help="2 tasks, 2 seeds, 3 values a rate")
    args = parser.parse_args()
    if args.smoke:
        args.data_dir, args.tasks, args.samples, args.seeds = None, 2, 50, 2
    source = {"data_dir": args.data_dir} if args.data_dir else {"sample": True}
    stream = cljax.streams.mnist_rotations(
        num_tasks=args.tasks, samples_per_task=args.samples, **source
    )
    lanes, results = resolve_lanes(args.lanes), {}
    for method in RATES:
        began = time.perf_counter()
        results[method] = measured(method, stream, range(args.seeds), lanes, args.smoke, args.runs)
        print(f"{method}: {time.perf_counter() - began:.0f} s, lanes: {lanes}", flush=True)
    lines, out = table(results), args.runs if args.smoke else OUT
    print("\n".join(lines))
    draw_curves(results, out / "lamaml_sensitivity.png")
    draw_grid(*results["lamaml"]["grid"], out / "lamaml_sensitivity_grid.png")
    if not args.smoke:
        title = TITLE.format(name=stream.name, **vars(args))
        path = out / "lamaml_sensitivity.md"
        path.write_text(title + "\n".join(lines) + "\n" + NOTES)


if __name__ == "__main__":
    main()
