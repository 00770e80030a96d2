"""``run``: the one runner. The command, scripts and notebooks all make the same artefacts with it.

prepare  ->  learn  ->  metrics  ->  files
"""

from __future__ import annotations

import inspect
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, ParamSpec, Protocol

import jax
import numpy as np

from cljax.checks import check_progress
from cljax.engine.learn import Checkpoints, Event, History, Hooks, learn
from cljax.engine.options import Running, check_running
from cljax.engine.signals import signals
from cljax.errors import Diverged, Interrupted, UserError, check_known
from cljax.evaluation.again import Trained
from cljax.method import Method
from cljax.options import Options, documentation
from cljax.recipes import Recipe
from cljax.references import cite, protocol
from cljax.runner import artefacts, display
from cljax.runner.answers import Answers
from cljax.runner.config import since
from cljax.runner.options import RunOptions, options_from, training_of
from cljax.runner.prepare import Prepared, prepare
from cljax.runner.progress import Shown, journal, shown
from cljax.runner.remade import remade
from cljax.runner.results import results_of
from cljax.runner.settings import decisive
from cljax.runner.snapshots import keep
from cljax.runner.trained import keep_states
from cljax.storage.checkpoint import FORMAT, newest_place
from cljax.storage.files import folder_name
from cljax.streams.base import Stream, rows_used
from cljax.streams.options import StreamSource
from cljax.types import PyTree
from cljax.update_rules.stored import save_rule

__all__ = ["Run", "checkpoints_of", "load", "resume", "run", "untold"]

_BEGUN = ("config.json", "metrics.jsonl", "manifest")  # of a run before its first update


@dataclass(frozen=True)
class Run(Answers):
    """A finished run: what its folder holds, its final states among it."""

    config: Mapping[str, Any]
    results: Mapping[str, Any]
    path: Path | None = None
    states: tuple[PyTree, ...] = ()
    resumed: bool = False  # True: read back, not run now
    prepared: Prepared | None = field(default=None, repr=False)  # what it was made of
    trust: bool = field(default=False, repr=False)  # whether code that its folder names may run

    def __repr__(self) -> str:
        return display.line(self.results, self.path)

    def _repr_html_(self) -> str:
        return display.html(self.results, self.accuracy_matrix())

    @property
    def diverged(self) -> bool:
        """Whether all seeds diverged, so that there are no numbers."""
        return all(step is not None for step in self.results["diverged"])

    def metric(self, name: str) -> np.ndarray:
        """Values of a metric, one a seed, as fractions.

        Raises:
          UserError: if the metric was not computed, with the reason.
        """
        if isinstance(name, str) and name in self.results["absent"]:
            reason = self.results["absent"][name].rstrip(".")
            raise UserError(f"The metric {name} is absent: {reason}.")
        check_known("metric", name, self.results["metrics"])
        return np.array(self.results["metrics"][name]["values"], float)

    def accuracy_matrix(self, name: str | None = None) -> np.ndarray:
        """[S, T+1, T] of an evaluation, the headline's by default; NaN: not evaluated."""
        evaluations = self.results["evaluations"]
        name = str(self.config["evaluations"][0]["name"]) if name is None else name
        check_known("evaluation", name, evaluations)
        return np.array(evaluations[name]["accuracy_matrix"], float)

    def confusion_matrix(self) -> np.ndarray:
        """[S, C, C] counts of the tests after the last task, by the headline evaluation.

        Rows are their classes, columns the classes that were predicted; where each seed has its own
        class order, both are in that order. Of a seed that diverged all are 0. Those after earlier
        tasks are in ``kept.npz``, see ``cljax.runner.snapshots``.

        Raises:
          UserError: where they were not counted: a readout, or more than 200 classes.
        """
        counts = self.results.get("confusion")
        if counts is None:
            raise UserError(
                "This run has no confusion matrix: all its seeds diverged, its headline is a "
                "readout, the stream has more than 200 classes, or it is of an earlier version."
            )
        classes = self.config["stream_facts"]["num_classes"]
        none = np.zeros((classes, classes), np.int64)
        return np.stack([none if own is None else np.array(own, np.int64) for own in counts])

    def table(self, form: Literal["text", "latex", "csv"] = "text") -> str:
        """The metrics in percent with 95 % intervals, and what was published.

        Args:
          form: "text"; "latex" for the package booktabs; "csv", as fractions with all digits.

        Raises:
          UserError: for another form.
        """
        check_known("form of a table", form, ("text", "latex", "csv"))
        if form == "text":
            changed = since(self.config) if self.resumed else ()
            return protocol.table(self.config, self.results, changed)
        from cljax.references import tables

        if form == "latex":
            return tables.latex([tables.metrics(self.results)])
        return tables.as_csv(tables.CSV_HEAD, tables.metric_rows(self._name(), self.results))

    def cite(self, form: Literal["bibtex", "keys"] = "bibtex") -> str:
        """What to cite: method, penalty, exemplars, recipe, stream and images, each entry once.

        Args:
          form: "bibtex", or "keys" for a line of the entries' keys.

        Raises:
          UserError: for another form.
        """
        check_known("form of a citation", form, ("bibtex", "keys"))
        keys = cite.keys_of_config(self.config)
        return cite.bibtex(keys) if form == "bibtex" else ", ".join(keys)

    def protocol(self) -> str:
        """The paragraph for a paper that says how these numbers were made."""
        return protocol.paragraph(self.config)

    def _name(self) -> str:
        return _folder_name(self.config) if self.path is None else self.path.name


