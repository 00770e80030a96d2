"""``run``: the one runner. The command, scripts and notebooks all make the same artefacts with it.

resolve names -> stream, method, network;  config and its hash;  learn;  metrics;  files
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import artefacts, metrics, resolve, stats, tree
from cljax.config import config_hash, environment, plain
from cljax.errors import UserError, check_known, check_positive
from cljax.evaluate import Evaluation
from cljax.learn import Event, History, learn, resolve_lanes
from cljax.recipes import Recipe, default
from cljax.streams.base import Stream, rows_used
from cljax.types import Method, Model, Net, PyTree, Spec

__all__ = ["Prepared", "Run", "load", "make", "prepare", "run"]


@dataclass(frozen=True)
class Run:
    """A finished run: what its folder holds, and the final states while they are in memory."""

    config: Mapping[str, Any]
    results: Mapping[str, Any]
    path: Path | None = None
    states: tuple[PyTree, ...] = ()
    resumed: bool = False  # True: read back, not run now

    def metric(self, name: str) -> np.ndarray:
        """Values of a metric, one a seed, as fractions.

        Raises:
          UserError: if the metric was not computed, with the reason.
        """
        if name in self.results["absent"]:
            raise UserError(f"The metric {name} is absent: {self.results['absent'][name]}.")
        check_known("metric", name, self.results["metrics"])
        return np.array(self.results["metrics"][name]["values"], float)

    def accuracy_matrix(self, name: str | None = None) -> np.ndarray:
        """[S, T+1, T] of an evaluation, the headline's by default; NaN: not evaluated."""
        evaluations = self.results["evaluations"]
        name = next(iter(evaluations)) if name is None else name
        check_known("evaluation", name, evaluations)
        return np.array(evaluations[name]["accuracy_matrix"], float)

    def table(self) -> str:
        """The metrics in percent with 95 % intervals, and what was published, as text."""
        from cljax.protocol import table

        return table(self.config, self.results)

    def protocol(self) -> str:
        """The paragraph for a paper that says how these numbers were made."""
        from cljax.protocol import paragraph

        return paragraph(self.config)


class Prepared(NamedTuple):
    """A run that has not begun: its config, and the objects it is made of."""

    config: dict[str, Any]
    method: Method
    stream: Stream
    net: Net
    seconds: float  # what preparing took


def run(
    what: Recipe | Method | str,
    stream: Stream | str | None = None,
    *,
    out: str | Path | None = None,
    progress: Callable[[Event], None] | None = None,
    **options: Any,
) -> Run:
    """Runs a recipe, or a method on a stream, for several seeds.

    Args:
      what: a ``Recipe``, a ``Method``, or a method's name.
      stream: a ``Stream`` or its name; not needed with a recipe.
      out: folder for the artefacts; "auto": runs/METHOD-STREAM-HASH8; None: in memory only. The
        same run already finished there is read back.
      progress: called with each ``Event``.
      **options: those of ``prepare``: seeds, net, batch_size, epochs, entries, eval_every, ...

    Raises:
      UserError: for anything the caller can put right, in one sentence.
    """
    prepared = prepare(what, stream, **options)
    config = prepared.config
    if out is None:
        history, results = _learn(prepared, progress)
        return Run(config, results, None, history.states)
    if out == "auto":
        out = Path("runs") / _folder_name(config)
    folder = Path(out).expanduser()
    if artefacts.finished(folder, config):
        return load(folder)
    with artefacts.claim(folder):
        if artefacts.finished(folder, config):  # by the process that held it until now
            return load(folder)
        try:
            artefacts.write_json(folder / "config.json", config)
            rows = rows_used(prepared.stream, config["seeds"])
            artefacts.write_arrays(folder / "manifest" / "stream.npz", rows)
            with _journal(folder / "metrics.jsonl", progress) as record:
                history, results = _learn(prepared, record)
            _plots(folder / "plots", results)
            artefacts.write_json(folder / "results.json", results)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"The output folder {folder} cannot be written: {reason}.") from error
    return Run(config, results, folder, history.states)


