"""The command ``cljax sweep``: a grid of settings and seeds, its status, and its merged table."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from cljax.cli import job as jobs
from cljax.cli.compiled import stored_programs
from cljax.cli.flags import parse
from cljax.errors import AT_ONCE, UserError, check_known

__all__ = ["main", "resume"]

_FLAGS: dict[str, tuple[Any, Any, str]] = {
    "over": (str | None, None, "NAME=V1,V2,...: the values of an option; give it several times"),
    "on": (Literal["validation", "test"], "validation", "images that settings are measured on"),
    "metric": (str, "RA", "what settings are ranked by"),
    "shard": (str, "0/1", "i/n: only every n-th lane from the i-th on, for array jobs"),
    "plan": (bool, False, "print the plan and stop"),
}
# What a sweep's folder does not decide for who goes on with it: where, and on which machines.
_OF_MACHINE = ("--out", "--shard", "--distributed", "--devices")
_SEEDS = "seeds of each setting: 1000 on, apart from those that runs report (0 on with --on test)"


def main(arguments: list[str]) -> int:
    """Runs ``cljax sweep`` and returns its exit code."""
    from cljax import sweep

    if arguments[:1] in (["status"], ["merge"]):
        if len(arguments) != 2:
            raise UserError(f"cljax sweep {arguments[0]} needs the folder of a sweep.")
        if arguments[0] == "merge":
            return _told(sweep.merge(arguments[1]))
        print(sweep.status(arguments[1]))
        return 0
    return _run(arguments)


def resume(folder: Path, arguments: list[str]) -> int:
    """Goes on with a sweep, from its folder alone; arguments may change how it runs.

    Of what the folder says only METHOD, STREAM and their options are taken, not where to write or
    which machines to join; code that it names is imported only with ``--trust``.
    """
    from cljax.runner.consent import check_consent
    from cljax.sweep.folders import config_of

    begun = config_of(folder).get("begun_as")
    if begun is None:
        raise UserError(
            f"The sweep in {folder} was begun with Python objects, so only Python can resume it: "
            "call cljax.sweep.run as before, with the same out."
        )
    again = begun.get("arguments") if isinstance(begun, dict) else None
    if not isinstance(again, list) or not all(isinstance(part, str) for part in again):
        raise UserError(
            f"{folder / 'sweep.json'} says in no way that is known how the sweep was begun; run it "
            "again in another folder."
        )
    own = [part for part in arguments if part != "--trust"]
    consent = functools.partial(check_consent, folder, trust="--trust" in arguments)
    return _run([*_without(again, *_OF_MACHINE), "--out", str(folder), *own], consent)


def _run(arguments: list[str], consent: Callable[..., None] | None = None) -> int:
    """Runs a sweep; ``consent`` refuses names of a user's own code, by what they are of."""
    import jax

    from cljax import sweep
    from cljax.runner.run import untold
    from cljax.sweep.layout import OF_EXECUTION

    over, rest = _over(arguments)
    if consent is not None:  # of what is run, before anything of it is resolved
        consent(rest[:2])
    flags = {**jobs.run_flags(), **_FLAGS}
    flags["seeds"] = (int, 5, _SEEDS)
    for name in ("tuned_by", "state", "start", "trust"):  # of a run
        del flags[name]
    job = jobs.job_of("sweep", rest, flags)
    if consent is not None:
        pairs = [pair.partition("=") for pair in over]
        swept = lambda option, sep: [
            value for name, _, listed in pairs if name == option for value in listed.split(sep)
        ]
        named = [job.flags.get(name) for name in ("loss", "score")]
        memory = job.recipe.method_options.get("memory")
        consent(named, [job.recipe.net, *swept("net", ";")], [memory, *swept("memory", ",")])
    options = jobs.options_of_run(job)
    jobs.allocate_for(options.net or job.recipe.net)
    index, count = _shard(job.flags["shard"])
    settings = sweep.grid(**_typed(job, over)) if over else [{}]
    of_plan = {name: v for name, v in options.options.items() if name not in OF_EXECUTION}
    plan = sweep.plan(
        job.recipe, None, settings, on=job.flags["on"], metric=job.flags["metric"],
        lanes_at_a_time=options.running.lanes_at_a_time, **of_plan,
    )  # fmt: skip
    print(plan, file=sys.stderr)
    if job.flags["plan"]:
        return 0
    keep = _without(rest, *_OF_MACHINE)
    again = {"arguments": [*keep, *(part for pair in over for part in ("--over", pair))]}
    out = job.flags["out"] or "auto"
    names = [lane.name for lane in plan.lanes]
    stored = stored_programs(job.flags["compile_cache"])
    with stored, jobs.shown(len(plan.lanes), job.flags, names) as progress:
        done = sweep.run(
            plan, out, shard=(index, count), progress=progress,
            running=options.running, command=again,
        )  # fmt: skip
    if done.exit_code == AT_ONCE:
        text = f"nothing of {done.path} is kept yet, so the same command starts anew"
        identities = [made.config["identity"] for made in plan.prepared]
        text = next((untold(identity) for identity in identities if "mark" in identity), text)
        print(f"cljax: interrupted; {text}.", file=sys.stderr)
        return done.exit_code
    if done.exit_code:
        print(f"cljax: interrupted and kept; `cljax resume {done.path}` goes on.", file=sys.stderr)
        return done.exit_code
    if jax.process_index() > 0:  # of several processes: the first one speaks
        return 0
    if done.results is None:
        print(f"{sweep.status(done.path)}\n  {done.path}")
        return 0
    code = _told(done)
    if code == 0 and done.config["on"] == "validation":
        best = done.best().setting
        base = _without(keep, "--on", "--metric", "--seeds", "--lanes-at-a-time")
        line = [*base, *(_flag(name, value) for name, value in best.items()), "--seeds 5"]
        line.append(f"--tuned-by {shlex.quote(str(done.path))}")
        print(f"\n  the best on tests, with other seeds: cljax run {' '.join(line)}")
    return code