P = ParamSpec("P")


class _RunFunction(Protocol[P]):
    """``run`` with the fields of its options as keywords."""

    def __call__(
        self,
        what: Recipe | Method | str,
        stream: Stream | StreamSource | str | None = None,
        *args: P.args,
        **options: P.kwargs,
    ) -> Run: ...


def _with_keywords_of(
    options: Callable[P, RunOptions],
) -> Callable[[Callable[..., Run]], _RunFunction[P]]:
    """Shows the fields of a run's options as the keywords of a function that passes them on."""

    def dress(function: Any) -> Any:
        first = list(inspect.signature(function).parameters.values())[:-1]
        keywords = inspect.signature(options).parameters.values()
        function.__signature__ = inspect.Signature([*first, *keywords], return_annotation="Run")
        if function.__doc__:  # not under -OO
            function.__doc__ += "\n    ".join(["Options:", *_listed(RunOptions())]) + "\n"
        return function

    return dress


def _listed(options: Options) -> list[str]:
    """A line of each option, as in a docstring."""
    helps = documentation(type(options))
    return [f"  {name}: {helps.get(name, '')}" for name in options.options]


@_with_keywords_of(RunOptions)
def run(
    what: Recipe | Method | str,
    stream: Stream | StreamSource | str | None = None,
    **options: Any,
) -> Run:
    """Runs a recipe, or a method on a stream, for several seeds.

    With ``out``, what is done is kept: after an interruption, or a kill, the same call goes on
    from the last checkpoint and gives the bits of an unbroken run.

    Args:
      what: a ``Recipe``, a ``Method``, or a method's name.
      stream: a ``Stream``, a ``StreamSource`` or its name; not needed with a recipe.
      **options: the fields of ``cljax.runner.options.RunOptions``, listed below.

    Raises:
      UserError: for anything the caller can put right, in one sentence.
      Diverged: if the only seed's loss or parameters are no longer finite.
      Interrupted: by SIGINT or SIGTERM with ``out``, once all is kept.

    """
    asked = options_from("cljax.run", options)
    if asked.start is not None:
        asked = _with_start(asked, anew="seeds" not in options)
    prepared = prepare(what, stream, asked)
    with shown(asked.progress, len(prepared.config["seeds"])) as progress:
        if asked.out is None:
            history, results = _learn(prepared, progress, asked.running, None)
            return Run(prepared.config, results, None, history.states, prepared=prepared)
        out = Path("runs") / _folder_name(prepared.config) if asked.out == "auto" else asked.out
        return _run_in(artefacts.place(out), prepared, progress, asked.running)


def _with_start(asked: RunOptions, *, anew: bool) -> RunOptions:
    """The options with the states to go on from, and with their seeds if none were given."""
    start = asked.start
    if isinstance(start, (str, Path)):
        start = load(start).state
    seeds = start.seeds if anew and isinstance(start, Trained) else asked.seeds
    return asked.replace(start=start, seeds=seeds)


