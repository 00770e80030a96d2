"""What a command line asks for: a recipe, from METHOD and STREAM, and the run's own flags.

METHOD, STREAM and the recipe are read first; the rest are flags made from their options and the
docstrings below these, parsed by tyro.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from cljax.cli import compiled
from cljax.cli.flags import parse
from cljax.engine.allocator import keep_freed_memory
from cljax.errors import UserError, check_path

__all__ = [
    "Flags", "Job", "allocate_for", "job_of", "join", "options_of_run", "run_flags",
    "running_flags", "running_of", "set_precision", "shown",
]  # fmt: skip


class Job(NamedTuple):
    """A parsed command line: a recipe, and the run's own flags."""

    recipe: Any
    flags: dict[str, Any]
    origins: dict[str, str]


Flags: TypeAlias = dict[str, tuple[Any, Any, str]]  # name -> (type, default, help)
_OF_OBJECTIVE = ("loss", "weights", "score")
_OF_RECIPE = ("net", "batch_size", "epochs", "entries")
_IN_CONFIG = (*_OF_RECIPE, "seeds", "eval_every", "online", "readout", "lanes", "loop", "precision")
# What changes no number, and what is written where; the rest of a run's flags do change numbers.
_RUNNING = ("lanes", "loop", "checkpoint_every", "keep", "segment_seconds", "segment",
            "lanes_at_a_time", "devices", "distributed", "shard", "plan",
            "compile_cache")  # fmt: skip
_RECORD = ("out", "id", "tuned_by", "tensorboard")
TRUST = (bool, False, "import the code (package.module:factory) that the folder names")
_DISTRIBUTED = (
    str | None,
    None,
    "HOST:PORT,I/N: this is process I of N; auto asks Slurm and its like",
)
_TENSORBOARD = (bool, False, "also write TensorBoard files (extra 'tensorboard')")


# Given in another form, or what the command line itself does.
_OTHERWISE = ("seeds", "progress")


def allocate_for(net: Any) -> None:
    """Memory that the library's networks which convolve free stays here; before JAX starts."""
    if str(net).startswith(("conv:", "cnn:", "resnet")):  # one's own may be small, and lose by it
        keep_freed_memory(large=True)


def run_flags() -> Flags:
    """The flags of a run: the fields of its options, and what only a command line has."""
    from cljax.runner.options import RunOptions

    listed = _flags_of(RunOptions())
    return {
        "seeds": (int, 5, "run seeds 0 to N-1"),
        "seed": (int | None, None, "run this one seed instead"),
        "recipe": (str | None, None, "SOURCE[:VARIANT], such as lamaml:reference or lamaml:paper"),
        **{name: flag for name, flag in listed.items() if name not in _OTHERWISE},
        "class_weights": (
            str | None,
            None,
            "weights of the classes, also where --weights is a method's own: balanced, or a "
            "text file of a number for each",
        ),
        "out": (str | None, None, "folder of the results; default runs/METHOD-STREAM-HASH"),
        "tuned_by": (
            str | None,
            None,
            "folder of the sweep that chose these values, for the record",
        ),
        "trust": TRUST,
        "tensorboard": _TENSORBOARD,
        "distributed": _DISTRIBUTED,
        "compile_cache": compiled.FLAG,
    }


def running_flags() -> Flags:
    """The flags of how a run is kept and cut up, for one that goes on; these change no result."""
    from cljax.engine.options import Running

    listed = _flags_of(Running())
    own = {"tensorboard": _TENSORBOARD, "distributed": _DISTRIBUTED, "trust": TRUST}
    return {**listed, **own, "compile_cache": compiled.FLAG}


def _flags_of(options: Any) -> Flags:
    from cljax.resolve import options_of

    listed = options_of(options)
    return {_flag(o.name): (o.type, o.default, _lower(o.help)) for o in listed}


def _flag(name: str) -> str:
    """The flag of an option of a run."""
    return "state" if name == "keep_state" else name


def _lower(text: str) -> str:
    """A sentence as the help of a flag: in small letters, without its end."""
    return text[:1].lower() + text[1:].removesuffix(".")


