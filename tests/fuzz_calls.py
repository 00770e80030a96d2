"""Calls of public functions drawn by a seeded generator, with plausible and wrong values."""

from __future__ import annotations

import contextlib
import functools
import io
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fuzz_support
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import support

import cljax
from cljax import geometry, plot, report
from cljax.errors import Interrupted, UserError
from cljax.evaluation import continuum_lower_bound, readout
from cljax.inner_loop import LoopOptions
from cljax.memory import exemplars, reservoir, ring
from cljax.memory.policies import named
from cljax.methods import METHODS
from cljax.nets import NETS
from cljax.penalties import PENALTIES
from cljax.types import Evaluation, Features

__all__ = ["Call", "call", "drawn", "public"]

# What anybody may hand in by mistake.
_WRONG = (
    None, "x", "", -1, 0, 1.5, -0.5, float("nan"), float("inf"), 10**19, True, [], (), {}, [1, 2],
    ["a"], [0.5], np.ones(3), np.array(["a"]), np.zeros((0, 2)), jnp.ones((2, 2)), b"x", object(),
    int, len, Path("none"), "2", "mnist-rotations", "er",
)  # fmt: skip

_MAIN = ["run", "RunOptions", "evaluate", "sweep.plan", "compare", "learn"]  # drawn more often


class Call(NamedTuple):
    """A function, values that suit its arguments, and those that are never given a wrong one."""

    function: Callable[..., Any]
    arguments: Mapping[str, Sequence[Any]]
    kept: frozenset[str] = frozenset()