def _run_in(
    folder: Path,
    prepared: Prepared,
    progress: Callable[[Event], None] | None,
    running: Running,
) -> Run:
    """Runs what is prepared in a folder, or reads it back, or goes on with it."""
    config = prepared.config
    if artefacts.finished(folder, config):
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # of a kill at the very end
        return _read_back(folder, prepared)
    if jax.process_index() > 0:  # of several: the first one writes
        checkpoints = checkpoints_of(config, folder, running)
        history, results = _learn(prepared, progress, running, checkpoints)
        return Run(config, results, folder, history.states, prepared=prepared)
    with artefacts.claim(folder):
        if artefacts.finished(folder, config):  # by the process that held it until now
            return _read_back(folder, prepared)
        checkpoints = checkpoints_of(config, folder, running)
        new = not (folder / "config.json").exists()
        try:
            history, results = _kept_run(folder, prepared, progress, running, checkpoints)
        except Interrupted as stopped:
            raise _interrupted(folder, config, checkpoints) from stopped
        except Diverged as error:
            place = newest_place(folder / "checkpoint")
            last = f"the last good checkpoint is {place}" if place else "no checkpoint was due yet"
            raise Diverged(f"{str(error).rstrip('.')}; {last}.") from error
        except (UserError, OSError) as error:
            if new and not _trained(folder):
                artefacts.undo(folder, *_BEGUN)
            if isinstance(error, UserError):
                raise
            reason = error.strerror or error
            raise UserError(f"The output folder {folder} cannot be written: {reason}.") from error
    done = Run(config, results, folder, history.states, prepared=prepared)
    begun = artefacts.config_of(folder)  # by the call that began the run
    return _as_recorded(
        done if _same_tuning(begun, config) else replace(done, config=begun), config
    )


def _read_back(folder: Path, prepared: Prepared) -> Run:
    return _as_recorded(replace(load(folder), prepared=prepared), prepared.config)


def _same_tuning(recorded: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    return recorded.get("tuning") == config["tuning"]


def _as_recorded(done: Run, config: Mapping[str, Any]) -> Run:
    """A run with a notice where its folder says otherwise than this call how values were chosen."""
    if _same_tuning(done.config, config):
        return done
    there, here = (
        protocol.tuned(one["tuning"]) if one.get("tuning") else "not tuned"
        for one in (done.config, config)
    )
    notice = (
        f"On record in {done.path} is that the values were {there}; by this call they are {here}: "
        "name another folder to put that on record."
    )
    notices = [*done.config.get("notices", ()), notice]
    return replace(done, config={**done.config, "notices": notices})


def _trained(folder: Path) -> bool:
    """Whether a run has come as far as its first update."""
    journal = folder / "metrics.jsonl"
    return journal.exists() and journal.stat().st_size > 0


def _kept_run(
    folder: Path,
    prepared: Prepared,
    progress: Callable[[Event], None] | None,
    running: Running,
    checkpoints: Checkpoints | None,
) -> tuple[History, dict[str, Any]]:
    """Runs, and writes the artefacts into a folder that this process holds."""
    artefacts.refuse_links(folder)
    artefacts.clean(folder)
    artefacts.begin(folder, prepared.config)
    rows = rows_used(prepared.stream, prepared.config["seeds"])
    artefacts.write_arrays(folder / "manifest" / "stream.npz", rows)
    goes_on = newest_place(folder / "checkpoint") is not None
    with signals() as interrupted:
        with journal(folder / "metrics.jsonl", progress, goes_on=goes_on) as record:
            history, results = _learn(prepared, record, running, checkpoints, interrupted)
        _keep_rules(prepared, history, folder)
        keep(folder, prepared.stream, history)
        if running.keep_state:
            keep_states(folder, prepared.config, history.seeds, history.states)
        _plots(folder / "plots", results)
        artefacts.finish(folder, results)
    return history, results


def _interrupted(
    folder: Path, config: Mapping[str, Any], checkpoints: Checkpoints | None
) -> Interrupted:
    """What to say of a run that was stopped, by what there is of it."""
    if "mark" in config["identity"]:
        return Interrupted(f"interrupted; {untold(config['identity'])}.", kept=False)
    if checkpoints is None:
        text = f"interrupted; {folder} keeps no checkpoint, so the same command starts anew."
        return Interrupted(text, kept=False)
    if newest_place(checkpoints.folder) is None:
        text = f"interrupted before the first checkpoint; the same command starts {folder} anew."
        return Interrupted(text, kept=False)
    return Interrupted(f"interrupted and kept; `cljax resume {folder}` goes on.")


def untold(identity: Mapping[str, Any]) -> str:
    """Why what is marked as unlike any other is not continued, and what would help."""
    return (
        f"it cannot be continued, because {identity['unknown'][0]} cannot be told by its content; "
        "pass id='...' from the first time on to say that it is the same"
    )


def resume(
    folder: str | Path,
    *,
    progress: Shown = None,
    running: Running = Running(),  # noqa: B008, it is frozen
    trust: bool = False,
) -> Run:
    """Goes on with an interrupted run, from its folder alone; a finished one is read back.

    Args:
      progress: as for ``cljax.run``.
      trust: import the code that the folder names (``package.module:factory``), where the method,
        the stream or the network is no built-in one.

    Raises:
      UserError: if the folder holds no run, one whose config, data or versions differ now, or one
        that names code, without ``trust``.
    """
    check_progress(progress)
    check_running(running)
    folder = artefacts.place(folder)
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} holds no run to resume; begin it with cljax run.")
    if (folder / "results.json").exists():
        return load(folder, trust=trust)
    config = artefacts.config_of(folder)
    prepared = remade(folder, config, trust=trust)
    with shown(progress, len(prepared.config["seeds"])) as show:
        return _run_in(folder, prepared, show, running)


