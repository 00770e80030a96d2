"""Runs the lanes of a plan: one ``learn`` a group, and a lane's folder when the lane ends."""

from __future__ import annotations

import contextlib
import operator
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from cljax.checks import check_progress
from cljax.engine.learn import Event, History, Hooks, learn
from cljax.engine.options import Running, check_running
from cljax.engine.signals import signals
from cljax.errors import AT_ONCE, RESUMABLE, Interrupted, UserError, in_words
from cljax.runner import artefacts
from cljax.runner.options import training_of
from cljax.runner.progress import Shown, journal, shown
from cljax.runner.results import results_of
from cljax.runner.run import checkpoints_of
from cljax.storage.checkpoint import newest_place
from cljax.storage.files import as_json, folder_name
from cljax.storage.locks import tidy
from cljax.sweep.folders import Sweep, at_work, config_of, fault, in_place, load, merge
from cljax.sweep.layout import Plan

__all__ = ["run"]

_OTHERS = 30.0  # seconds that a shard waits for another one to begin the sweep


def run(
    plan: Plan,
    out: str | Path = "auto",
    *,
    shard: tuple[int, int] = (0, 1),
    progress: Shown = None,
    running: Running = Running(),  # noqa: B008, it is frozen
    command: Mapping[str, Any] | None = None,
) -> Sweep:
    """Runs the lanes of a sweep that are not finished yet, and merges when all are.

    Args:
      out: its folder; "auto": runs/sweep-METHOD-STREAM-HASH8. Shards share it.
      shard: (i, n): only every n-th lane, from the i-th on, for array jobs.
      progress: as for ``cljax.run``; ``Event.lane`` is the name of the lane.
      running: how it is kept and cut up.
      command: what ``cljax resume`` needs.

    Returns:
      The sweep; its ``exit_code`` is 75 if a signal interrupted it, and the same call goes on; 130
      if nothing of it is kept.

    Raises:
      UserError: for anything the caller can put right, in one sentence.
    """
    if not isinstance(plan, Plan):
        raise UserError(
            f"plan is {in_words(plan)}, but it must be a Plan, which cljax.sweep.plan makes."
        )
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
    folder = artefacts.place(Path("runs") / _folder_name(plan) if out == "auto" else out)
    whole = _whole(folder, plan)
    if whole is not None:
        return whole
    first = jax.process_index() == 0  # of several processes: it writes
    part = f"{index}-of-{count}"
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as claims:
        names = [lane.name for lane in plan.lanes]
        callback = stack.enter_context(shown(progress, len(names), names))
        stack.enter_context(tidy(folder))
        new = not (folder / "sweep.json").exists()
        if first:
            _claim_folder(folder, plan, command)
            claims.enter_context(artefacts.claim(folder, f".lock-{part}"))
        try:
            show = callback or (lambda event: None)
            if first:
                artefacts.refuse_links(folder)
                log = folder / f"metrics-{part}.jsonl"
                show = claims.enter_context(journal(log, callback, goes_on=True))
            if not _run_groups(plan, folder, part, show, running):
                return Sweep(folder, plan.config, None, exit_code=_code(folder, plan))
        except (UserError, OSError) as error:
            claims.close()
            if first and new and not _begun(folder):
                logs = [path.name for path in folder.glob("metrics-*.jsonl")]
                with artefacts.claim(folder):
                    artefacts.undo(folder, "sweep.json", *logs)
            if isinstance(error, UserError):
                raise
            reason = error.strerror or error
            raise UserError(f"The output folder {folder} cannot be written: {reason}.") from error
    # Shards let go of their locks before they look for others', so that the last one merges.
    done = first and not at_work(folder) and all(f is None for f in _faults(folder, plan).values())
    return merge(folder) if done else Sweep(folder, plan.config, None)


def _run_groups(
    plan: Plan, folder: Path, part: str, show: Callable[[Event], None], running: Running
) -> bool:
    """Runs what a shard has to run and has not finished; False if a signal stopped it."""
    first = jax.process_index() == 0
    index, count = map(int, part.split("-of-"))
    faults = _faults(folder, plan)
    for i, wrong in faults.items():
        if in_place(_place(folder, plan, i)) is not None:  # which is not ours to remove
            raise UserError(f"The lane {plan.lanes[i].name} cannot be written: {wrong}")
    with signals() as interrupted:
        for number, group in enumerate(plan.groups):
            mine = [i for i in group if i % count == index]
            todo = [i for i in mine if faults[i] is not None]
            place = folder / "checkpoint" / f"group-{number}-{part}"
            for i in todo:
                if first:
                    _make_room(_place(folder, plan, i), plan.lanes[i].name, faults[i] or "", show)
            if todo:
                width = min(plan.lanes_at_a_time, len(mine))  # the same when it is resumed
                own = running.replace(lanes_at_a_time=width)
                try:
                    _run_group(plan, todo, folder, place, own, show, interrupted)
                except Interrupted:
                    return False
            if first and place.exists():
                artefacts.remove(place)
            if interrupted() and todo and group != plan.groups[-1]:
                return False
    return True


def _make_room(place: Path, name: str, fault: str, show: Callable[[Event], None]) -> None:
    """Removes what is there of a lane that runs again, and says so if it was damaged."""
    if fault:
        show(Event("note", note=f"The lane {name} is damaged and runs again: {fault}"))
    if place.exists():
        shutil.rmtree(place)


