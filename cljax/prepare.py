"""What a run is made of before it begins: names resolved, data open, the config fixed.

resolve names -> stream, method, network;  config and its hash
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import jax

from cljax import resolve
from cljax.checks import (
    check_evaluations,
    check_method,
    check_network,
    model_of,
)
from cljax.config import config_hash, entry_of, environment, plain
from cljax.errors import UserError, check_counts, check_flag, check_known, check_positive
from cljax.evaluate import Evaluation
from cljax.learn import resolve_lanes
from cljax.methods.common import with_features
from cljax.methods.pretrained import pretrained
from cljax.recipes import Recipe, default
from cljax.streams.base import Stream, check_stream
from cljax.types import Learner, Method, Model, Net, Readout

__all__ = ["Options", "Prepared", "begun_as", "learner_of", "make", "prepare"]


class Prepared(NamedTuple):
    """A run that has not begun: its config, and the objects it is made of."""

    config: dict[str, Any]
    method: Method
    stream: Stream
    net: Net
    seconds: float  # what preparing took


class Options(TypedDict, total=False):
    """The keywords of ``prepare``, for those that pass them on, such as ``cljax.run``."""

    seeds: int | Sequence[int]
    net: Net | str | None
    batch_size: int | None
    epochs: int | None
    entries: str | None
    eval_every: int
    online: bool
    evaluations: Sequence[Evaluation] | None
    readout: bool
    lanes: str
    loop: str
    precision: str
    origins: Mapping[str, str] | None


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
    readout: bool = False,
    lanes: str = "auto",
    loop: str = "auto",
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
      readout: add an evaluation "readout": a linear layer fitted anew on frozen features, to see
        what features have forgotten (``cljax.readout``).
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
    if source.pretraining is not None:
        method = pretrained(method, source.pretraining)
    network = recipe.net if net is None else net
    network = resolve.net(network) if isinstance(network, str) else network
    size = recipe.batch_size if batch_size is None else batch_size
    check_positive(batch_size=size)
    check_flag(online=online, readout=readout)
    check_counts(eval_every=eval_every)
    check_evaluations(evaluations)
    model = model_of(network, source.num_classes)
    learner = _bound(method, model, source, size)
    asked = (
        tuple(evaluations or ())
        or learner.evaluations
        or tuple(
            Evaluation(name, name, source.scenario)  # type: ignore[arg-type]
            for name in learner.predictors
            if name != "features"  # those are for readouts
        )
    )
    if readout:
        asked += (Evaluation("readout", "features", "task", readout=Readout()),)
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
        "evaluations": [entry_of(e) for e in asked],
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
    if isinstance(what, (Recipe, str)) and not isinstance(stream, Stream):
        named = net if isinstance(net, str) else recipe.net if net is None else None
        config["begun_as"] = None if named is None else begun_as(recipe, named)
    config["config_hash"] = config_hash(config)
    return Prepared(config, method, source, network, time.perf_counter() - began)


def _bound(method: Method, model: Model, stream: Stream, batch_size: int) -> Learner:
    """The method for its network and stream; or it says why not."""
    try:
        return method.bind(model, stream.spec(batch_size))
    except UserError:
        raise
    except Exception:
        check_network(model, stream.example, stream.num_classes, stream.name)  # is it that?
        raise


def learner_of(made: Prepared, stream: Stream) -> Learner:
    """The run's method for its network and a stream, with predictors as evaluations have them."""
    model, seen = made.net(stream.num_classes), stream
    if made.method.arrange is not None:
        seen = made.method.arrange(stream)
    return with_features(made.method.bind(model, seen.spec(made.config["batch_size"])), model)


def begun_as(recipe: Recipe, net: str) -> dict[str, Any] | None:
    """The recipe's fields, if JSON can hold them without loss."""
    fields = {**dataclasses.asdict(recipe), "net": net}
    try:
        simple = json.loads(json.dumps(fields))
    except TypeError:
        return None
    return simple


def _resolve(what: Recipe | Method | str, stream: Stream | str | None) -> tuple[Any, Any, Any]:
    """The recipe (of defaults, if need be), the method and the stream."""
    if isinstance(what, str):
        if stream is None:
            raise UserError(f"The method {what} needs a stream; name one, or pass a recipe.")
        if not isinstance(stream, str):
            check_stream(stream)
        what = default(what, stream) if isinstance(stream, str) else Recipe(what, stream.name)
    if isinstance(what, Recipe):
        method = make(resolve.method_factory(what.method), what.method_options, what.method)
        check_method(method)
        if not isinstance(stream, Stream):
            factory = resolve.stream_factory(what.stream)
            stream = make(factory, what.stream_options, what.stream)
            check_stream(stream)
        return what, method, stream
    check_method(what)
    if stream is None:
        raise UserError(f"The method {what.name} needs a stream; pass one.")
    if isinstance(stream, str):
        name = stream
        stream = make(resolve.stream_factory(name), {}, name)
        return Recipe(what.name, name), what, stream
    check_stream(stream)
    return Recipe(what.name, stream.name), what, stream


def make(factory: Callable[..., Any], options: Mapping[str, Any], name: str) -> Any:
    """Calls a factory; an option that it does not have is the user's mistake."""
    known = {option.name for option in resolve.options_of(factory)}
    for option in options:
        check_known(f"option of {name}", option, known)
    try:
        return factory(**options)
    except UserError:
        raise
    except Exception as error:
        if (factory.__module__ or "").startswith("cljax."):
            raise
        raise UserError(
            f"The factory {name} failed with {type(error).__name__}: {error}."
        ) from error


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