def job_of(command: str, arguments: list[str], own: Flags) -> Job:
    """METHOD STREAM and the recipe first, then every flag of method, stream and run."""
    from cljax import recipes
    from cljax.resolve import method as resolve_method
    from cljax.resolve import options_of, stream_source

    names = arguments[:2]
    if len(names) < 2 or any(name.startswith("-") for name in names):
        if {"-h", "--help"} & set(arguments):
            print(f"usage: cljax {command} METHOD STREAM [flags]\n\nGive both for their flags; "
                  "`cljax list` shows the names.")  # fmt: skip
            sys.exit(0)
        raise UserError(f"cljax {command} needs METHOD STREAM, such as lamaml mnist-rotations.")
    method, stream, rest = names[0], names[1], arguments[2:]
    method_options = options_of(resolve_method(method))
    stream_options = options_of(stream_source(stream))
    source, _, variant = (_flag_value(rest, "--recipe") or "").partition(":")
    recipe = recipes.recipe(method, stream, source or None, variant or None)

    # A method's own loss or weights keep their flag, and the run's are then Python's alone.
    taken = {option.name for option in (*method_options, *stream_options)} & set(_OF_OBJECTIVE)
    own = {name: flag for name, flag in own.items() if name not in taken}
    fields, given = dict(own), {}  # given: flag -> method or stream, its option's name
    for kind, options, values in (
        ("method", method_options, recipe.method_options),
        ("stream", stream_options, recipe.stream_options),
    ):
        for option in options:
            # Of an option that method and stream both have, such as order, the stream's.
            name = f"stream_{option.name}" if option.name in given else option.name
            if name in fields:
                raise UserError(
                    f"The {kind}'s option {option.name} has the name of another flag; rename it."
                )
            given[name] = kind, option.name
            fields[name] = option.type, values.get(option.name, option.default), option.help
    hints = _hints(recipe, fields, own, given)
    groups = _groups({"method": method, "stream": stream}, own, given)
    flags = parse(f"cljax {command} {method} {stream}", fields, rest, hints, groups)
    if flags["out"] is not None:
        check_path(out=flags["out"])
    typed = {a[2:].split("=")[0].replace("-", "_") for a in rest if a.startswith("--")}
    typed |= {name[3:] for name in typed if name.startswith("no_")}
    if {"seed", "seeds"} <= typed:
        raise UserError(
            f"--seeds is {flags['seeds']} and --seed is {flags['seed']}, but only one of them can "
            "be given: so many seeds from 0 on, or one."
        )
    origins = {}
    for name, (kind, option) in given.items():
        base = _stored(recipe, kind)
        origins[name] = (
            "command line" if name in typed else recipe.status if option in base else "default"
        )
    for name in _IN_CONFIG:
        given_here = name in typed or (name == "seeds" and "seed" in typed)
        base = recipe.status if name in _OF_RECIPE else "default"
        origins[name] = "command line" if given_here else base
    recipe = dataclasses.replace(
        recipe,
        method_options={o: flags[name] for name, (kind, o) in given.items() if kind == "method"},
        stream_options={o: flags[name] for name, (kind, o) in given.items() if kind == "stream"},
        **{name: flags[name] for name in _OF_RECIPE if flags[name] is not None},
    )
    if any(name in typed and kind == "method" for name, (kind, _) in given.items()):
        recipe = dataclasses.replace(recipe, status=f"{recipe.status}, changed")
    return Job(recipe, {n: value for n, value in flags.items() if n not in taken}, origins)


def _groups(
    names: Mapping[str, str], own: Mapping[str, Any], given: Mapping[str, tuple[str, str]]
) -> dict[str, list[str]]:
    """The flags of ``--help`` by title: of the method, of the stream, and of the run."""
    groups = {
        name: [flag for flag, (kind, _) in given.items() if kind == part]
        for part, name in names.items()
    }
    groups |= {"training": [name for name in own if name not in _RUNNING + _RECORD]}
    groups |= {"running": [name for name in own if name in _RUNNING]}
    groups |= {"results": [name for name in own if name in _RECORD]}
    return {title: flags for title, flags in groups.items() if flags}


def _stored(recipe: Any, kind: str) -> Mapping[str, Any]:
    return recipe.method_options if kind == "method" else recipe.stream_options