def prepare(
    what: Recipe | Method | str,
    stream: Stream | str | None = None,
    *,
    seeds: int | Sequence[int] = 5,
    net: Net | str | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    entries: str | None = None,
    eval_every: int = 0,
    online: bool = False,
    evaluations: Sequence[Evaluation] | None = None,
    lanes: str = "auto",
    loop: str = "scan",
    precision: str = "float32",
    origins: Mapping[str, str] | None = None,
) -> Prepared:
    """Resolves names, opens the data and fixes the config of a run.

    Args:
      seeds: how many (0, 1, ...), or which.
      net, batch_size, epochs, entries: instead of the recipe's.
      eval_every: also test the tasks seen so far every so many updates.
      online: count right predictions on each batch before learning from it.
      evaluations: ways to fill an accuracy matrix; the first is the headline. None: one for each
        of the method's predictors, in its order.
      lanes, loop: how seeds and updates are run; see ``cljax.learn.learn``.
      precision: "float32" or "float64" (which needs ``jax_enable_x64``).
      origins: where values came from, by option, for the record.

    Raises:
      UserError: for anything the caller can put right, in one sentence.
    """
    began = time.perf_counter()
    check_known("precision", precision, ("float32", "float64"))
    x64 = bool(jax.config.read("jax_enable_x64"))
    if (precision == "float64") != x64:
        raise UserError(
            f"precision is {precision} with jax_enable_x64={x64}, but the two must agree; call "
            "jax.config.update('jax_enable_x64', ...) first."
        )
    recipe, method, source = _resolve(what, stream)
    network = recipe.net if net is None else net
    network = resolve.net(network) if isinstance(network, str) else network
    size = recipe.batch_size if batch_size is None else batch_size
    check_positive(batch_size=size)
    learner = method.bind(network(source.num_classes), source.spec(size))  # or it says why not
    asked = tuple(evaluations or ()) or tuple(
        Evaluation(name, name, source.scenario)  # type: ignore[arg-type]
        for name in learner.predictors
    )
    config = {
        "method": {"name": method.name, "options": plain(method.options)},
        "stream": {
            "name": source.name,
            "num_tasks": source.num_tasks,
            "checksum": source.checksum,
        },
        "stream_options": plain(recipe.stream_options),
        "net": getattr(network, "__name__", "custom"),
        "seeds": list(_seeds(seeds)),
        "batch_size": size,
        "epochs": recipe.epochs if epochs is None else epochs,
        "entries": recipe.entries if entries is None else entries,
        "eval_every": eval_every,
        "online": online,
        "evaluations": [e._asdict() for e in asked],
        "lanes": resolve_lanes(lanes),  # type: ignore[arg-type]
        "loop": loop,
        "precision": precision,
        "recipe": {"name": recipe.name, "status": recipe.status, "notes": recipe.notes},
        "origins": dict(origins or {}),
        "stream_facts": _facts(source),
        "needs": method.needs._asdict(),
        **environment(),
    }
    check_positive(epochs=config["epochs"])
    if eval_every:
        check_positive(eval_every=eval_every)
    config["config_hash"] = config_hash(config)
    return Prepared(config, method, source, network, time.perf_counter() - began)


def load(folder: str | Path) -> Run:
    """Reads a finished run back.

    Raises:
      UserError: if the folder does not hold a finished run.
    """
    folder = Path(folder).expanduser()
    results = artefacts.read(folder, "results.json")
    return Run(artefacts.read(folder, "config.json"), results, folder, resumed=True)


