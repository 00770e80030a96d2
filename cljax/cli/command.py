"""The command ``cljax``: run, resume, predict, sweep, list, data, protocol, report, cite, docs.

Exit codes: 0 done, 2 the user's mistake (one sentence
on standard error), 3 every seed (every lane of a sweep) diverged, so that there are no numbers, 75
interrupted and resumable, 130 interrupted at once or with nothing kept, 1 a defect of ours.
"""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from cljax.cli import terminal
from cljax.cli.compiled import stored_programs
from cljax.cli.flags import parse
from cljax.cli.job import (
    allocate_for,
    job_of,
    join,
    options_of_run,
    run_flags,
    running_flags,
    running_of,
    set_precision,
    shown,
)
from cljax.engine.allocator import keep_freed_memory
from cljax.errors import AT_ONCE, Diverged, Interrupted, UserError, check_known
from cljax.version import __version__

__all__ = ["main"]

COMMANDS = {
    "run": "run METHOD STREAM [flags]   train, test, leave a folder of results",
    "resume": "resume DIR [--trust]        go on with an interrupted run or sweep",
    "predict": "predict DIR IMAGES [flags]  labels of new images, by a finished run",
    "sweep": "sweep METHOD STREAM --over NAME=V1,V2 [flags]   try values of options\n"
    "  cljax sweep status DIR            how far it is; merge DIR: gather shards",
    "list": "list [KIND] [FILTER]        methods, streams, nets, data, recipes, ...",
    "data": "data NAME ...               where data sets are, their sizes, licences",
    "protocol": "protocol METHOD STREAM      the paragraph for a paper",
    "report": "report DIR ...              a page about runs and sweeps, with tables",
    "cite": "cite METHOD|STREAM|DIR ...  BibTeX of what was used",
    "docs": "docs OUT                    guides and reference as HTML (extra 'docs')",
}
USAGE = "usage: cljax COMMAND ...\n\n" + "\n".join(f"  cljax {line}" for line in COMMANDS.values())
FIRST = """cljax: continual learning in JAX. First, with the digits that come with it:

  cljax run er mnist-rotations --sample --num-tasks 5 --samples-per-task 200 \\
      --seeds 3 --out runs/first     train and test, under a minute
  cljax report runs/first            a page about it, runs/first/report.html

Then:

  cljax list methods                 also streams, nets, data, recipes
  cljax run METHOD STREAM --help     all flags, their values and origins
  cljax --help                       all commands"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line and exits."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    terminal.prepare()
    keep_freed_memory()
    try:
        code = _done(arguments)
    except Diverged as error:
        code = terminal.say(str(error), 3)
    except UserError as error:
        code = terminal.say(str(error), 2)
    except Interrupted as stopped:
        code = terminal.say(str(stopped), stopped.code)
    except KeyboardInterrupt:
        terminal.say("interrupted; the same command goes on from what it kept.", AT_ONCE)
        terminal.leave(AT_ONCE)
    except BrokenPipeError:  # its reader has enough, such as `head`
        terminal.give_up_output()
        code = 0
    except Exception as error:  # noqa: BLE001, told as what it is
        code = terminal.defect(error)
    sys.exit(code)


def _done(arguments: list[str]) -> Any:
    """The exit code of a command, all its output written."""
    try:
        code = _dispatch(arguments)
    except SystemExit as done:  # of help
        code = done.code
    sys.stdout.flush()
    return code


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        print(FIRST)
        return 0
    if arguments[0] in ("-h", "--help"):
        print(f"{USAGE}\n\nAdd --help to a command for its flags.")
        return 0
    if arguments[0] == "--version":
        print(f"cljax {__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    check_known("command", command, COMMANDS)
    return {
        "run": _run,
        "resume": _resume,
        "predict": _predict,
        "sweep": _sweep,
        "list": _list,
        "data": _data,
        "protocol": _protocol,
        "report": _report,
        "cite": _cite,
        "docs": _docs,
    }[command](rest)


def _run(arguments: list[str]) -> int:
    from cljax.runner.prepare import seeds_of
    from cljax.runner.run import run

    job = job_of("run", arguments, run_flags())
    options = options_of_run(job)
    options = options.replace(out=options.out or "auto")
    allocate_for(options.net or job.recipe.net)
    stored = stored_programs(job.flags["compile_cache"])
    with stored, shown(len(seeds_of(options.seeds)), job.flags) as progress:
        began = time.perf_counter()
        done = run(job.recipe, **options.replace(progress=progress).options)
    return _told(done, began)


def _predict(arguments: list[str]) -> int:
    from cljax.cli import predict

    return predict.main(arguments)


def _sweep(arguments: list[str]) -> int:
    from cljax.cli import sweep

    return sweep.main(arguments)


def _report(arguments: list[str]) -> int:
    from cljax.cli import report

    return report.report(arguments)


def _cite(arguments: list[str]) -> int:
    from cljax.cli import report

    return report.cite(arguments)


def _list(arguments: list[str]) -> int:
    from cljax.cli import listing

    return listing.names(arguments)


def _data(arguments: list[str]) -> int:
    from cljax.cli import listing

    return listing.data_sets(arguments)


def _docs(arguments: list[str]) -> int:
    from cljax.cli import site

    return site.docs(arguments)


def _resume(arguments: list[str]) -> int:
    from cljax.runner import artefacts
    from cljax.runner.run import resume

    if {"-h", "--help"} & set(arguments):
        arguments = ["DIR", *arguments]
    if not arguments or arguments[0].startswith("-"):
        raise UserError("cljax resume needs the folder of an interrupted run or sweep.")
    folder, began = artefacts.place(arguments[0]), time.perf_counter()
    if (folder / "sweep.json").exists():
        from cljax.cli import sweep

        return sweep.resume(folder, arguments[1:])
    flags = parse(f"cljax resume {folder}", running_flags(), arguments[1:])
    seeds, precision = [], "float32"
    if (folder / "config.json").exists() and not (folder / "results.json").exists():
        stored = artefacts.config_of(folder)
        seeds, precision = stored["seeds"], stored["precision"]
        allocate_for(stored.get("net"))
    join(flags["distributed"])
    set_precision(precision)
    stored = stored_programs(flags["compile_cache"])
    with stored, shown(len(seeds), {**flags, "out": str(folder)}) as progress:
        running, trust = running_of(flags), flags["trust"]
        done = resume(folder, progress=progress, running=running, trust=trust)
    return _told(done, began)


def _told(done: Any, began: float) -> int:
    """Prints what a run found and where it is."""
    import jax

    if jax.process_index() > 0:  # of several processes: the first one speaks
        return 0
    if done.resumed:
        print(f"Finished before, stored in {done.path}.\n")
    print(done.table())
    spent = done.results["time"]
    print(f"\n  {done.path}")
    if {"compile_s", "train_s", "eval_s"} <= spent.keys():  # lanes of a sweep share theirs
        print(
            f"  {time.perf_counter() - began:.1f} s; the run compiled for "
            f"{spent['compile_s']:.1f} s, trained for {spent['train_s']:.1f} s and tested for "
            f"{spent['eval_s']:.1f} s, summed over threads."
        )
    return 3 if done.diverged else 0


def _protocol(arguments: list[str]) -> int:
    from cljax.references.protocol import paragraph
    from cljax.runner.prepare import prepare

    job = job_of("protocol", arguments, run_flags())
    prepared = prepare(job.recipe, None, options_of_run(job))
    print(textwrap.fill(paragraph(prepared.config), 88))
    return 0
