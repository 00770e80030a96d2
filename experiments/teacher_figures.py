"""How a learned rule was trained, and what it does: pictures for the multi-task teacher.

Figure 6 of the paper: the lengths of meta-training's episodes, with the curriculum's levels.
Figure 7: a histogram of the multipliers while the rule learns a stream's new tasks. For it the
tasks are learned once more, by the finished rule, counting the multipliers of every update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from common import Table, number

import cljax
from cljax import resolve
from cljax.losses import cross_entropy, head_mask, masked_mean
from cljax.method import Problem
from cljax.plot.parts import PALETTE, tidy
from cljax.recipes import Recipe
from cljax.runner import artefacts
from cljax.streams.base import Stream
from cljax.types import Array, Batch, Info, Model, Spec
from cljax.update_rules import Gate, learned_step, lstm_gate, multipliers
from cljax.update_rules.curriculum import Curriculum, level_at

matplotlib.use("Agg")
import matplotlib.pyplot as plt

__all__ = ["draw_lengths", "draw_multipliers", "keep_lengths", "lengths", "watched"]

_REACH, _BINS = 2.0, 80  # of the histograms; what lies beyond is in the last bins
_STYLES = ("-", "--", "-.", ":")


def keep_lengths(run: cljax.Run) -> None:
    """Writes the lengths of a run's episodes beside its folder, while its states are in memory."""
    if run.states and run.path is not None:
        found = np.stack([np.asarray(state.inner.training.lengths) for state in run.states])
        artefacts.write_arrays(_lengths_of(run.path), {"lengths": found})


def _lengths_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-lengths.npz")  # a run's folder holds its own files


def lengths(folder: Path) -> np.ndarray | None:
    """[S, N] int32 of ended episodes, -1 for those that were not; None if they were not kept."""
    path = _lengths_of(folder)
    return np.load(path, allow_pickle=False)["lengths"] if path.exists() else None


