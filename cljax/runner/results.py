"""The contract's ``results.json``, from what runs leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax import keys, metrics, stats, tree
from cljax.engine.learn import History
from cljax.method import Method, with_features
from cljax.objectives import name_of
from cljax.streams.base import Stream
from cljax.types import Learner, Model, Spec

__all__ = ["flops", "results_of"]


def results_of(
    config: Mapping[str, Any], method: Method, model: Model, stream: Stream, history: History
) -> dict[str, Any]:
    """The contract's ``results.json``, less its times."""
    spec = stream.spec(config["batch_size"])
    score = name_of(stream.objective.score)
    predictors = with_features(method.bind(model, spec), model).predictors
    evaluations, headline, absent = {}, {}, {}
    alive = np.array([result is None for result in history.diverged])
    lost = None if alive.any() else _lost(history)
    without = dict(config.get("unmeasured", {}))
    if lost is not None:
        without = dict.fromkeys(metrics.NAMES, lost)
    for i, entry in enumerate(config["evaluations"]):
        name, matrix = entry["name"], history.evaluations[entry["name"]]
        chosen = matrix if lost else matrix[alive]
        computed = metrics.compute(chosen, history.test_counts, without)
        values = {metric: _spread(v, alive) for metric, v in computed.values.items()}
        evaluations[name] = {
            "predictor": entry["predictor"],
            "scenario": entry["scenario"],
            "task_ids": entry["continuum"] is None
            and (predictors[entry["predictor"]].needs_task_ids or entry["scenario"] == "task"),
            "continuum": entry["continuum"],
            "accuracy_matrix": _nullable(matrix),
            "test_counts": history.test_counts.tolist(),
            "metrics": values,
            "absent": dict(computed.absent),
        }
        if "readout" in entry:
            evaluations[name]["readout"] = entry["readout"]
        if i == 0:
            headline, absent = dict(values), dict(computed.absent)
        else:  # the headline's own stands at the top
            evaluations[name]["anytime"] = _curves(history.anytime[name])
    curves = next(iter(history.anytime.values()))
    online = metrics.Metrics({}, without)
    if lost is None:
        online = metrics.compute_online(
            None if history.online_correct is None else history.online_correct[alive],
            history.batch_sizes if history.online_sizes is None else history.online_sizes,
            [_accuracies(p) for p, ok in zip(curves, alive, strict=True) if ok],
        )
    headline |= {name: _spread(value, alive) for name, value in online.values.items()}
    absent |= dict(online.absent)
    absent |= without
    headline = {name: value for name, value in headline.items() if name not in without}
    for entry in config["evaluations"]:
        if entry["metric"]:
            matrix, names = history.evaluations[entry["name"]], _session_names(entry["metric"])
            result = _by_session(entry["metric"], matrix, history.test_counts, alive)
            headline |= result
            absent |= {name: lost or why for name, why in names.items() if name not in result}
    first = next(iter(history.evaluations.values()))
    return {
        "method": method.name,
        "stream": stream.name,
        **({} if score == "accuracy" else {"score": score}),
        "seeds": list(history.seeds),
        "config_hash": config["config_hash"],
        "data": {"source": stream.source, "checksum": stream.checksum, "licence": stream.licence},
        "device": config["device"],
        "versions": config["versions"],
        "commit": config["commit"],  # the command stands in config.json: it may differ
        "metrics": headline,
        "absent": absent,
        "evaluations": evaluations,
        "accuracy_matrix": _nullable(first[:, 1:]),
        "anytime": _curves(curves),
        "confusion": _confusion(history),
        "diverged": [result and result.step for result in history.diverged],
        "divergence": [result and result._asdict() for result in history.diverged],
        "cost": _cost(method, model, spec, history),
    }


def _confusion(history: History) -> list[Any] | None:
    """For each seed, its tests after the last task by class and predicted class; null: diverged.

    None where they were not counted.
    """
    last = next(iter(history.evaluations.values())).shape[1] - 1
    counts = [rows.get(last) for rows in history.confusion]
    if all(own is None for own in counts):
        return None
    return [None if own is None else own.tolist() for own in counts]


