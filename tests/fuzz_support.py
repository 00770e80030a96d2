"""Command lines and calls drawn by a seeded generator, and what comes of them."""

from __future__ import annotations

import contextlib
import inspect
import io
import signal
import traceback
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import cljax
from cljax.cli import command as cli
from cljax.cli import job as jobs
from cljax.methods import METHODS
from cljax.resolve import options_of
from cljax.streams import STREAMS

__all__ = [
    "Hang", "Outcome", "command_line", "defaults", "folders_of", "run_line", "within", "wrong_with",
]  # fmt: skip

# Exit codes: done, the user's mistake, all diverged, interrupted.
_CODES = (0, 2, 3, 75)
_VALUES = (
    "0", "1", "2", "3", "-1", "-0.5", "0.5", "1.5", "nan", "inf", "-inf", "1e-9", "1e400", "1e19",
    "99999999999999999999", "", " ", "x", "None", "none", "True", "false", "1,2", "1 2", "²", "é",
    "0x10", "1_0", "[1]", "--", "-", "sgd", "adam", "lower", "full", "vmap", "herding", "textbook",
    "random:steps=3", "mnemonics:lr=x", "/etc", "/dev/null", "../..", "~", "a/b", "no.module:make",
    "os:path", "json:loads", ":x", ".:x", "a:b:c", "mlp", "mlp:", "mlp:3", "mlp:0", "mlp:-3",
    "mlp:x", "conv", "resnet32:3", "s", "0s", "5s", "nans", "0/1", "5/2", "localhost:1,0/0",
)  # fmt: skip
_TINY = ("--samples-per-task", "10", "--net", "mlp:3", "--seeds", "1", "--batch-size", "5")
_RUN = tuple(name.replace("_", "-") for name in jobs.run_flags())
_SHORT = ("er", "finetune", "online", "ewc", "lwf", "mas")  # that compile quickly


class Outcome(NamedTuple):
    """What a command line, or a call, came to."""

    what: str
    code: int | str
    said: str