def _code(folder: Path, plan: Plan) -> int:
    """The exit code of an interrupted sweep: 75 if anything of it is kept and can go on."""
    if any("mark" in made.config["identity"] for made in plan.prepared):
        return AT_ONCE
    finished = None in _faults(folder, plan).values()
    places = folder.glob("checkpoint/*/checkpoint")
    return RESUMABLE if finished or any(newest_place(place) for place in places) else AT_ONCE


def _begun(folder: Path) -> bool:
    """Whether there is anything in a sweep's folder that another run would have to do again."""
    journals = [path for path in folder.glob("metrics-*.jsonl") if path.stat().st_size]
    return bool(at_work(folder) or journals or [*folder.glob("lanes/*")])


def _whole(folder: Path, plan: Plan) -> Sweep | None:
    """The sweep, if it is there, finished and undamaged, with nothing left to do."""
    if not (folder / "sweep.json").exists() or not (folder / "results.json").exists():
        return None
    _check_same(folder, plan)
    if any(fault is not None for fault in _faults(folder, plan).values()):
        return None
    try:
        return load(folder)
    except UserError:  # what is merged is damaged: it is merged again
        return None


def _run_group(
    plan: Plan,
    numbers: Sequence[int],
    folder: Path,
    checkpoint: Path,
    running: Running,
    progress: Callable[[Event], None],
    interrupted: Callable[[], bool],
) -> None:
    """Runs lanes that share programs, and writes each one's folder as it ends."""
    first = plan.prepared[numbers[0]]
    model = first.net(plan.stream.num_classes)
    # One structure for all, with each lane's own real options.
    structure = jax.tree.structure(first.method)
    leaves = [jax.tree.leaves(plan.prepared[i].method) for i in numbers]

    def write(number: int, history: History) -> None:
        if jax.process_index() > 0:  # of several: the first one writes
            return
        made = plan.prepared[numbers[number]]
        place = folder / "lanes" / plan.lanes[numbers[number]].name
        results = results_of(made.config, made.method, model, made.stream, history)
        # Lanes share their time: it is the sweep's.
        results["time"] = {"compile_s": history.time["compile_s"]}
        artefacts.begin(place, made.config)
        artefacts.finish(place, results)

    def numbered(event: Event) -> None:
        """Numbers runs as in the plan, not as in the group, and names their lanes."""
        if event.run >= 0:
            number = numbers[event.run]
            event = event._replace(run=number, lane=plan.lanes[number].name)
        progress(event)

    identity = {**first.config, "config_hash": plan.config["sweep_hash"]}
    identity["stream"] = {**first.config["stream"], "checksum": plan.stream.checksum}
    learn(
        [jax.tree.unflatten(structure, own) for own in leaves],
        model,
        plan.stream,
        [plan.lanes[i].seed for i in numbers],
        training_of(first.config),
        running=running,
        hooks=Hooks(numbered, interrupted, write),
        checkpoints=checkpoints_of(
            identity, checkpoint, running, [plan.lanes[i].name for i in numbers]
        ),
        validate=plan.config["on"] == "validation",
    )


def _claim_folder(folder: Path, plan: Plan, command: Mapping[str, Any] | None) -> None:
    """Writes ``sweep.json``, or refuses a folder that holds something else."""
    if folder.is_file():
        raise UserError(f"The output folder {folder} is a file; name a folder.")
    with artefacts.claim(folder, wait=_OTHERS):  # of several shards, one begins
        if (folder / "sweep.json").exists():
            return _check_same(folder, plan)
        names = sorted(entry.name for entry in folder.iterdir() if entry.name[0] != ".")
        names = [name for name in names if name not in ("files.json", "tensorboard")]
        if names:
            raise UserError(
                f"The folder {folder} holds {names[0]} but no sweep; name an empty one."
            )
        content = as_json({**plan.config, "begun_as": command})
        try:
            artefacts.seal(folder, plan.config["sweep_hash"], {"sweep.json": content})
            artefacts.write_bytes(folder / "sweep.json", content)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"The output folder {folder} cannot be written: {reason}.") from error


def _check_same(folder: Path, plan: Plan) -> None:
    """Raises UserError if the folder holds another sweep, or a damaged one."""
    if config_of(folder)["sweep_hash"] == plan.config["sweep_hash"]:
        return
    untold = [
        made.config["identity"] for made in plan.prepared if "mark" in made.config["identity"]
    ]
    if untold:
        raise UserError(
            f"The sweep in {folder} is neither read back nor continued, because "
            f"{untold[0]['unknown'][0]} cannot be told by its content; pass id='...' from the "
            "first time on to say that it is the same, or name another folder."
        )
    raise UserError(f"The folder {folder} holds another sweep; name another folder.")


def _place(folder: Path, plan: Plan, i: int) -> Path:
    return folder / "lanes" / plan.lanes[i].name


def _faults(folder: Path, plan: Plan) -> dict[int, str | None]:
    """For each lane: None if it is finished, "" if not yet, else what is wrong with its files."""
    hashes = plan.config["hashes"]
    return {i: fault(_place(folder, plan, i), hashes[i]) for i in range(len(plan.lanes))}


def _folder_name(plan: Plan) -> str:
    parts = ("sweep", plan.config["method"], plan.config["stream"], plan.config["sweep_hash"][:8])
    return folder_name(*parts)