def _stream(**options: Any) -> cljax.streams.Stream:
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 6)
    x = rng.normal(size=(24, 3)).astype(np.float32)
    part = (x, y, y // 2)
    return cljax.streams.from_arrays(part, test=part, dtype="float32", **options)


def _module(num_outputs: int, kind: str) -> Any:
    """A Linen module that returns something else than a pair of logits and features."""
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            features = nn.relu(nn.Dense(2)(x))
            logits = nn.Dense(num_outputs)(features)
            return {
                "alone": logits,
                "narrow": (logits[:, :1], features),
                "mean": (logits.mean(0), features),
                "whole": (logits.astype(int), features),
                "three": (logits, features, x),
                "fails": (logits @ features, features),
                "right": (logits, features),
            }[kind]

    return cljax.nets.from_linen(Net())


def _nets() -> list[Any]:
    kinds = ("alone", "narrow", "mean", "whole", "three", "fails", "right")
    made = [lambda num_outputs, kind=kind: _module(num_outputs, kind) for kind in kinds]
    return [*made, cljax.nets.mlp(2)(4), cljax.nets.mlp, lambda: None]


def public(folder: Path) -> dict[str, Call]:
    """The functions by name.

    Args:
      folder: whose ``run`` is a finished run, ``sweep`` a finished sweep, ``other`` neither.
    """
    stream = _stream()
    done = cljax.run(cljax.Finetune(), stream, seeds=1, net="mlp:2", batch_size=12)
    method = cljax.ER(capacity=4, replay_size=2)
    model, spec = cljax.nets.mlp(2)(4), stream.spec(4)
    folders = [str(folder / name) for name in ("run", "sweep", "other", "none", "file")]
    matrix = np.linspace(0, 1, 12).reshape(4, 3)
    rows, labels = np.random.default_rng(0).normal(size=(8, 2)), np.arange(8) % 2
    of_run = {
        "seeds": (1, [0]), "net": ("mlp:2", *_nets()), "batch_size": (12,), "epochs": (1,),
        "entries": ("diagonal-last", "full"), "eval_every": (0, 1), "online": (False, True),
        "evaluations": (None, [Evaluation()], Evaluation()), "readout": (False, True),
        "lanes": ("auto", "vmap"), "loop": ("auto", "steps"), "precision": ("float32",),
        "sedes": (), "batchsize": (),
    }  # fmt: skip
    whats = (
        cljax.Finetune(), method, "er", "err", cljax.LaMAML, cljax.penalties.EWC(100.0),
        cljax.penalties.EWC,
        cljax.Finetune(penalty=cljax.penalties.SI()), cljax.Finetune(optimizer=optax.adam(1e-3)),
        "lamaml:reference", cljax.GEM(), cljax.ICaRL(capacity=8), cljax.Finetune(lr=1e30),
    )  # fmt: skip
    streams = (stream, stream, stream, cljax.streams.MNISTRotations, (rows, labels), "split")
    running = (cljax.Running(), {"keep": 3}, 30)
    of_running = {"segment_seconds": (1.0, 0), "checkpoint_every": ("1", 30, "never"),
                  "devices": (None, "2"), "keep": (1, 0)}  # fmt: skip
    grid = ([{"lr": 0.1}], [{"lr": 0.1}, {"lr": 0.2}], [{"lrr": 0.1}], [{}], {"lr": [0.1]})
    plans = functools.partial(cljax.sweep.plan, seeds=1, net="mlp:2", batch_size=12)
    tuned = (cljax.Tune(seeds=(1000,)), cljax.Tune(seeds=(0,)), 3)
    methods = ({"a": (cljax.ER, {"lr": [0.1]})}, {"a": cljax.ER}, {"a": (cljax.ER(), {})}, {})
    loss = lambda w, x: (w - x) ** 2
    step = cljax.sgd_step(loss, 0.1)
    memory = reservoir.init(jax.ShapeDtypeStruct((2,), "float32"), 3)
    key = jax.random.key(0)
    calls = {
        "run": Call(cljax.run, {"what": whats, "stream": streams, "out": (None,),
                    "progress": (None, len), "running": running, **of_run}),
        "Running": Call(cljax.Running, of_running),
        "RunOptions": Call(cljax.runner.options.RunOptions, {**of_run, "running": running}),
        "learn": Call(support.learn, {"method": (method,), "model": (model,), "stream": (stream,),
                      "seeds": ([0],), "batch_size": (12,), "epochs": (1,),
                      "entries": ("lower",), "lanes_at_a_time": (None, 1), "segment": (None, 1),
                      "segment_seconds": (1.0,), "devices": (None, 1)}),
        "evaluate": Call(cljax.evaluate, {"trained": (done.state, done), "stream": streams,
                         "scenario": ("domain", "task", "class"), "predictor": (None, "logits")}),
        "compare": Call(cljax.compare, {"methods": methods, "stream": streams[:4], "tune": tuned,
                        "net": ("mlp:2",), "seeds": (1,), "running": running,
                        "out": (str(folder / "study"),), "batch_size": (12,)},
                        frozenset({"out"})),
        "sweep.plan": Call(cljax.sweep.plan, {"what": (cljax.ER, "er", cljax.ER()),
                           "stream": streams, "settings": grid, "on": ("validation", "test"),
                           "metric": ("RA", "FWT"), "recipe": (None, "x"),
                           "lanes_at_a_time": (None, 1), **of_run}),
        "sweep.run": Call(cljax.sweep.run, {"plan": (stream,), "out": (str(folder / "s"),),
                          "shard": ((0, 1), (1, 1), 3, (0, 0)), "running": running},
                          frozenset({"out"})),
        "sweep.grid": Call(cljax.sweep.grid, {"lr": ([0.1], 0.1, "0.1", []), "seed": (range(2),)}),
        "sweep.status": Call(cljax.sweep.status, {"folder": folders}),
        "sweep.merge": Call(cljax.sweep.merge, {"folder": folders}),
        "load": Call(cljax.load, {"folder": folders}),
        "resume": Call(cljax.resume, {"folder": folders, "progress": (None,), "running": running}),
        "report": Call(lambda **o: report.report(folders[0], **o),
                       {"out": (str(folder / "page.html"),), "metric": ("RA",),
                        "figures": (False,)}, frozenset({"out"})),
        "report.folders": Call(report.report, {}),
        "Run.metric": Call(done.metric, {"name": ("RA", "FWT", "ra")}),
        "Run.accuracy_matrix": Call(done.accuracy_matrix, {"name": (None, "logits")}),
        "Run.table": Call(done.table, {"form": ("text", "latex", "csv")}),
        "Run.cite": Call(done.cite, {"form": ("bibtex", "keys")}),
        "published": Call(cljax.published, {"source": ("lamaml-table1",), "method": ("lamaml",),
                          "stream": ("mnist-rotations",)}),
        "recipe": Call(cljax.recipe, {"method": ("lamaml",), "stream": ("mnist-rotations",),
                       "source": (None, "lamaml"), "variant": (None, "paper")}),
        "from_arrays": Call(cljax.streams.from_arrays, {"train": ((rows, labels, labels),),
                            "test": ((rows, labels, labels), None), "dtype": ("float32", "uint8"),
                            "val": (0.1,)}),
        "blurry": Call(cljax.streams.blurry, {"stream": (stream,), "fraction": (0.1,)}),
        "gaussian": Call(cljax.streams.gaussian, {"stream": (stream,), "width": (0.5,)}),
        "task_free": Call(cljax.streams.task_free, {"stream": (stream,), "order": ("shuffled",)}),
        "plan": Call(cljax.streams.plan, {"stream": (stream,), "seed": (0,), "batch_size": (4,),
                     "epochs": (1,)}),
        "on_validation": Call(cljax.streams.on_validation, {"stream": (stream,), "seed": (0,)}),
        "split": Call(cljax.inner_loop.split, {"batch": (jnp.arange(6),), "num_steps": (3, 4)},
                      frozenset({"batch"})),
        "unroll": Call(cljax.unroll, {"step": (step,), "params": (jnp.zeros(()),),
                       "batches": (jnp.ones((2, 1)),), "order": (1, 2), "last": (None, 1),
                       "loop": (LoopOptions(), LoopOptions(True, 2, True))},
                       frozenset({"params", "batches", "step"})),
        "unroll.loop": Call(lambda **o: cljax.unroll(step, jnp.zeros(()), jnp.ones((2, 1)),
                                                     loop=LoopOptions(**o)),
                            {"segments": (1,), "remat": (False,), "unroll_steps": (1, True)}),
        "optax_step": Call(cljax.inner_loop.optax_step, {"loss_fn": (loss,), "optimizer": (
                           optax.sgd(0.1), optax.lbfgs(), optax.MultiSteps(optax.sgd(0.1), 2))}),
        "sgd_step": Call(cljax.sgd_step, {"loss_fn": (loss,), "lr": (0.1,), "clip": (None, 1.0)}),
        "readout": Call(readout, {"train": (Features(rows, labels),),
                        "test": (Features(rows, labels),), "num_classes": (2,),
                        "steps": (2,), "lr": (0.1,), "batch_size": (None, 2), "key": (None, key)}),
        "readout.train": Call(lambda **o: readout(Features(**o), Features(rows, labels),
                                                        num_classes=2, steps=2),
                              {"x": (rows,), "labels": (labels,)}),
        "reservoir.init": Call(reservoir.init, {"example": (np.zeros(2),), "capacity": (3,)},
                               frozenset({"example"})),
        "reservoir.sample": Call(reservoir.sample, {"memory": (memory,), "num": (2,), "key": (key,),
                                 "replace": (True,)}, frozenset({"memory", "key"})),
        "reservoir.add": Call(reservoir.add, {"memory": (memory,), "examples": (jnp.ones((2, 2)),),
                              "key": (key,), "rule": ("textbook", "inclusive")},
                              frozenset({"memory", "examples", "key"})),
        "ring.init": Call(ring.init, {"example": (np.zeros(2),), "num_tasks": (2,),
                          "per_task": (3,)}, frozenset({"example"})),
        "exemplars.init": Call(exemplars.init, {"example": (np.zeros(2),), "capacity": (3,)},
                               frozenset({"example"})),
        "exemplars.budget_of": Call(exemplars.budget_of, {"class_mask": (np.eye(2, dtype=bool),),
                                    "total": (4, None), "per_class": (None, 2)},
                                    frozenset({"class_mask"})),
        "policies.named": Call(named, {"policy": ("herding", "mnemonics:inner_steps=2", "x:y")}),
        "with_exemplars": Call(cljax.WithExemplars, {"method": (method,),
                               "exemplars": ("herding",), "per_class": (2,)}),
        "nets.from_linen": Call(cljax.nets.from_linen, {"module": (), "head": (None,)}),
        "nets.from_nnx": Call(cljax.nets.from_nnx, {"make": (lambda rngs: None,)}),
        "optimizer": Call(cljax.Finetune, {"lr": (0.1, optax.constant_schedule(0.1)), "optimizer": (
                          "sgd", optax.sgd(optax.constant_schedule(0.1)), optax.lbfgs(),
                          optax.MultiSteps(optax.sgd(0.1), 2), optax.adam)}),
        "continuum": Call(continuum_lower_bound, {"p0": (0.6,), "num_tasks": (5,),
                          "classes_per_task": (2,)}),
        "geometry.silhouette": Call(geometry.silhouette, {"features": (rows,),
                                    "labels": (labels,)}),
        "geometry.centroids": Call(geometry.centroids, {"features": (rows,), "labels": (labels,)}),
        "stats.summary": Call(cljax.stats.summary, {"values": ([0.1, 0.2],)}),
        "stats.paired": Call(cljax.stats.paired, {"a": ([0.1, 0.2],), "b": ([0.2, 0.1],)}),
        "stats.holm": Call(cljax.stats.holm, {"p_values": ([0.1, 0.2],)}),
        "stats.equivalence": Call(cljax.stats.equivalence, {"values": ([0.1] * 5,), "target": (
                                  cljax.stats.Cell(0.1, 0.01, 5, "x"),), "margin": (0.1,)}),
        "metrics.compute": Call(cljax.metrics.compute, {"matrix": (matrix,),
                                "counts": ([1, 2, 3],)}),
        "metrics.seen": Call(cljax.metrics.seen_accuracy, {"matrix": (matrix,),
                             "counts": ([1, 2, 3],)}),
        "metrics.prequential": Call(cljax.metrics.prequential_accuracy, {
                                    "correct": ([[1, 2]],), "batch_sizes": ([2, 2],)}),
        "metrics.anytime": Call(cljax.metrics.average_anytime_accuracy, {
                                "accuracies": ([[0.1, np.nan]],), "seen": (None, [1])}),
        "plot.accuracy_matrix": Call(plot.accuracy_matrix, {"matrix": (matrix, done),
                                     "title": (None, "a")}),
        "plot.over_time": Call(plot.over_time, {"curves": ({"a": matrix}, done, {"a": done})}),
        "plot.heat_map": Call(plot.heat_map, {"values": (matrix,),
                              "columns": (plot.Ticks(["a", "b", "c"]),),
                              "rows": (plot.Ticks(["1", "2", "3", "4"]),),
                              "mark": (None, matrix > 0.5)}),
        "plot.exemplar_grid": Call(plot.exemplar_grid, {"exemplars": (rows,), "labels": (labels,)}),
        "plot.tsne": Call(plot.tsne, {"data": (Features(rows, labels),),
                          "exemplars": (Features(rows[:2], labels[:2]),)}),
        "plot.task_curves": Call(plot.task_curves, {"matrix": (matrix,)}),
    }  # fmt: skip
    for name in dir(cljax.metrics):
        if name in ("retained_accuracy", "learning_accuracy", "backward_transfer", "forgetting"):
            calls[f"metrics.{name}"] = Call(getattr(cljax.metrics, name), {"matrix": (matrix,)})
    made = {f"method {name}": method for name, method in METHODS.items()}
    made |= {f"penalty {name}": penalty() for name, penalty in PENALTIES.items()}
    made |= {f"memory {name}": memory for name, memory in cljax.memory.MEMORIES.items()}
    for name, options in made.items():
        calls[name] = Call(options.replace, fuzz_support.defaults(options))
    for name, make in NETS.items():
        calls[f"net {name}"] = Call(make, fuzz_support.defaults(make))
    del plans, spec
    return calls


def drawn(
    rng: np.random.Generator, calls: Mapping[str, Call]
) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    """A call: its name, the function, and its keyword arguments."""
    # Factories have a table of their own, tests/test_options.py.
    groups = [name for name in calls if " " not in name] + _MAIN * 4
    factories = [name for name in calls if " " in name]
    among = groups if rng.random() < 0.85 else factories
    name = among[int(rng.integers(len(among)))]
    function, arguments, kept = calls[name]
    given = {}
    for argument, right in arguments.items():
        wrong = rng.random() < 1.2 / (len(arguments) + 1) and argument not in kept
        if wrong or not right:
            if wrong:
                given[argument] = _WRONG[int(rng.integers(len(_WRONG)))]
        elif argument in kept or rng.random() < 0.7 or list(arguments).index(argument) < 3:
            first = 0 if rng.random() < 0.6 else int(rng.integers(len(right)))
            given[argument] = right[first]
    return name, function, given


def call(
    name: str, function: Callable[..., Any], given: Mapping[str, Any], seconds: float = 120.0
) -> str | None:
    """Calls it; what a user should not have seen, or None."""
    shown = f"{name}({', '.join(f'{k}={v!r:.80}' for k, v in given.items())})"
    quiet = contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO())
    try:
        with warnings.catch_warnings(), quiet[0], quiet[1], fuzz_support.within(seconds):
            warnings.simplefilter("ignore")
            function(**given)
    except (UserError, Interrupted) as error:
        said = str(error)
        marks = [mark for mark in ("<class ", " object at 0x", "<function") if mark in said]
        return f"{shown} showed {marks[0]}: {said}" if marks else None
    except fuzz_support.Hang:
        return f"{shown} took more than {seconds} s"
    except Exception as error:  # noqa: BLE001, reported with its place
        python_own = isinstance(error, TypeError) and error.__traceback__.tb_next is None
        # Such as "missing 1 required argument", which Python says before the function begins.
        return None if python_own else f"{shown} raised {_told(error)}"
    finally:
        plt.close("all")
    return None


def _told(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/cljax/" in f.filename][-1:] or frames[-1:]
    where = f"{Path(own[0].filename).name}:{own[0].lineno}"
    return f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:200]}"