def _hints(
    recipe: Any,
    fields: Mapping[str, Any],
    own: Mapping[str, Any],
    given: Mapping[str, tuple[str, str]],
) -> dict[str, str]:
    """What a flag is if it is not given, and where that comes from."""
    hints = {
        name: f"(default: {_shown(fields[name][1])}, from {recipe.name})"
        for name, (kind, option) in given.items()
        if option in _stored(recipe, kind)
    }
    for name in _OF_RECIPE:
        if name in own and own[name][1] is None:
            hints[name] = f"(default: {_shown(getattr(recipe, name))}, from {recipe.name})"
    return hints


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def options_of_run(job: Job) -> Any:
    """The ``RunOptions`` of a job; switches double precision on before anything is built."""
    from cljax.runner.options import RunOptions

    flags = job.flags
    join(flags["distributed"])
    set_precision(flags["precision"])
    given = {name: flags[name] for name in RunOptions().options if name in flags}
    given["seeds"] = flags["seeds"] if flags["seed"] is None else [flags["seed"]]
    if flags.get("class_weights") is not None:
        if given.get("weights") is not None:
            raise UserError("--weights and --class-weights say the same; give one of them.")
        given["weights"] = _class_weights(flags["class_weights"])
    if given.get("start") is not None:
        from cljax.runner.run import load

        given["start"] = load(given["start"], trust=flags["trust"]).state
        if job.origins["seeds"] != "command line":
            given["seeds"] = given["start"].seeds
    options = RunOptions(**given, origins=job.origins, running=running_of(flags))
    if flags.get("tuned_by") is None:
        return options
    tuning = _tuning(job, flags["tuned_by"])
    origins = {name: origin for name, origin in job.origins.items() if name not in tuning["chosen"]}
    return options.replace(origins=origins, tuning=tuning)


def _class_weights(text: str) -> Any:
    """Balanced, or the numbers in a text file, which commas, spaces or lines keep apart."""
    if text == "balanced":
        return text
    check_path(class_weights=text)
    try:
        words = Path(text).expanduser().read_text("utf-8").replace(",", " ").split()
        return [float(word) for word in words]
    except OSError as error:
        raise UserError(
            f"--class-weights is {text}, but it must be balanced, or a file that can be read: "
            f"{error.strerror or error}."
        ) from error
    except ValueError as error:
        raise UserError(
            f"The file {text} of --class-weights must hold a number for each class and nothing "
            f"else: {error}."
        ) from error


def _tuning(job: Job, folder: str) -> dict[str, Any]:
    """How a sweep chose the values of this job, for its record.

    Nothing that the folder names is imported.

    Raises:
      UserError: unless it holds a finished sweep on validation images, of this method, whose best
        setting and other options these are.
    """
    from cljax import sweep
    from cljax.runner.config import plain
    from cljax.sweep.lanes import OF_RUN

    check_path(tuned_by=folder)
    result = sweep.load(folder)
    method = result.config["method"]
    if method != job.recipe.method:
        raise UserError(
            f"The sweep in {folder} tuned {method}, but this run is of {job.recipe.method}; leave "
            "--tuned-by out."
        )
    tuning = result.tuning()
    base = (result.config["base"] or {}).get("method_options", {})
    own = plain({**job.recipe.method_options, **{n: getattr(job.recipe, n) for n in OF_RUN}})
    for name, value in {**plain(base), **tuning["chosen"]}.items():
        if own.get(name) != value:
            chose = "chose" if name in tuning["chosen"] else "was made with"
            raise UserError(
                f"The sweep in {folder} {chose} {name}={value}, but this run has "
                f"{name}={own.get(name)}; take that value, or leave --tuned-by out."
            )
    return tuning


def join(text: str | None) -> None:
    """Joins the processes of a run that spans several, before anything touches a device."""
    if text is None:
        return
    import jax

    if text == "auto":
        jax.distributed.initialize()
        return
    result = re.fullmatch(r"([^,]+:\d+),(\d+)/(\d+)", text)
    if result is None or int(result[2]) >= int(result[3]):
        raise UserError(
            f"--distributed is {text}, but it must be HOST:PORT,I/N with I from 0 to N-1, or auto."
        )
    jax.distributed.initialize(result[1], int(result[3]), int(result[2]))


def set_precision(precision: str) -> None:
    """Switches double precision on where a run asks for it, before anything is built."""
    if precision == "float64":
        import jax

        jax.config.update("jax_enable_x64", True)


def _flag_value(arguments: list[str], flag: str) -> str | None:
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag:
            return arguments[i + 1] if i + 1 < len(arguments) else None
    return None


@contextlib.contextmanager
def shown(count: int, flags: dict[str, Any], names: Sequence[str] = ()):
    """Progress as the flags ask for it."""
    from cljax.runner import progress

    with contextlib.ExitStack() as stack:
        show = stack.enter_context(progress.bar(count, names))
        if flags["tensorboard"]:
            folder = Path(flags["out"] or "runs") / "tensorboard"
            show = stack.enter_context(progress.tensorboard(folder, show))
        yield show


def running_of(flags: dict[str, Any]) -> Any:
    """How a run is kept and cut up, by its flags."""
    from cljax.engine.options import Running

    named = {name: _flag(name) for name in Running().options}
    return Running(**{name: flags[flag] for name, flag in named.items() if flag in flags})
