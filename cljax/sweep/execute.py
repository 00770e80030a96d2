"""Runs the lanes of a plan: one ``learn`` a group, and a lane's folder when the lane ends."""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from cljax import artefacts
from cljax.checks import check_progress
from cljax.errors import Interrupted, UserError, check_path, in_words
from cljax.factories import real_options
from cljax.interrupts import signals
from cljax.learn import Event, History, learn
from cljax.progress import journal
from cljax.results import results_of
from cljax.run import Running, check_running, checkpoints_of, learn_options
from cljax.sweep.found import Sweep, merge
from cljax.sweep.layout import Plan

__all__ = ["run"]


def run(
    plan: Plan,
    out: str | Path = "auto",
    *,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[Event], None] | None = None,
    running: Running = Running(),  # noqa: B008, it is frozen
    command: Mapping[str, Any] | None = None,
) -> Sweep:
    """Runs the lanes of a sweep that are not finished yet, and merges when all are.

    Args:
      out: its folder; "auto": runs/sweep-METHOD-STREAM-HASH8. Shards share it.
      shard: (i, n): only every n-th lane, from the i-th on, for array jobs.
      progress: called with each ``Event``.
      running: how it is kept and cut up.
      command: what ``cljax resume`` needs.

    Returns:
      The sweep; its ``exit_code`` is 75 if a signal interrupted it, and the same call goes on.

    Raises:
      UserError: for anything the caller can put right, in one sentence.
    """
    if not isinstance(plan, Plan):
        raise UserError(
            f"plan is {in_words(plan)}, but it must be a Plan, which cljax.sweep.plan makes."
        )
    check_path(out=out)
    check_progress(progress)
    check_running(running)
    try:
        index, count = (operator.index(part) for part in shard)
    except (TypeError, ValueError):
        raise UserError(
            f"shard is {in_words(shard)}, but it must be two whole numbers (i, n)."
        ) from None
    if not 0 <= index < count:
        raise UserError(f"shard is {index}/{count}, but it must be one of 0/n to n-1/n.")
    folder = Path("runs") / _folder_name(plan) if out == "auto" else Path(out).expanduser()
    first = jax.process_index() == 0  # of several processes: it writes
    if first:
        _claim_folder(folder, plan, command)
    part = f"{index}-of-{count}"
    log = folder / f"metrics-{part}.jsonl"
    with contextlib.ExitStack() as stack:
        if first:
            stack.enter_context(artefacts.claim(folder, f".lock-{part}"))
        try:
            show = progress or (lambda event: None)
            if first:
                show = stack.enter_context(journal(log, progress, goes_on=True))
            interrupted = stack.enter_context(signals())
            for number, group in enumerate(plan.groups):
                mine = [i for i in group if i % count == index]
                todo = [i for i in mine if not _finished(folder, plan, i)]
                kept = folder / "checkpoint" / f"group-{number}-{part}"
                if todo:
                    width = min(plan.lanes_at_a_time, len(mine))  # the same when it is resumed
                    _run_group(plan, todo, width, folder, kept, show, running, interrupted)
                if first and kept.exists():
                    artefacts.remove(kept)
                if interrupted() and todo and group != plan.groups[-1]:
                    raise Interrupted
        except Interrupted:
            return Sweep(folder, plan.config, None, exit_code=75)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"The output folder {folder} cannot be written: {reason}.") from error
        if first and all(_finished(folder, plan, i) for i in range(len(plan.lanes))):
            return merge(folder)
    return Sweep(folder, plan.config, None)


def _run_group(
    plan: Plan,
    numbers: Sequence[int],
    lanes_at_a_time: int,
    folder: Path,
    kept: Path,
    progress: Callable[[Event], None],
    running: Running,
    interrupted: Callable[[], bool],
) -> None:
    """Runs lanes that share programs, and writes each one's folder as it ends."""
    first = plan.prepared[numbers[0]]
    model = first.net(plan.stream.num_classes)
    real = real_options(first.method)
    options = [plan.prepared[i].method.options for i in numbers]

    def write(number: int, history: History) -> None:
        if jax.process_index() > 0:  # of several: the first one writes
            return
        made = plan.prepared[numbers[number]]
        place = folder / "lanes" / plan.lanes[numbers[number]].name
        results = results_of(made.config, made.method, model, made.stream, history)
        # Lanes share their time: it is the sweep's.
        results["time"] = {"compile_s": history.time["compile_s"]}
        artefacts.write_json(place / "config.json", made.config)
        artefacts.write_json(place / "results.json", results)

    identity = {**first.config, "config_hash": plan.config["sweep_hash"]}
    identity["stream"] = {**first.config["stream"], "checksum": plan.stream.checksum}
    learn(
        first.method,
        model,
        plan.stream,
        [plan.lanes[i].seed for i in numbers],
        settings=[{name: own[name] for name in real} for own in options],
        labels=[plan.lanes[i].name for i in numbers],
        validate=plan.config["on"] == "validation",
        lanes_at_a_time=lanes_at_a_time,
        segment_seconds=running.segment_seconds,
        devices=running.devices,
        # Numbered as in the plan, not as in the group.
        progress=lambda event: progress(
            event._replace(run=numbers[event.run]) if event.run >= 0 else event
        ),
        checkpoints=checkpoints_of(identity, kept, running),
        interrupted=interrupted,
        on_finish=write,
        **learn_options(first.config),
    )


def _claim_folder(folder: Path, plan: Plan, command: Mapping[str, Any] | None) -> None:
    """Writes ``sweep.json``, or refuses a folder that holds something else."""
    stored = folder / "sweep.json"
    if stored.exists():
        if artefacts.read(folder, "sweep.json").get("sweep_hash") == plan.config["sweep_hash"]:
            return
        raise UserError(f"The folder {folder} holds another sweep; name another folder.")
    if folder.is_file():
        raise UserError(f"The output folder {folder} is a file; name a folder.")
    entries = folder.iterdir() if folder.exists() else ()
    held = [entry.name for entry in entries if not entry.name.startswith(".")]
    if held and not stored.exists():  # another shard may have written it just now
        raise UserError(f"The folder {folder} holds {held[0]} but no sweep; name an empty one.")
    try:
        artefacts.write_json(stored, {**plan.config, "begun_as": command})
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"The output folder {folder} cannot be written: {reason}.") from error


def _finished(folder: Path, plan: Plan, i: int) -> bool:
    place = folder / "lanes" / plan.lanes[i].name
    return artefacts.finished(place, plan.prepared[i].config)


def _folder_name(plan: Plan) -> str:
    parts = ("sweep", plan.config["method"], plan.config["stream"], plan.config["sweep_hash"][:8])
    return re.sub(r"[^A-Za-z0-9.-]+", "-", "-".join(parts)).replace("--", "-")
