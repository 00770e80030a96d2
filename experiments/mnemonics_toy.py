"""Exemplars that were learned against chosen ones, on digits, with what they look like.

    python experiments/mnemonics_toy.py --data-dir DIR
    python experiments/mnemonics_toy.py --smoke

LUCIR's recipe ``toy`` on mnist-b5-5 (five digits, then one at a time; five exemplars a class),
fine-tuned on the exemplars after each task. For each policy: the average incremental accuracy, the
validation loss of a network trained from fresh weights on the final exemplars alone, and how far
they moved. Pictures of one seed: exemplars before and after, exemplars among the data in feature
space, the validation loss over the outer steps. The table goes to
experiments/results/mnemonics_toy.md, the pictures beside it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from common import Report, Table, arguments, number, printed, spread, write

import cljax
from cljax import geometry, plot, resolve
from cljax.losses import cross_entropy, masked_mean
from cljax.memory.learned import change
from cljax.types import Features, Variables

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Step sizes and inner loops of the learned ones were chosen on validation images, two seeds.
_SHARED = "outputs=all,validation=all,old=false,normalise=true,outer_epochs=2,inner_images=5"
_FRESH = f"{_SHARED},inner_start=fresh,inner_steps=20,inner_lr=0.2,lr=0.0001"
FRESH = "learned from fresh networks, herded at first"
POLICIES = {
    "random": "random",
    "herding": "herding",
    "learned from the trained network": (
        f"mnemonics:{_SHARED},inner_steps=5,inner_lr=0.5,lr=0.00001"
    ),
    "learned from fresh networks": f"mnemonics:{_FRESH}",
    FRESH: f"mnemonics:start=herding,{_FRESH}",
}
BALANCED = {"balanced_epochs": 10, "balanced_lr": 0.01}
STEPS, RATE = 300, 0.1  # of the network trained on exemplars alone


def alone(stream, kept, seed: int) -> tuple[float, float]:
    """Loss and accuracy on validation images of a network trained on the exemplars alone."""
    spec, model = stream.spec(64), resolve.net("mlp:100")(10)
    shown = spec.show(kept.x, kept.task)
    params = model.init(jax.random.key(10_000 + seed), shown).params

    def loss(params, x, y, mask):
        logits = model.apply(Variables(params, {}), x, False)[0].logits
        return masked_mean(cross_entropy(logits, y), mask), jnp.mean(jnp.argmax(logits, 1) == y)

    @jax.jit
    def fitted(params):
        slope = jax.grad(lambda p: loss(p, shown, kept.y, kept.mask)[0])
        step = lambda i, p: jax.tree.map(lambda a, g: a - RATE * g, p, slope(p))
        return jax.lax.fori_loop(0, STEPS, step, params)

    rows = np.concatenate(stream.valid(seed))
    x = spec.show(jnp.asarray(stream.train_x[rows]), jnp.zeros(len(rows), jnp.int32))
    y = jnp.asarray(stream.train_y[rows])
    value, right = jax.jit(loss)(fitted(params), x, y, jnp.ones(len(rows), bool))
    return float(value), float(right)


def features(stream, state, x) -> jax.Array:
    model = resolve.net("mlp:100:cosine")(10)
    variables = Variables(state.params, state.model_state)
    shown = stream.spec(64).show(jnp.asarray(x), jnp.zeros(len(x), jnp.int32))
    return jax.jit(lambda v, x: model.apply(v, x, False)[0].features)(variables, shown)


def pictures(stream, states: dict[str, Any], losses, out: Path) -> None:
    kept = states[FRESH].exemplars
    figure, axis = plt.subplots(figsize=(7, 14))
    plot.exemplar_grid(
        np.asarray(kept.x), np.asarray(kept.y), mask=np.asarray(kept.mask),
        before=np.asarray(kept.chosen), ax=axis,
    )  # fmt: skip
    figure.savefig(out.with_name(f"{out.stem}_exemplars.png"), dpi=110, bbox_inches="tight")
    figure, axes = plt.subplots(1, len(states), figsize=(5 * len(states), 5))
    rng = np.random.default_rng(0)
    rows = np.concatenate(stream.valid(0))
    rows = rng.permutation(rows)[:600]
    rows = rows[stream.train_y[rows] < 5]
    for axis, (name, state) in zip(axes, states.items(), strict=True):
        kept = state.exemplars
        few = np.asarray(kept.mask) & (np.asarray(kept.y) < 5)
        plot.tsne(
            Features(features(stream, state, stream.train_x[rows]), stream.train_y[rows]),
            Features(features(stream, state, np.asarray(kept.x)[few]), np.asarray(kept.y)[few]),
            ax=axis,
        )
        axis.set_title(name)
        if axis is not axes[-1] and axis.get_legend() is not None:
            axis.get_legend().remove()
    figure.savefig(out.with_name(f"{out.stem}_tsne.png"), dpi=110, bbox_inches="tight")
    figure, axis = plt.subplots(figsize=(7, 4))
    plot.outer_loss(losses, ax=axis, window=50)
    figure.savefig(out.with_name(f"{out.stem}_loss.png"), dpi=110, bbox_inches="tight")
    plt.close("all")


def shape(stream, state, seed: int) -> tuple[float, float]:
    """Mean boundary ratio of the exemplars, and their silhouette, in feature space."""
    kept, rows = state.exemplars, np.concatenate(stream.valid(seed))
    data = features(stream, state, stream.train_x[rows])
    means = geometry.centroids(data, jnp.asarray(stream.train_y[rows]), num_classes=10)
    own = features(stream, state, np.asarray(kept.x))
    ratio = geometry.boundary_ratio(own, kept.y, means, mask=kept.mask)
    spread = geometry.silhouette(own, kept.y, num_classes=10, mask=kept.mask)
    return float(jnp.nanmean(ratio)), float(spread.mean)


def row_of(name: str, run: cljax.Run, stream, seconds: float) -> Sequence[Any]:
    found = [alone(stream, state.exemplars, i) for i, state in enumerate(run.states)]
    shapes = [shape(stream, state, i) for i, state in enumerate(run.states)]
    gaps = [0.0]
    if "chosen" in run.states[0].exemplars._fields:
        gaps = [float(change(state.exemplars)[0].mean()) for state in run.states]
    ratios, silhouettes = zip(*shapes, strict=True)
    losses, right = zip(*found, strict=True)
    return printed([
        name, spread(run.metric("AIA"), scale=100), spread(run.metric("F"), scale=100),
        spread(losses), spread(right, scale=100), number(np.mean(gaps), ".1f"),
        number(np.mean(ratios)), number(np.mean(silhouettes)), number(seconds, ".0f"),
    ])  # fmt: skip


def main() -> None:
    args = arguments(
        __doc__, smoke="the sample, 1 epoch, 1 seed", seeds=5, out="mnemonics_toy.md"
    ).parse_args()
    cljax.runtime.keep_freed_memory()
    if args.smoke:
        args.seeds, args.data_dir = 1, None

    stream = cljax.streams.IncrementalMNIST(data_dir=args.data_dir, sample=args.smoke).build()
    recipe = cljax.recipe("lucir", "mnist-b5-5", "mnemonics-toy", "toy")
    rows, finals = [], {}
    for name, policy in POLICIES.items():
        if args.smoke:
            policy = policy.replace("outer_epochs=2", "outer_epochs=1")
        began = time.perf_counter()
        method = cljax.LUCIR(**{**recipe.method_options, **BALANCED, "exemplars": policy})
        run = cljax.run(
            method, stream, seeds=args.seeds, net=recipe.net, batch_size=recipe.batch_size,
            epochs=1 if args.smoke else recipe.epochs,
        )  # fmt: skip
        finals[name] = run.states[0]
        rows.append(row_of(name, run, stream, time.perf_counter() - began))
    if args.smoke:
        return
    losses = {}
    for name, policy in list(POLICIES.items())[2:]:
        losses[name] = _losses(stream, recipe, policy)
    pictures(stream, finals, losses, args.out)
    write(args.out, report(args, recipe.net, rows))


def report(args: argparse.Namespace, net: str, rows: Sequence[Sequence[Any]]) -> Report:
    about = (
        f": mnist-b5-5, LUCIR, {net}, 5 exemplars a class, {args.seeds} seeds, with 95 % "
        "t-intervals; AIA, F and accuracies in percent. Alone: loss in nats and accuracy on "
        "validation images of a network trained from fresh weights on the final exemplars alone "
        f"({STEPS} steps of {RATE}). Change: mean absolute change since they were chosen, in grey "
        "levels."
    )
    columns = ["exemplars", "AIA", "F", "loss alone", "accuracy alone", "change", "boundary ratio",
               "silhouette", "seconds, all seeds"]  # fmt: skip
    parts = [
        *(f"- {name}: `{policy}`" for name, policy in POLICIES.items()), "",
        Table(columns, rows), "",
        f"![exemplars before and after]({args.out.stem}_exemplars.png)",
        f"![exemplars among the data]({args.out.stem}_tsne.png)",
        f"![validation loss]({args.out.stem}_loss.png)",
    ]  # fmt: skip
    command = "python experiments/mnemonics_toy.py --data-dir DIR"
    return Report("Learned exemplars on digits", command, about, parts)


def _losses(stream, recipe, policy: str) -> np.ndarray:
    """Validation loss of the first task's outer steps, one seed."""
    from cljax.engine.learn import learn

    method = cljax.LUCIR(**{**recipe.method_options, "exemplars": policy})
    first = cljax.streams.base.first_tasks(stream, 1)
    history = learn(
        method, resolve.net(recipe.net)(10), first, [0],
        cljax.engine.options.Training(batch_size=recipe.batch_size, epochs=recipe.epochs),
    )  # fmt: skip
    return history.phase_losses["mnemonics"][0][0]


if __name__ == "__main__":
    main()
