"""The plan of a sweep: its lanes, grouped by what needs a program of its own, and their cost."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cljax import keys, metrics, recipes, resolve, tree
from cljax.checks import check_method, check_network, model_of
from cljax.engine.bundles import resolve_lanes
from cljax.errors import UserError, check_known, check_positive, given, in_words
from cljax.method import Method
from cljax.objectives import name_of
from cljax.options import flat, outline, real_options
from cljax.recipes import Recipe
from cljax.runner.config import canonical
from cljax.runner.named import begun_as
from cljax.runner.options import RunOptions, options_from
from cljax.runner.prepare import Prepared, judged, prepare
from cljax.runner.results import flops
from cljax.streams.base import Stream, on_validation
from cljax.streams.base import plan as steps
from cljax.streams.options import StreamSource
from cljax.sweep.lanes import OF_RUN, Lane, On, duration, is_data, label, lanes_of, written
from cljax.types import Learner

__all__ = ["OF_EXECUTION", "Plan", "plan"]

# Options of a run that a sweep takes when it is run, or decides by itself.
OF_EXECUTION = ("out", "progress", "running", "start", "tuning")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep that has not begun; printable."""

    config: Mapping[str, Any]
    lanes: tuple[Lane, ...]
    prepared: tuple[Prepared, ...]  # of each lane
    groups: tuple[tuple[int, ...], ...]  # numbers of the lanes that share programs
    stream: Stream
    state_bytes: int  # of one lane
    lanes_at_a_time: int
    flops: float | None  # of all lanes

    def __str__(self) -> str:
        settings = len({label(lane.setting) for lane in self.lanes})
        seeds = len({lane.seed for lane in self.lanes})
        programs = f"{len(self.groups)} compiled program{'s'[: len(self.groups) > 1]}"
        lines = [
            f"{len(self.lanes)} lanes ({settings} settings, {seeds} seeds), {programs}, "
            f"{self.state_bytes / 1e6:.1f} MB of state a lane, {self.lanes_at_a_time} at a time",
            f"estimated {duration(_estimate(self.flops))} of training, beside compiling and testing"
            if self.flops
            else "no estimate of the time: this method does not state its work",
        ]
        return ", ".join(lines)


def plan(
    what: Recipe | Method | type[Method] | str,
    stream: Stream | StreamSource | str | None,
    settings: Sequence[Mapping[str, Any]],
    *,
    on: On = "validation",
    metric: str = "RA",
    recipe: Recipe | str | None = None,
    lanes_at_a_time: int | None = None,
    **options: Any,
) -> Plan:
    """Lays out a sweep.

    Args:
      what: a recipe, or a method by name, as an object or its class.
      stream: a ``Stream``, a ``StreamSource`` or its name; not needed with a recipe.
      settings: values of the method's options, or of net, batch_size and epochs; with a ``seed``
        in each, those are the lanes, else each goes with every one of ``seeds``.
      on: measure on the validation images of each seed, or on tests, which choose nothing.
      metric: what settings are ranked by.
      recipe: where the other options come from, itself or SOURCE[:VARIANT]; None: for a method by
        name its pair's own, or defaults; for an object what it was made with.
      lanes_at_a_time: None: what fits.
      **options: fields of ``cljax.runner.options.RunOptions``, such as seeds (how many: from 1000
        on, from 0 on with on="test"; or which), entries, lanes or precision.

    Raises:
      UserError: for anything the caller can put right, in one sentence.
    """
    asked = options_from("cljax.sweep.plan", options, less=OF_EXECUTION)
    asked = asked.replace(entries=asked.entries or "diagonal-last")
    _check(on, metric, asked, recipe, lanes_at_a_time)
    stream = resolve.open_unlisted(stream)
    base, base_method, source = _resolve(what, stream, recipe)
    source = judged(source, asked)  # what all lanes are run on
    lanes = lanes_of(settings, asked.seeds, on)
    _check_settings(lanes, base, base_method)
    streams = {lane.seed: _tested(source, lane.seed, on) for lane in lanes}
    prepared = [_prepared(lane, base, base_method, streams[lane.seed], asked) for lane in lanes]
    if isinstance(what, (Recipe, str)) or recipe is not None:
        prepared = [_of_recipe(made, base) for made in prepared]
    groups = _groups(prepared)
    for made in (prepared[group[0]] for group in groups):
        _check_measured(metric, made)
    for made in (prepared[group[0]] for group in groups):
        model = model_of(made.net, made.stream.num_classes)
        check_network(model, made.stream.example, made.stream.num_classes, made.stream.name)
    identity = [made.config["config_hash"] for made in prepared] + [lane.name for lane in lanes]
    state_bytes = max(_state_bytes(prepared[group[0]]) for group in groups)
    named = isinstance(what, (Recipe, str))
    score = name_of(source.objective.score)
    swept = [value for lane in lanes for value in lane.setting.values()]
    config = {
        "kind": "sweep",
        "method": base.method if named else prepared[0].method.name,  # a lambda has no name
        "stream": source.name,
        "on": on,
        "metric": metric,
        **({} if score == "accuracy" else {"score": score}),
        "over": list(dict.fromkeys(name for lane in lanes for name in lane.setting)),
        "lanes": [
            {"setting": {name: written(v) for name, v in lane.setting.items()}, "seed": lane.seed}
            for lane in lanes
        ],
        "hashes": [made.config["config_hash"] for made in prepared],  # of each lane
        "base": _base(base, what, stream, asked) if all(map(is_data, swept)) else None,
        "sweep_hash": hashlib.sha256("".join([*identity, on, metric]).encode()).hexdigest(),
        "begun_as": None,
    }
    work = [_work(made) for made in prepared]
    return Plan(
        config, tuple(lanes), tuple(prepared), groups, source, state_bytes,
        lanes_at_a_time or _fitting(state_bytes, len(lanes), prepared[0].config["lanes"]),
        None if None in work else float(sum(w for w in work if w is not None)),
    )  # fmt: skip