def _resolve(what: Recipe | Method | str, stream: Stream | str | None) -> tuple[Any, Any, Any]:
    """The recipe (of defaults, if need be), the method and the stream."""
    if isinstance(what, str):
        if stream is None:
            raise UserError(f"The method {what} needs a stream; name one, or pass a recipe.")
        what = default(what, stream) if isinstance(stream, str) else Recipe(what, stream.name)
    if isinstance(what, Recipe):
        method = make(resolve.method_factory(what.method), what.method_options, what.method)
        if not isinstance(stream, Stream):
            factory = resolve.stream_factory(what.stream)
            stream = make(factory, what.stream_options, what.stream)
        return what, method, stream
    if stream is None:
        raise UserError(f"The method {what.name} needs a stream; pass one.")
    if isinstance(stream, str):
        name = stream
        stream = make(resolve.stream_factory(name), {}, name)
        return Recipe(what.name, name), what, stream
    return Recipe(what.name, stream.name), what, stream


def make(factory: Callable[..., Any], options: Mapping[str, Any], name: str) -> Any:
    """Calls a factory; an option that it does not have is the user's mistake."""
    known = {option.name for option in resolve.options_of(factory)}
    for option in options:
        check_known(f"option of {name}", option, known)
    return factory(**options)


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(seeds, int):
        check_positive(seeds=seeds)
        return tuple(range(seeds))
    chosen = tuple(int(seed) for seed in seeds)
    check_positive(seeds=len(chosen))
    if len(set(chosen)) < len(chosen) or min(chosen) < 0:
        raise UserError(f"seeds are {list(chosen)}, but they must be distinct and not negative.")
    return chosen


def _facts(stream: Stream) -> dict[str, Any]:
    """What tables and the protocol say of a stream."""
    return {
        "num_tasks": stream.num_tasks,
        "num_classes": stream.num_classes,
        "multi_head": stream.multi_head,
        "boundaries": stream.boundaries,
        "scenario": stream.scenario,
        "source": stream.source,
        "licence": stream.licence,
        "published": stream.published,
        "manifest": sorted(stream.manifest),
    }


def _folder_name(config: Mapping[str, Any]) -> str:
    parts = (config["method"]["name"], config["stream"]["name"], config["config_hash"][:8])
    return re.sub(r"[^A-Za-z0-9.-]+", "-", "-".join(parts)).replace("--", "-")


def _learn(
    prepared: Prepared, progress: Callable[[Event], None] | None
) -> tuple[History, dict[str, Any]]:
    began, config = time.perf_counter(), prepared.config
    model = prepared.net(prepared.stream.num_classes)
    settings = ("batch_size", "epochs", "entries", "eval_every", "online", "lanes", "loop")
    history = learn(
        prepared.method,
        model,
        prepared.stream,
        config["seeds"],
        evaluations=[Evaluation(**entry) for entry in config["evaluations"]],
        progress=progress,
        **{name: config[name] for name in settings},
    )
    total_s = prepared.seconds + time.perf_counter() - began
    results = _results(config, prepared.method, model, prepared.stream, history)
    results["time"] = {"data_s": prepared.seconds, **history.time, "total_s": total_s}
    return history, results


