"""What a run is made of before it begins: names resolved, data open, the config fixed.

resolve names -> stream, method, network;  config and its hash
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cljax import resolve
from cljax.checks import check_method, check_network, model_of
from cljax.engine.bundles import resolve_lanes
from cljax.engine.start import Start
from cljax.errors import UserError, check_positive
from cljax.evaluation.accuracy import Evaluation
from cljax.evaluation.again import Trained
from cljax.keys import check_seed, check_seeds
from cljax.method import Method, with_features
from cljax.methods.pretrained import Pretrained
from cljax.methods.stopping import EarlyStopping
from cljax.metrics import unmeasured
from cljax.objectives import described
from cljax.options import flat
from cljax.recipes import Recipe, default
from cljax.references import protocol
from cljax.runner.config import config_hash, entry_of, environment, plain
from cljax.runner.named import by_names
from cljax.runner.options import RunOptions
from cljax.runner.parts import identify, net_name
from cljax.runner.starting import (
    check_start,
    digest_of_start,
    judged_alike,
    left_behind,
    origin_of,
    starting,
)
from cljax.streams.base import Stream
from cljax.streams.continued import continued
from cljax.streams.objective import with_objective
from cljax.streams.options import StreamSource
from cljax.types import Learner, Model, Net, Readout

__all__ = ["OF_RECIPE", "Prepared", "judged", "learner_of", "prepare", "seeds_of"]

OF_RECIPE = ("net", "batch_size", "epochs", "entries")  # options that a recipe has values of
# Options that a config holds as they are.
_AS_GIVEN = ("batch_size", "epochs", "entries", "eval_every", "online", "loop", "precision", "id")


class Prepared(NamedTuple):
    """A run that has not begun: its config, and the objects it is made of."""

    config: dict[str, Any]
    method: Method
    stream: Stream
    net: Net
    seconds: float  # what preparing took
    start: Start | None = None  # what it begins with, where it goes on from another run


def prepare(
    what: Recipe | Method | str,
    stream: Stream | StreamSource | str | None = None,
    options: RunOptions = RunOptions(),  # noqa: B008, it is frozen
) -> Prepared:
    """Resolves names, opens the data and fixes the config of a run.

    A method given by name takes the recipe of its pair with the stream's name, with its network,
    batch size, epochs and entries; one given as an object is what it was made with, and those are
    the library's defaults. Either is the same for a stream by name and as an object.

    Raises:
      UserError: for anything the caller can put right, in one sentence.
    """
    began = time.perf_counter()
    _check_precision(options.precision)
    chosen = seeds_of(options.seeds)
    stream = resolve.open_unlisted(stream)
    recipe, method, source, notices = _resolve(what, stream)
    given = method
    start = None if options.start is None else check_start(options.start, method, chosen)
    if start is not None:
        source = continued(start.learned, source)
    asked = _asked_objective(options)
    source = judged(source, options)
    if start is not None:
        source = judged_alike(start.learned, source)
    stopping = _stopping(options, source)
    method = EarlyStopping(method, **stopping) if stopping else method
    if source.pretraining is not None:
        method = Pretrained(method, source.pretraining)
    of_run = _with_recipe(options, recipe)
    network = resolve.net(of_run.net) if isinstance(of_run.net, str) else of_run.net
    model = model_of(network, source.num_classes)
    learner = _bound(method, model, source, of_run.batch_size)
    if options.tuning is not None:
        recipe, notices = dataclasses.replace(recipe, tuning=options.tuning), []
    evaluations = _evaluations(options, learner, source)
    parts = identify(given, network, source, evaluations, options.id)
    begins = None
    if start is not None:
        sizes = source.num_tasks, source.num_classes
        begins = starting(start, learner, *sizes, chosen, evaluations)
        notices = [*notices, _goes_on(start), *left_behind(start.learned, source, asked)]
    source = dataclasses.replace(source, checksum=parts.checksum)
    surroundings = environment()
    config = {
        "method": {"name": method.name, "options": plain(given.recorded)},
        "stream": {
            "name": source.name,
            "num_tasks": source.num_tasks,
            "checksum": source.checksum,
        },
        "stream_options": plain(recipe.stream_options),
        "net": net_name(network),
        "seeds": list(chosen),
        **{name: getattr(of_run, name) for name in _AS_GIVEN},
        "evaluations": [entry_of(e) for e in evaluations],
        "lanes": resolve_lanes(options.lanes),
        **_where_asked(source, asked, stopping),
        "identity": parts.identity,
        "packages": sorted(parts.packages),
        "recipe": {"name": recipe.name, "status": _status(recipe), "notes": recipe.notes},
        "origins": {**_origins(what, recipe, given, options), **(options.origins or {})},
        "tuning": plain(recipe.tuning),
        **({} if start is None else _began_with(start, chosen)),
        "notices": [*notices, *_untold(parts.identity)],
        "stream_facts": _facts(source),
        "needs": method.needs._asdict(),
        "unmeasured": unmeasured(
            method.unmeasured,
            source.name,
            boundaries=source.boundaries,
            scenario=evaluations[0].scenario,
            class_mask=source.class_mask,
        ),
        **surroundings,
        "versions": {**surroundings["versions"], **parts.packages},
    }
    here = start is not None and start.folder is None  # its start is in no folder
    if not here and not any(map(callable, asked.values())):
        named = by_names(what, stream, recipe, of_run.net)
        config |= {} if named is None else {"begun_as": named}
    config["config_hash"] = config_hash(config)
    return Prepared(config, method, source, network, time.perf_counter() - began, begins)


def judged(stream: Stream, options: RunOptions) -> Stream:
    """The stream with the loss, the weights and the score that a run is asked for.

    Raises:
      UserError: as ``cljax.streams.with_objective``.
    """
    asked = _asked_objective(options)
    if not asked:
        return stream
    called = {n: v if n == "weights" else resolve.function(n, v) for n, v in asked.items()}
    return with_objective(stream, **called)


def _asked_objective(options: RunOptions) -> dict[str, Any]:
    """Of loss, weights and score those that a run is asked for."""
    values = {"loss": options.loss, "weights": options.weights, "score": options.score}
    return {name: value for name, value in values.items() if value is not None}


def _stopping(options: RunOptions, stream: Stream) -> dict[str, Any]:
    """The options of early stopping; none without patience."""
    if options.patience is None:
        return {}
    if stream.pretraining is not None:
        raise UserError(
            f"{stream.name} pretrains its first task and learns the others in one pass, so there "
            "is nothing to stop early; leave patience out."
        )
    return {"patience": options.patience, "restore_best": options.restore_best}


def _where_asked(stream: Stream, asked: Mapping[str, Any], stopping: Mapping[str, Any]) -> dict:
    """What a config says only of runs that ask for it, so that others have the hash they had."""
    entries = {
        "objective": described(stream.objective), "asked_objective": plain(asked),
        "stopping": dict(stopping),
    }  # fmt: skip
    return {name: entry for name, entry in entries.items() if entry}


def _began_with(start: Trained, seeds: Sequence[int]) -> dict[str, Any]:
    """What a config says of the run that another goes on from."""
    return {"start": digest_of_start(start, seeds), "started_from": origin_of(start)}


def _goes_on(start: Trained) -> str:
    """That a run did not begin anew."""
    learned = start.learned
    where = "" if start.folder is None else f" from {start.folder}"
    return f"It goes on{where} after the {learned.num_tasks} tasks of {learned.name}."


def _check_precision(precision: str) -> None:
    x64 = bool(jax.config.read("jax_enable_x64"))
    if (precision == "float64") != x64:
        raise UserError(
            f"precision is {precision} with jax_enable_x64={x64}, but the two must agree; call "
            "jax.config.update('jax_enable_x64', ...) first."
        )


def _with_recipe(options: RunOptions, recipe: Recipe) -> Any:
    """The options with the recipe's values where none were given."""
    given = {name: getattr(options, name) for name in OF_RECIPE}
    return options.replace(
        **{name: getattr(recipe, name) for name, value in given.items() if value is None}
    )


def _evaluations(options: RunOptions, learner: Learner, stream: Stream) -> tuple[Evaluation, ...]:
    """What the run is judged by: as asked, else as the method says, else by each predictor."""
    evaluations = tuple(options.evaluations or ()) or learner.evaluations
    evaluations = evaluations or tuple(
        Evaluation(name, name, stream.scenario)  # type: ignore[arg-type]
        for name in learner.predictors
        if name != "features"  # those are for readouts
    )
    if options.readout:
        evaluations += (Evaluation("readout", "features", "task", readout=Readout()),)
    return evaluations


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


def _origins(what: Any, recipe: Recipe, method: Method, options: RunOptions) -> dict[str, str]:
    """Where values come from: the recipe, a default, the object itself, the call, a sweep."""
    status = recipe.status if recipe.source else "default"
    named = isinstance(what, (Recipe, str))
    origins = dict.fromkeys(flat(method), "default" if named else "the method as it was made")
    origins |= dict.fromkeys((*recipe.method_options, *recipe.stream_options), recipe.status)
    given = {name: getattr(options, name) is not None for name in OF_RECIPE}
    origins |= {name: "given" if is_given else status for name, is_given in given.items()}
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