def _lost(history: History) -> str:
    """Why a run whose seeds all diverged has no numbers."""
    where = [
        f"seed {seed} at update {result.step}"
        for seed, result in zip(history.seeds, history.diverged, strict=True)
        if result is not None
    ]
    more = ", ..." if len(where) > 3 else ""
    count = "the only seed" if len(where) == 1 else f"all {len(where)} seeds"
    return f"{count} diverged ({', '.join(where[:3])}{more}); try smaller rates"


def _spread(values: np.ndarray, alive: np.ndarray) -> dict[str, Any]:
    """A metric over seeds; seeds that diverged are null and count in no mean."""
    summary, finite = stats.summary(values), iter(np.atleast_1d(values).tolist())
    return {
        "mean": summary.mean,
        "std": summary.std,
        "ci95": None if summary.ci95 is None else list(summary.ci95),
        "values": [next(finite) if ok else None for ok in alive],
    }


def _by_session(
    name: str, matrix: np.ndarray, counts: np.ndarray, alive: np.ndarray
) -> dict[str, Any]:
    """Accuracy on all test data seen: after the last task, and after each of them."""
    result = {}
    if not alive.any():
        return result
    seen = metrics.seen_accuracy(matrix[alive], counts)  # [S, T]
    if not np.isnan(seen[:, -1]).any():
        result[name] = _spread(seen[:, -1], alive)
    if not np.isnan(seen).any():
        each = [_spread(column, alive) for column in seen.T]
        result[f"{name}_by_session"] = {
            part: [session[part] for session in each] for part in ("mean", "std", "ci95")
        } | {"values": np.array([session["values"] for session in each], object).T.tolist()}
    return result


def _session_names(name: str) -> dict[str, str]:
    """What ``_by_session`` may make, and why it would not."""
    needs = "needs the accuracies after {} of a seed that did not diverge."
    return {
        name: needs.format("the last task"),
        f"{name}_by_session": needs.format("each task") + " Evaluate with entries='lower'.",
    }


def _cost(method: Method, model: Model, spec: Spec, history: History) -> dict[str, Any]:
    """Work and state of one seed's run; null where the method does not say."""
    learner, state = method.bind(model, spec), history.states[0]
    updates, gradients = len(history.batch_sizes), learner.gradients_per_update
    return {
        "gradient_evaluations": None if gradients is None else gradients * updates,
        "examples": int(history.batch_sizes.sum()),
        "flops_analytic": flops(learner, model, updates),
        "state_bytes": {
            name: tree.size(jax.tree.map(jnp.asarray, part))
            for name, part in state._asdict().items()
        },
    }


def flops(learner: Learner, model: Model, updates: int) -> float | None:
    """Floating-point operations of a run's updates; None where they are not stated."""
    examples = learner.examples_per_update
    if examples is None or model.first_product is None:
        return None
    params = jax.eval_shape(learner.init, jax.eval_shape(lambda: keys.purpose(0, "init"))).params
    # Dense layers: 2 forward and 4 backward a weight and example, but no gradient of inputs.
    kernel = jax.eval_shape(lambda p: model.first_product.split(p)[0], params).size  # type: ignore
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    return float(updates * examples * (6 * total - 2 * kernel))


def _curves(runs: Sequence[Sequence[tuple[int, np.ndarray]]]) -> list[list[dict[str, Any]]]:
    """For each run, the accuracies while learning."""
    return [[{"step": step, "accuracy": _nullable(row)} for step, row in run] for run in runs]


def _accuracies(points: Sequence[tuple[int, np.ndarray]]) -> list[np.ndarray]:
    return [row for _, row in points]


def _nullable(array: np.ndarray) -> Any:
    """Nested lists with null for NaN."""
    if np.ndim(array):
        return [_nullable(row) for row in array]
    return None if np.isnan(array) else float(array)