def load(folder: str | Path, *, trust: bool = False) -> Run:
    """Reads back a finished run.

    Nothing is imported or written, and every file must be as it was written.

    Args:
      trust: the run's ``state``, when it is asked for, may import the code that the folder names
        (``package.module:factory``).

    Raises:
      UserError: if the folder does not hold one, or one of its files is missing, differs from what
        was written, or does not belong to it.
    """
    folder = artefacts.place(folder)
    config, results = artefacts.load(folder)
    return Run(config, results, folder, resumed=True, trust=trust)


def _folder_name(config: Mapping[str, Any]) -> str:
    parts = (config["method"]["name"], config["stream"]["name"], config["config_hash"][:8])
    return folder_name(*parts)


def _learn(
    prepared: Prepared,
    progress: Callable[[Event], None] | None,
    running: Running,
    checkpoints: Checkpoints | None,
    interrupted: Callable[[], bool] = lambda: False,
) -> tuple[History, dict[str, Any]]:
    config, method = prepared.config, prepared.method
    model = prepared.net(prepared.stream.num_classes)
    if len(config["seeds"]) == 1:
        progress = _stops_at_divergence(method.name, progress)
    history = learn(
        method, model, prepared.stream, config["seeds"], training_of(config), running=running,
        hooks=Hooks(progress, interrupted), checkpoints=checkpoints, start=prepared.start,
        spent_s=prepared.seconds,
    )  # fmt: skip
    assert history is not None
    learned = time.perf_counter()
    results = results_of(config, method, model, prepared.stream, history)
    total_s = history.time["total_s"] + time.perf_counter() - learned
    results["time"] = {**history.time, "total_s": total_s}
    return history, results


def _stops_at_divergence(
    name: str, progress: Callable[[Event], None] | None
) -> Callable[[Event], None]:
    """Progress that raises Diverged, for a run whose only seed has nothing left to show."""

    def watch(event: Event) -> None:
        if progress is not None:
            progress(event)
        if event.kind == "diverged":
            raise Diverged(
                f"{name} diverged in task {event.task} at update {event.step}: {event.note} is "
                "not finite; try smaller rates."
            )

    return watch


def checkpoints_of(
    config: Mapping[str, Any],
    folder: Path,
    running: Running,
    labels: Sequence[str] | None = None,
) -> Checkpoints | None:
    """Where runs are kept, what must be the same to continue them, and what each is called."""
    if running.checkpoint_every == "never":
        return None
    identity = {
        "config_hash": config["config_hash"],
        "data": config["stream"]["checksum"],
        "format": FORMAT,
        **decisive(config),
    }
    return Checkpoints(folder / "checkpoint", identity, labels)


def _keep_rules(prepared: Prepared, history: History, folder: Path) -> None:
    """Writes the update rules that a method learned, one a seed, for runs to come."""
    model = prepared.net(prepared.stream.num_classes)
    rule = prepared.method.bind(model, prepared.stream.spec(prepared.config["batch_size"])).rule
    if rule is not None:
        for seed, state in zip(history.seeds, history.states, strict=True):
            save_rule(folder, rule(state), seed=seed)


def _plots(folder: Path, results: Mapping[str, Any]) -> None:
    from cljax import plot

    first = next(iter(results["evaluations"].values()))
    matrices = np.array(first["accuracy_matrix"], float)
    folder.mkdir(exist_ok=True)
    score = results.get("score", "accuracy")
    with np.errstate(all="ignore"):
        title = f"{results['method']}, {results['stream']}\nmean of {len(matrices)} seeds"
        plot.save(
            plot.accuracy_matrix(matrices, title=title, score=score), folder / "accuracy_matrix.png"
        )
        plot.save(plot.over_time(plot.task_curves(matrices), score=score), folder / "over_time.png")
