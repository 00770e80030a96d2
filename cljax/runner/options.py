"""``RunOptions``: everything that a run may be asked for, listed once.

``cljax.run`` takes its fields as keywords, the command line reads its flags off them, and a stored
config gives them back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from cljax.checks import check_progress
from cljax.engine.options import Entries, Running, Training, check_running
from cljax.errors import UserError, check_known, in_words
from cljax.evaluation.again import Trained
from cljax.objectives import Loss, Score, Weights
from cljax.options import Check, Count
from cljax.runner.config import evaluation_of
from cljax.runner.progress import Shown
from cljax.types import Net

__all__ = ["RunOptions", "options_from", "stored_options", "training_of"]

Progress: TypeAlias = Annotated[Shown, Check(check_progress)]


class RunOptions(Training):
    """The options of a run. Of a recipe's values those that are None here are taken."""

    seeds: int | Sequence[int] = 5
    """How many (0, 1, ...), or which, from 0 to 2**32 - 1."""
    net: Net | str | None = None
    """Network, such as mlp:100,100, or package.module:factory."""
    batch_size: Count | None = None
    """Examples an update."""
    epochs: Count | None = None
    """Passes over each task."""
    entries: Entries | None = None
    """Entries of the accuracy matrix."""
    readout: bool = False
    """Also test a linear layer fitted anew on the frozen features."""
    loss: Loss | str | None = None
    """What is minimised, such as squared-error, or package.module:function of outputs and targets;
    None: what the stream says, cross-entropy of labels."""
    weights: Weights | None = None
    """Weights of the classes, which multiply the losses of their rows; balanced is one over the
    examples of each."""
    score: Score | str | None = None
    """What tests are judged by, such as r-squared, or package.module:function, in the place of
    accuracy."""
    patience: Count | None = None
    """Early stopping: epochs of a task without a better score on its validation rows, after which
    its training ends; None: all epochs."""
    restore_best: bool = True
    """With patience: each task ends with the network of its best epoch, not of the last."""
    precision: Literal["float32", "float64"] = "float32"
    """Of everything; float64 needs jax_enable_x64."""
    id: str | None = None
    """Names what cannot be told of your own code, as part of the run."""
    origins: Mapping[str, str] | None = None
    """Where values came from, by option, for the record."""
    tuning: Mapping[str, Any] | None = None
    """How values were chosen, for the record; see ``cljax.sweep.Sweep.tuning``."""
    start: Trained | str | Path | None = None
    """Finished run to go on from with new tasks, its folder or run.state."""
    out: str | Path | None = None
    """Folder of the results, where the same run already finished is read back; "auto" is
    runs/METHOD-STREAM-HASH8, None in memory only."""
    progress: Progress = None
    """Called with each ``Event``; None or True shows a line on standard error, False nothing, and a
    list does all that it names, such as [True, log]."""
    running: Running = Running()
    """How it is kept and cut up; changes no result."""

    def check(self) -> None:
        """Raises UserError for what is neither a name nor a record."""
        check_running(self.running)
        if self.id is not None and (not isinstance(self.id, str) or not self.id):
            raise UserError(
                f"id is {self.id!r}, but it must be a text that names what a run is made of."
            )
        for name, record in (("origins", self.origins), ("tuning", self.tuning)):
            if record is not None and not isinstance(record, Mapping):
                raise UserError(
                    f"{name} is {in_words(record)}, but it must be a dict of what it was."
                )


def options_from(
    function: str, keywords: Mapping[str, Any], less: Sequence[str] = ()
) -> RunOptions:
    """The options that keywords give.

    Args:
      function: as a user called it, for the message.
      less: options that it does not take.

    Raises:
      UserError: for an unknown keyword, with the nearest names, or a value that is none.
    """
    known = [field.name for field in dataclasses.fields(RunOptions) if field.name not in less]
    for name in keywords:
        check_known(f"argument of {function}", name, known)
    return RunOptions(**keywords)


def stored_options(config: Mapping[str, Any], **more: Any) -> RunOptions:
    """The options of the run that a config is of; ``more`` are those that it does not hold."""
    names = ("seeds", "batch_size", "epochs", "entries", "eval_every", "online", "lanes", "loop",
             "precision", "id", "origins")  # fmt: skip
    values = {name: config[name] for name in names if name in config}
    values |= config.get("asked_objective", {}) | config.get("stopping", {})
    return RunOptions(**values, evaluations=_evaluations(config), **more)


def training_of(config: Mapping[str, Any]) -> Training:
    """What of a config ``cljax.engine.learn.learn`` takes."""
    names = (field.name for field in dataclasses.fields(Training))
    values = {name: config[name] for name in names}
    return Training(**{**values, "evaluations": _evaluations(config)})


def _evaluations(config: Mapping[str, Any]) -> list[Any]:
    return [evaluation_of(entry) for entry in config["evaluations"]]