def _results(
    config: Mapping[str, Any], method: Method, model: Model, stream: Stream, history: History
) -> dict[str, Any]:
    """The contract's ``results.json``, less its times."""
    spec = stream.spec(config["batch_size"])
    evaluations, headline, absent = {}, {}, {}
    alive = np.array([step is None for step in history.diverged])
    for i, entry in enumerate(config["evaluations"]):
        name, matrix = entry["name"], history.evaluations[entry["name"]]
        computed = metrics.compute(matrix[alive] if alive.any() else matrix, history.test_counts)
        values = {metric: _spread(v, alive) for metric, v in computed.values.items()}
        predictor = method.bind(model, spec).predictors[entry["predictor"]]
        evaluations[name] = {
            "predictor": entry["predictor"],
            "scenario": entry["scenario"],
            "task_ids": predictor.needs_task_ids or entry["scenario"] == "task",
            "continuum": predictor.continuum,
            "accuracy_matrix": _nullable(matrix),
            "test_counts": history.test_counts.tolist(),
            "metrics": values,
        }
        if i == 0:
            headline, absent = dict(values), dict(computed.absent)
    online = metrics.compute_online(
        None if history.online_correct is None else history.online_correct[alive],
        history.batch_sizes,
        [_accuracies(p) for p, ok in zip(history.anytime, alive, strict=True) if ok],
    )
    headline |= {name: _spread(value, alive) for name, value in online.values.items()}
    absent |= dict(online.absent)
    first = next(iter(history.evaluations.values()))
    return {
        "method": method.name,
        "stream": stream.name,
        "seeds": list(history.seeds),
        "config_hash": config["config_hash"],
        "data": {"source": stream.source, "checksum": stream.checksum, "licence": stream.licence},
        "device": config["device"],
        "versions": config["versions"],
        "metrics": headline,
        "absent": absent,
        "evaluations": evaluations,
        "accuracy_matrix": _nullable(first[:, 1:]),
        "anytime": [
            [{"step": step, "accuracy": _nullable(row)} for step, row in points]
            for points in history.anytime
        ],
        "diverged": list(history.diverged),
        "cost": _cost(method, model, spec, history),
    }


def _spread(values: np.ndarray, alive: np.ndarray) -> dict[str, Any]:
    """A metric over seeds; seeds that diverged are null and count in no mean."""
    summary, finite = stats.summary(values), iter(np.atleast_1d(values).tolist())
    return {
        "mean": summary.mean,
        "std": summary.std,
        "ci95": None if summary.ci95 is None else list(summary.ci95),
        "values": [next(finite) if ok else None for ok in alive],
    }


def _cost(method: Method, model: Model, spec: Spec, history: History) -> dict[str, Any]:
    """Work and state of one seed's run; null where the method does not say."""
    learner, state = method.bind(model, spec), history.states[0]
    updates = len(history.batch_sizes)
    gradients, examples = learner.gradients_per_update, learner.examples_per_update
    flops = None
    if examples is not None and model.first_product is not None:
        # Dense layers: 2 forward and 4 backward a weight and example, but no gradient of inputs.
        kernel = model.first_product.split(state.params)[0].size
        total = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        flops = float(updates * examples * (6 * total - 2 * kernel))
    return {
        "gradient_evaluations": None if gradients is None else gradients * updates,
        "examples": int(history.batch_sizes.sum()),
        "flops_analytic": flops,
        "state_bytes": {
            name: tree.size(jax.tree.map(jnp.asarray, part))
            for name, part in state._asdict().items()
        },
    }


def _accuracies(points: Sequence[tuple[int, np.ndarray]]) -> list[np.ndarray]:
    return [row for _, row in points]


def _nullable(array: np.ndarray) -> Any:
    """Nested lists with null for NaN."""
    if np.ndim(array):
        return [_nullable(row) for row in array]
    return None if np.isnan(array) else float(array)


@contextlib.contextmanager
def _journal(path: Path, progress: Callable[[Event], None] | None):
    """A progress callback that also appends each event to ``metrics.jsonl``."""
    path.unlink(missing_ok=True)  # of an attempt that did not finish
    with open(path, "a", encoding="utf-8", buffering=1) as file:

        def record(event: Event) -> None:
            if event.kind in ("segment", "eval"):
                file.write(json.dumps(plain(event._asdict()), sort_keys=True) + "\n")
            if progress is not None:
                progress(event)

        yield record


def _plots(folder: Path, results: Mapping[str, Any]) -> None:
    from cljax import plot

    first = next(iter(results["evaluations"].values()))
    matrices = np.array(first["accuracy_matrix"], float)
    folder.mkdir(exist_ok=True)
    with np.errstate(all="ignore"):
        title = f"{results['method']}, {results['stream']}\nmean of {len(matrices)} seeds"
        plot.save(plot.accuracy_matrix(matrices, title=title), folder / "accuracy_matrix.png")
        plot.save(plot.over_time(plot.task_curves(matrices)), folder / "over_time.png")