def draw_lengths(
    found: np.ndarray, options: Mapping[str, Any], path: Path, together: int = 20
) -> None:
    """Mean length of ``together`` episodes after another, a line a seed, above tau and S."""
    names = ("threshold", "threshold_step", "threshold_cap", "truncation", "truncation_step",
             "truncation_cap", "level_every", "longest")  # fmt: skip
    curriculum = Curriculum(*(options[name] for name in names))
    together = max(1, min(together, found.shape[1] // 4))
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(6.4, 4.8), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    ended = max(int((own >= 0).sum()) for own in found)
    for i, own in enumerate(found):
        own = own[own >= 0]
        count = len(own) // together
        means = own[: count * together].reshape(count, together).mean(axis=1)
        above.plot(
            (np.arange(count) + 0.5) * together, means, color=PALETTE[i % 8], linewidth=1.3,
            linestyle=_STYLES[i % 4], label=f"seed {i}",
        )  # fmt: skip
    above.set_ylabel(f"inner steps, mean of {together}")
    level = jax.vmap(lambda i: level_at(curriculum, i))(jnp.arange(ended))
    below.plot(level.threshold, color=PALETTE[0], label=r"$\tau$, the loss at which one ends")
    below.plot(level.steps, color=PALETTE[1], linestyle="--", label="S, inner steps of a window")
    below.set(xlabel="episodes", ylabel="curriculum", ylim=(0, None))
    for start in range(curriculum.every, ended, curriculum.every):
        above.axvline(start, color="#BBBBBB", linewidth=0.8, zorder=0)
    tidy(above, "lengths of meta-training's episodes")
    tidy(below, None)
    below.legend(fontsize=8, frameon=False)
    if len(found) > 1:
        above.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


class Counts(NamedTuple):
    """Multipliers of all updates so far, by kind of layer."""

    histogram: dict[str, Array]  # [_BINS] int32
    sums: dict[str, Array]  # [4]: how many, their sum, sum of squares, how many below zero


def watched(
    recipe: Recipe, rule: Path, seeds: Sequence[tuple[int, int]], stream: Stream | None = None
) -> Counts:
    """Counts the multipliers while a finished rule learns the new tasks, over all seeds.

    Args:
      recipe: of teacher, on the stream. rule: a run's folder.
      seeds: pairs of a run's seed and that of its rule.
      stream: instead of the recipe's.
    """
    total = None
    if stream is None:
        stream = resolve.stream(recipe.stream, **recipe.stream_options)
    for seed, of_rule in seeds:
        options = {**recipe.method_options, "rule": str(rule), "rule_seed": of_rule}
        run = cljax.run(
            _Watching(**options), stream, seeds=[seed], net=recipe.net,
            batch_size=recipe.batch_size, epochs=recipe.epochs, entries="diagonal-last",
        )  # fmt: skip
        own = jax.tree.map(lambda a: np.asarray(a, np.float64), run.states[0].inner.training)
        total = own if total is None else jax.tree.map(np.add, total, own)
    assert total is not None
    return total


class _Watching(cljax.Teacher, name="teacher"):
    """A teacher that counts; with a rule at hand its state's ``training`` is free for that."""

    def _gate(self, problem: Problem) -> Gate:
        names = ("hidden", "hidden_norm", "kappa", "norm_unit")
        given = {name: getattr(self, name) for name in names}
        return lstm_gate(problem.model, problem.spec.example, **given)

    def init(self, problem: Problem, key: Array) -> Any:
        kinds = _kinds(self._gate(problem), *problem)
        zeros = Counts(
            {kind: jnp.zeros(_BINS, jnp.int32) for kind in kinds.values()},
            {kind: jnp.zeros(4) for kind in kinds.values()},
        )
        return super().init(problem, key)._replace(training=zeros)

    def update(self, problem: Problem, state: Any, batch: Batch, draws: Any) -> tuple[Any, Info]:
        model, spec = problem
        gate = self._gate(problem)
        kinds = _kinds(gate, model, spec)

        def loss(output: Any, batch: Batch) -> Array:
            losses = cross_entropy(output.logits, batch.y, head_mask(spec, batch.task))
            return masked_mean(losses, batch.mask)

        found, _ = learned_step(gate, state.theta, loss, model, self.lr).gradient(
            state.params, state.carry, batch
        )
        delta, _ = gate.apply(state.theta, state.params, found.grads, found.tape, state.carry)
        counts = state.training
        for name, own in multipliers(gate, delta).items():
            counts = _counted(counts, kinds[name], own.reshape(-1))
        after, info = super().update(problem, state, batch, draws)
        return after._replace(training=counts), info


def _kinds(gate: Gate, model: Model, spec: Spec) -> dict[str, str]:
    """Layer -> what it is counted as: kernels by layer where they are few, scales, shifts."""
    x = jax.ShapeDtypeStruct((1, *spec.example.shape), spec.example.dtype)
    params = jax.eval_shape(lambda key, x: model.init(key, x).params, jax.random.key(0), x)
    names = list(jax.eval_shape(lambda p: multipliers(gate, p), params))
    norms = {"scale": "scales", "bias": "shifts"}
    kernels = [name for name in names if name.rpartition("/")[2] not in norms]
    whole = {name: f"kernel {name}" if len(kernels) < 4 else "kernels" for name in kernels}
    return {name: whole.get(name, norms.get(name.rpartition("/")[2], "")) for name in names}


def _counted(counts: Counts, kind: str, values: Array) -> Counts:
    place = jnp.floor((values + _REACH) * _BINS / (2 * _REACH)).astype(jnp.int32)
    bins = counts.histogram[kind].at[jnp.clip(place, 0, _BINS - 1)].add(1)
    size = jnp.asarray(values.size, values.dtype)
    more = jnp.stack([size, jnp.sum(values), jnp.sum(values**2), jnp.sum(values < 0)])
    return Counts({**counts.histogram, kind: bins}, {**counts.sums, kind: counts.sums[kind] + more})


def draw_multipliers(counts: Counts, path: Path) -> Table:
    """A histogram a kind of layer; a table of mean, deviation and share below 0."""
    kinds = list(counts.histogram)
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(2.9 * len(kinds) + 0.4, 2.8), squeeze=False, layout="constrained"
    )
    edges = np.linspace(-_REACH, _REACH, _BINS + 1)
    rows = []
    for panel, kind in zip(panels[0], kinds, strict=True):
        share = counts.histogram[kind] / max(counts.histogram[kind].sum(), 1)
        panel.bar(edges[:-1], 100 * share, np.diff(edges), align="edge", color=PALETTE[0])
        panel.axvline(0.0, color="#000000", linewidth=0.8)
        panel.axvline(1.0, color=PALETTE[1], linewidth=1.2, linestyle="--")
        panel.set_xlabel("multiplier; dashed: plain sgd")
        tidy(panel, kind)
        size, total, squares, below = counts.sums[kind]
        mean = total / max(size, 1)
        deviation = np.sqrt(max(squares / max(size, 1) - mean**2, 0.0))
        share_below = 100 * below / max(size, 1)
        cells = (number(mean, ".3f"), number(deviation, ".3f"), number(share_below, ".1f"))
        rows.append([kind, *cells])
    panels[0][0].set_ylabel("share (%)")
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return Table(["multipliers of", "mean", "standard deviation", "below zero, %"], rows)