class Hang(BaseException):
    """A call that took too long; no handler of ours catches it."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises ``Hang`` where what is within takes longer."""

    def ring(number: int, frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def folders_of(folder: Path) -> None:
    """Makes what command lines and calls may name: ``run``, ``sweep``, ``other`` and ``file``."""
    (folder / "other").mkdir()
    (folder / "other" / "x.txt").write_text("x")
    (folder / "file").write_text("x")
    own = ["er", "mnist-rotations", "--num-tasks", "2", *_TINY]
    for rest in (["run", *own], ["sweep", *own, "--over", "lr=0.1,0.2"]):
        done = run_line([*rest, "--out", str(folder / rest[0])])
        assert done.code == 0, done


def command_line(rng: np.random.Generator, folder: Path, *, trains: bool = True) -> list[str]:
    """A command line: plausible names and flags, most with something wrong.

    Args:
      folder: as ``folders_of`` makes it.
      trains: some lines are right, and train; else none does.
    """
    pick: Callable[[Any], Any] = lambda among: among[int(rng.integers(len(among)))]
    folders = [str(folder / name) for name in ("run", "sweep", "other", "none", "file")]
    command = pick(["run"] * 8 + ["protocol"] * 6 + ["sweep"] * 4 + ["list", "data", "report",
                   "cite", "resume", "status", "merge", "docs", "word"])  # fmt: skip
    if command == "word":
        return [pick([*_VALUES, "--version", "-h", "ruin", "lists"]), *_some(rng, _VALUES, 1)]
    if command == "list":
        kinds = ("methods", "streams", "nets", "data", "recipes", "nests", "--help")
        return ["list", *_some(rng, kinds, 2), *_some(rng, _VALUES, 1)]
    if command == "data":
        names = ("mnist", "cifar100", "mnits", "--sample", "--licences", "--data-dir")
        return ["data", *_some(rng, (*names, *_VALUES), 3)]
    if command in ("report", "resume", "cite"):
        flags = ("--out", "--metric", "RA", "FWT", "--no-figures", "--keep", "--help", "lamaml")
        return [command, *_some(rng, folders, 2), *_some(rng, (*flags, *_VALUES), 2)]
    if command in ("status", "merge"):
        return ["sweep", command, *_some(rng, folders, 2)]
    if command == "docs":
        return ["docs", *_some(rng, (folders[-1], "--help", "-x"), 2)]
    return _of_run(rng, command, folder, pick, trains)


def _of_run(
    rng: np.random.Generator,
    command: str,
    folder: Path,
    pick: Callable[[Any], Any],
    trains: bool,
) -> list[str]:
    method, stream = pick(list(METHODS)), pick(list(STREAMS))
    if rng.random() < 0.7:  # one that has images here
        stream = pick([name for name in STREAMS if name.startswith(("mnist-", "split-mnist"))])
    tiny = [] if "num-tasks" not in _of(STREAMS, stream) else ["--num-tasks", "2", *_TINY]
    if rng.random() < 0.1:
        method, stream = pick([(pick(_VALUES), stream), (method, pick(_VALUES)), ("", "")])
    flags = list(tiny)
    options = {**dict.fromkeys(_RUN, str), **_of(METHODS, method), **_of(STREAMS, stream)}
    options |= {"sed": int, "replay-sise": int}
    for _ in range(int(rng.integers(0, 4))):
        name = pick(list(options))
        if name in ("distributed", "tensorboard"):  # other machines, another package
            continue
        value = pick(_VALUES) if rng.random() < 0.3 else pick(_likely(options[name]))
        flags += pick([[f"--{name}", value]] * 4 + [[f"--{name}={value}"], [f"--{name}"]])
    if command == "run":
        if rng.random() < 0.5 or not trains:  # one that is refused, so that few train
            flags += pick([["--lr", "-1"], ["--epochs", "0"], ["--seed", "3", "--seeds", "2"],
                           ["--keep", "x"], ["--segment-seconds", "nan"]])  # fmt: skip
        else:
            method = method if method in _VALUES else pick(_SHORT)
        return ["run", method, stream, *flags, "--out", str(folder / f"out-{rng.integers(10**9)}")]
    if command == "sweep":
        over = pick(("lr=0.1,0.2", "lr=", "lr", "=1", "nets=mlp", "batch-size=5,5", "lr=x,1", ""))
        return ["sweep", method, stream, *flags, "--over", over, "--plan"]
    return [command, method, stream, *flags]


def _some(rng: np.random.Generator, among: Any, most: int) -> list[str]:
    return [str(among[int(i)]) for i in rng.integers(len(among), size=int(rng.integers(most + 1)))]


def _of(factories: Any, name: str) -> dict[str, Any]:
    """The flags of a factory, and their types."""
    if name not in factories:
        return {}
    return {o.name.replace("_", "-"): o.type for o in options_of(factories[name])}


def _likely(kind: Any) -> tuple[str, ...]:
    """Values that the parser lets through, some of which cannot be."""
    kinds = set(typing.get_args(kind)) or {kind}
    if typing.get_origin(kind) is typing.Literal:
        return tuple(map(str, typing.get_args(kind)))
    if float in kinds:
        return ("0", "-1", "0.5", "1", "2", "nan", "inf", "1e30", "1e-9", "None")
    if int in kinds:
        return ("0", "1", "2", "3", "-1", "99999999999999999999", "1e3", "None")
    return _VALUES


def defaults(factory: Callable[..., Any]) -> dict[str, tuple[Any, ...]]:
    """The keyword arguments of a factory, each with its default as what suits."""
    if isinstance(factory, cljax.options.Options):
        return {name: (value,) for name, value in factory.options.items()}
    return {
        parameter.name: (parameter.default,)
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    }


def run_line(arguments: list[str], seconds: float = 120.0) -> Outcome:
    """Runs a command line in this process, with its output caught."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = "returned"
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with within(seconds):
                cli.main(arguments)
        except SystemExit as done:
            code = 0 if done.code is None else done.code
        except Hang:
            code = "hang"
        except BaseException as error:  # noqa: BLE001, reported with its place
            where = "".join(traceback.format_tb(error.__traceback__)[-3:])
            code = f"{type(error).__name__}: {error}\n{where}"
    jax.config.update("jax_enable_x64", False)  # which --precision float64 switches on
    return Outcome(" ".join(map(repr, arguments)), code, err.getvalue())


def wrong_with(outcome: Outcome) -> str | None:
    """What a user should not have seen, or None."""
    if outcome.code not in _CODES:
        return f"ended with {outcome.code}"
    last = outcome.said.strip().splitlines()[-1:] or [""]
    if outcome.code in (2, 3) and not (outcome.code == 3 and "cljax:" not in last[0]):
        if not last[0].startswith("cljax: ") or len(last[0]) > 1500:
            return "said no sentence last"
    for mark in ("Traceback", "a defect of ours", "<class ", " object at 0x", "<function"):
        if mark in outcome.said:
            return f"showed {mark}"
    return None