def _check(
    on: Any, metric: Any, options: RunOptions, recipe: Any, lanes_at_a_time: int | None
) -> None:
    """Raises UserError for a choice that is none, or a metric of entries that are not filled."""
    check_known("on", on, ("validation", "test"))
    check_known("metric", metric, metrics.NAMES)
    if recipe is not None and not isinstance(recipe, (Recipe, str)):
        raise UserError(
            f"recipe is {in_words(recipe)}, but it must be a Recipe or SOURCE[:VARIANT]."
        )
    if not metrics.evaluated(metric, str(options.entries)):
        raise UserError(
            f"The metric {metric} needs entries={metrics.entries_of(metric)} of the accuracy "
            f"matrix, but entries is {options.entries}; change it."
        )
    check_positive(**given(lanes_at_a_time=lanes_at_a_time))


def _check_measured(metric: str, made: Prepared) -> None:
    """Raises UserError for a metric that a run would leave out, with the reason."""
    config, num_tasks = made.config, made.stream.num_tasks
    row = np.zeros((1, num_tasks))
    whole = metrics.compute(
        np.zeros((num_tasks + 1, num_tasks)), np.ones(num_tasks), config["unmeasured"]
    )
    online = metrics.compute_online(
        row[:, :1] if config["online"] else None, [1], [row] if config["eval_every"] else []
    )
    absent = {**whole.absent, **online.absent, **config["unmeasured"]}
    if metric in absent:
        raise UserError(
            f"The metric {metric} would be absent from every run of {config['method']['name']}, so "
            f"it ranks no setting: {absent[metric]}"
        )


def _check_settings(lanes: Sequence[Lane], base: Recipe, method: Method) -> None:
    """Raises UserError for a setting of an option that neither method nor run has."""
    known = {*flat(method), *OF_RUN}
    for name in dict.fromkeys(name for lane in lanes for name in lane.setting):
        check_known(f"option of {base.method}", name, known)


def _prepared(
    lane: Lane, base: Recipe, base_method: Method, stream: Stream, options: RunOptions
) -> Prepared:
    """A lane's run, with its setting in place of the base's values."""
    of_method = {name: value for name, value in lane.setting.items() if name not in OF_RUN}
    method = resolve.changed(base_method, **{**base.method_options, **of_method})
    of_run = {name: getattr(base, name) for name in OF_RUN}
    of_run |= given(**{name: getattr(options, name) for name in OF_RUN})
    of_run |= {name: value for name, value in lane.setting.items() if name in OF_RUN}
    origins = {**(options.origins or {}), **dict.fromkeys(lane.setting, "sweep")}
    return prepare(method, stream, options.replace(seeds=[lane.seed], origins=origins, **of_run))


def _of_recipe(made: Prepared, base: Recipe) -> Prepared:
    """A lane whose other options are a recipe's, and says so."""
    told = {"name": base.name, "status": f"{base.status}, swept", "notes": base.notes}
    return made._replace(config={**made.config, "recipe": told, "notices": []})


def _base(recipe: Recipe, what: Any, stream: Any, options: RunOptions) -> Any:
    """The recipe's fields, if all of the sweep can be told by names and values."""
    net = recipe.net if options.net is None else options.net
    named = isinstance(what, (Recipe, str)) and not isinstance(stream, Stream)
    if not named or not isinstance(net, str):
        return None
    of_run = given(batch_size=options.batch_size, epochs=options.epochs)
    return begun_as(recipe.replace(**of_run), net)


