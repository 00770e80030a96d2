"""What a run is made of before it begins: names resolved, data open, the config fixed.

resolve names -> stream, method, network;  config and its hash
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import jax
import numpy as np

from cljax import resolve
from cljax.checks import check_evaluations, check_method, check_network, model_of
from cljax.engine.learn import resolve_lanes
from cljax.errors import UserError, check_counts, check_flag, check_known, check_positive, in_words
from cljax.evaluation.accuracy import Evaluation
from cljax.keys import check_seed, check_seeds
from cljax.method import Method, with_features
from cljax.methods.pretrained import Pretrained
from cljax.metrics import unmeasured
from cljax.options import flat
from cljax.recipes import Recipe, default
from cljax.references import protocol
from cljax.runner.config import config_hash, entry_of, environment, plain
from cljax.runner.parts import identify, net_name
from cljax.streams.base import Stream
from cljax.streams.options import StreamSource
from cljax.types import Learner, Model, Net, Readout

__all__ = ["Options", "Prepared", "begun_as", "learner_of", "prepare", "seeds_of"]


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
    id: str | None
    origins: Mapping[str, str] | None
    tuning: Mapping[str, Any] | None


def prepare(
    what: Recipe | Method | str,
    stream: Stream | StreamSource | str | None = None,
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
    id: str | None = None,  # noqa: A002, the word that users know
    origins: Mapping[str, str] | None = None,
    tuning: Mapping[str, Any] | None = None,
) -> Prepared:
    """Resolves names, opens the data and fixes the config of a run.

    A method given by name takes the recipe of its pair with the stream's name, with its network,
    batch size, epochs and entries; one given as an object is what it was made with, and those are
    the library's defaults. Either is the same for a stream by name and as an object.

    Args:
      seeds: how many (0, 1, ...), or which, from 0 to 2**32 - 1.
      net, batch_size, epochs, entries: instead of the recipe's.
      eval_every: also test the tasks seen so far every so many updates.
      online: count right predictions on each batch before learning from it.
      evaluations: ways to fill an accuracy matrix; the first is the headline. None: one for each
        of the method's predictors, in its order.
      readout: add an evaluation "readout": a linear layer fitted anew on frozen features, to see
        what features have forgotten (``cljax.readout``).
      lanes, loop: how seeds and updates are run; see ``cljax.engine.learn.learn``.
      precision: "float32" or "float64" (which needs ``jax_enable_x64``).
      id: names what cannot be told of own objects by their content, and is part of the identity:
        the same id says that they are the same.
      origins: where values came from, by option, for the record.
      tuning: how values were chosen, for the record; see ``cljax.sweep.tuning``.

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
    chosen = seeds_of(seeds)
    if id is not None and (not isinstance(id, str) or not id):
        raise UserError(f"id is {id!r}, but it must be a text that names what a run is made of.")
    for name, record in (("origins", origins), ("tuning", tuning)):
        if record is not None and not isinstance(record, Mapping):
            raise UserError(f"{name} is {in_words(record)}, but it must be a dict of what it was.")
    stream = resolve.open_unlisted(stream)
    recipe, method, source, notices = _resolve(what, stream)
    given = method
    if source.pretraining is not None:
        method = Pretrained(method, source.pretraining)
    network = recipe.net if net is None else net
    network = resolve.net(network) if isinstance(network, str) else network
    size = recipe.batch_size if batch_size is None else batch_size
    check_positive(batch_size=size)
    check_flag(online=online, readout=readout)
    check_counts(eval_every=eval_every)
    check_evaluations(evaluations)
    model = model_of(network, source.num_classes)
    learner = _bound(method, model, source, size)
    if tuning is not None:
        recipe, notices = dataclasses.replace(recipe, tuning=tuning), []
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
    parts = identify(given, network, source, asked, id)
    source = dataclasses.replace(source, checksum=parts.checksum)
    surroundings = environment()
    config = {
        "method": {"name": method.name, "options": plain(given.options)},
        "stream": {
            "name": source.name,
            "num_tasks": source.num_tasks,
            "checksum": source.checksum,
        },
        "stream_options": plain(recipe.stream_options),
        "net": net_name(network),
        "seeds": list(chosen),
        "batch_size": size,
        "epochs": recipe.epochs if epochs is None else epochs,
        "entries": recipe.entries if entries is None else entries,
        "eval_every": eval_every,
        "online": online,
        "evaluations": [entry_of(e) for e in asked],
        "lanes": resolve_lanes(lanes),  # type: ignore[arg-type]
        "loop": loop,
        "precision": precision,
        "identity": parts.identity,
        "id": id,
        "packages": sorted(parts.packages),
        "recipe": {"name": recipe.name, "status": _status(recipe), "notes": recipe.notes},
        "origins": {
            **_origins(
                what,
                recipe,
                given,
                dict(net=net, batch_size=batch_size, epochs=epochs, entries=entries),
            ),
            **(origins or {}),
        },
        "tuning": plain(recipe.tuning),
        "notices": [*notices, *_untold(parts.identity)],
        "stream_facts": _facts(source),
        "needs": method.needs._asdict(),
        "unmeasured": unmeasured(
            method.unmeasured,
            source.name,
            boundaries=source.boundaries,
            scenario=asked[0].scenario,
            class_mask=source.class_mask,
        ),  # fmt: skip
        **surroundings,
        "versions": {**surroundings["versions"], **parts.packages},
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


def _resolve(
    what: Recipe | Method | str, stream: Stream | StreamSource | str | None
) -> tuple[Recipe, Method, Stream, list[str]]:
    """The recipe (of defaults, if need be), the method, the stream, and notices about defaults."""
    if isinstance(what, str):
        if stream is None:
            raise UserError(f"The method {what} needs a stream; name one, or pass a recipe.")
        what = default(what, resolve.stream_name(stream))
    if isinstance(what, Recipe):
        method = resolve.method(what.method, **what.method_options)
        if isinstance(stream, Stream):
            return what, method, stream, _left_out(what, stream)
        notices = []
        if isinstance(stream, StreamSource):
            notices, what = _left_out(what, stream), what.on(stream)
        return what, method, resolve.stream(what.stream, **what.stream_options), notices
    check_method(what)
    if stream is None:
        raise UserError(f"The method {what.name} needs a stream; pass one.")
    made = resolve.opened(stream)
    recipe = Recipe(what.name, made.name)
    if isinstance(stream, StreamSource):
        recipe = dataclasses.replace(recipe.on(stream), stream=made.name)
    return recipe, what, made, _passed_by(what, made)


def _left_out(recipe: Recipe, stream: Stream | StreamSource) -> list[str]:
    """That a stream given as an object is not the recipe's, where the recipe has options for it."""
    values = flat(stream) if isinstance(stream, StreamSource) else {}
    others = [
        f"{name}={value}"
        for name, value in sorted(recipe.stream_options.items())
        if name not in values or values[name] != value
    ]
    if not others:
        return []
    name, shown = resolve.stream_name(stream), ", ".join(others)
    return [f"The stream {name} is as it was made; the recipe {recipe.name} has {shown}."]


def _passed_by(method: Method, stream: Stream) -> list[str]:
    """That a method given as an object does not take its pair's recipe, and where it differs."""
    recipe = default(method.name, stream.name)
    if not recipe.source:
        return []
    listed = plain(dict(flat(method)))
    other = [
        f"{name}={value} (here {listed[name]})"
        for name, value in sorted(plain(recipe.method_options).items())
        if name in listed and listed[name] != value
    ]
    differ = f"; it has {', '.join(other)}" if other else ", whose options it has"
    return [
        f"The method {method.name} is as it was made, without the recipe {recipe.name} for "
        f"{recipe.stream}{differ}; cljax.run('{method.name}', ...) takes the recipe."
    ]


def _status(recipe: Recipe) -> str:
    if recipe.tuning is None:
        return recipe.status
    own = protocol.tuned(recipe.tuning)
    return f"{recipe.status}, {own}" if recipe.source else own


def _origins(what: Any, recipe: Recipe, method: Method, given: Mapping[str, Any]) -> dict[str, str]:
    """Where values come from: the recipe, a default, the object itself, the call, a sweep."""
    status = recipe.status if recipe.source else "default"
    named = isinstance(what, (Recipe, str))
    origins = dict.fromkeys(flat(method), "default" if named else "the method as it was made")
    origins |= dict.fromkeys((*recipe.method_options, *recipe.stream_options), recipe.status)
    origins |= {name: status if value is None else "given" for name, value in given.items()}
    return origins | dict.fromkeys((recipe.tuning or {}).get("chosen", ()), "tuned")


def _untold(identity: Mapping[str, Any]) -> list[str]:
    """That a run is neither read back nor continued, if that is so."""
    if "mark" not in identity:
        return []
    return [
        f"{identity['unknown'][0]} cannot be told by its content, so this run is neither read back "
        "nor continued; id='...' would say that it is the same."
    ]


def seeds_of(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """How many seeds (0, 1, ...), or which ones, as a run takes them.

    Raises:
      UserError: for a number below 1, or seeds that are not from 0 to 2**32 - 1 and distinct.
    """
    if isinstance(seeds, (int, np.integer)) and not isinstance(seeds, bool):
        check_positive(seeds=int(seeds))
        check_seed(int(seeds) - 1)
        return tuple(range(int(seeds)))
    return check_seeds(seeds)


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