def _told(done: Any) -> int:
    """Prints a sweep's table and where it is; returns the exit code."""
    print(done.table())
    print(f"\n  {done.path}")
    return 3 if done.diverged else 0


def _over(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The values of every --over, and the other arguments."""
    over, rest, waiting = [], [], False
    for argument in arguments:
        if waiting or argument.startswith("--over="):
            over.append(argument.removeprefix("--over="))
            waiting = False
        elif argument == "--over":
            waiting = True
        else:
            rest.append(argument)
    if waiting or any("=" not in pair for pair in over):
        raise UserError("--over needs NAME=V1,V2, such as --over alpha_init=0.05,0.1.")
    return over, rest


def _typed(job: jobs.Job, over: list[str]) -> dict[str, list[Any]]:
    """The values of each --over, of the type of the option."""
    from cljax.resolve import method as resolve_method
    from cljax.resolve import options_of

    known = options_of(resolve_method(job.recipe.method))
    types = {o.name: (o.type, o.default, "") for o in known}
    types |= {"net": (str, "", ""), "batch_size": (int, 1, ""), "epochs": (int, 1, "")}
    values = {}
    for pair in over:
        name, _, listed = pair.partition("=")
        name = name.replace("-", "_")
        check_known("option to sweep over", name, types)
        if name in values:
            raise UserError(f"--over {name} is there twice; give all its values at once.")
        separator = ";" if name == "net" else ","
        values[name] = [_value(name, types[name], text) for text in listed.split(separator)]
    return values


def _flag(name: str, value: Any) -> str:
    """An option and its value as ``cljax run`` takes them."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"


def _value(name: str, field: tuple[Any, Any, str], text: str) -> Any:
    """A value as the flag of its option would read it."""
    if field[0] is bool:
        check_known(f"value of {name}", text, ("True", "False"))
        return text == "True"
    return parse("cljax sweep", {name: field}, [f"--{name.replace('_', '-')}", text])[name]


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    try:
        result = int(index), int(count)
    except ValueError:
        raise UserError(f"--shard is {text}, but it must be i/n, such as 0/4.") from None
    if not 0 <= result[0] < result[1]:
        raise UserError(f"--shard is {text}, but it must be one of 0/n to n-1/n.")
    return result


def _without(arguments: list[str], *flags: str) -> list[str]:
    """Arguments less some flags and their values."""
    gone = [i for flag in flags for i, _ in _values(arguments, flag)]
    gone += [i + 1 for i in gone if "=" not in arguments[i]]
    return [argument for i, argument in enumerate(arguments) if i not in gone]


def _values(arguments: list[str], flag: str) -> list[tuple[int, str]]:
    """Where a flag stands among arguments, and its values; tyro takes ``_`` for ``-`` in it."""
    result = []
    for i, argument in enumerate(arguments):
        name, given, value = argument.partition("=")
        if name.replace("_", "-") == flag:
            following = arguments[i + 1] if i + 1 < len(arguments) else ""
            result.append((i, value if given else following))
    return result