def _resolve(what: Any, stream: Any, recipe: Recipe | str | None) -> tuple[Recipe, Method, Stream]:
    """The base recipe, the method with its defaults, and the stream."""
    if isinstance(what, Recipe):
        recipe, stream = what, what.stream if stream is None else stream
        method = resolve.method(what.method)
    elif isinstance(what, str):
        method = resolve.method(what)
    else:
        made: Any = what() if isinstance(what, type) and issubclass(what, Method) else what
        check_method(made)
        method = made
    name = what if isinstance(what, str) else method.name
    if isinstance(recipe, str):
        source, _, variant = recipe.partition(":")
        recipe = recipes.recipe(name, resolve.stream_name(stream), source, variant or None)
    if stream is None:
        raise UserError(f"A sweep of {name} needs a stream; name one, or pass a recipe.")
    named, of = name, resolve.stream_name(stream)
    # By name with the recipe of its pair, as ``cljax.run`` takes it; an object as it is.
    by_name = recipes.default(named, of) if isinstance(what, str) else Recipe(named, of)
    base = recipe or by_name
    if isinstance(stream, Stream):
        return base, method, stream
    if isinstance(stream, StreamSource):
        base = base.on(stream)
    return base, method, resolve.stream(of, **base.stream_options)


def _tested(stream: Stream, seed: int, on: On) -> Stream:
    return on_validation(stream, seed) if on == "validation" else stream


def _groups(prepared: Sequence[Prepared]) -> tuple[tuple[int, ...], ...]:
    """Lanes whose configs differ only in real options, seed and validation images."""
    groups: dict[str, list[int]] = {}
    for i, made in enumerate(prepared):
        real = dict.fromkeys(real_options(made.method))
        own = {**made.config, "seeds": None, "stream": None}
        own["method"] = {"name": made.method.name, "options": outline(made.method)}
        own["identity"] = _without(made.config["identity"], real)
        names = ("method", "net", "batch_size", "epochs", "entries", "evaluations", "lanes",
                 "identity")  # fmt: skip
        groups.setdefault(canonical({name: own[name] for name in names}), []).append(i)
    return tuple(tuple(group) for group in groups.values())


def _without(identity: Mapping[str, Any], real: Mapping[str, Any]) -> dict[str, Any]:
    """What names do not tell of a lane's program: less its real options and its stream."""
    parts = {name: part for name, part in identity.items() if name != "stream"}
    method = dict(parts.pop("method", {}))
    kept = {name: v for name, v in method.pop("options", {}).items() if name not in real}
    for name, value in kept.items():  # a penalty or a memory of one's own, with options as well
        if isinstance(value, Mapping) and "attributes" in value:
            rest = {key: v for key, v in value["attributes"].items() if key not in real}
            kept[name] = {**value, "attributes": rest}
    return {**parts, "method": {**method, **({"options": kept} if kept else {})}}


def _state_bytes(made: Prepared) -> int:
    """Bytes of one lane's state."""
    learner = _learner(made)
    return tree.size(jax.eval_shape(learner.init, jax.eval_shape(lambda: keys.purpose(0, "init"))))


def _learner(made: Prepared) -> Learner:
    model = made.net(made.stream.num_classes)
    return made.method.bind(model, made.stream.spec(made.config["batch_size"]))


def _work(made: Prepared) -> float | None:
    """Floating-point operations of a lane, by the length of its plan."""
    stream = made.method.arrange(made.stream)
    rows = steps(stream, made.config["seeds"][0], made.config["batch_size"], made.config["epochs"])
    return flops(_learner(made), made.net(stream.num_classes), len(rows.current))


def _fitting(state_bytes: int, num: int, policy: str) -> int:
    """Lanes at a time: those of a program, by the device's memory, or under way in threads."""
    if resolve_lanes(policy) not in ("vmap", "map"):
        return min(num, 8)
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 4 << 30)
    # The state, the one being made of it, and as much again for what an update needs.
    return max(1, min(num, int(0.6 * memory) // (4 * state_bytes)))


def _estimate(flops: float) -> float:
    """Seconds for so much work, at the part of a matrix product's speed that updates reach."""
    from jax import numpy as jnp

    a = jnp.ones((512, 512), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    best = min(_timed(lambda: product(a).block_until_ready()) for _ in range(10))
    return flops / (0.4 * 2 * 512**3 / best)


def _timed(fn: Callable[[], Any]) -> float:
    began = time.perf_counter()
    fn()
    return time.perf_counter() - began
