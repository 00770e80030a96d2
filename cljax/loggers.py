"""Logs a run to Weights & Biases, to trackio, or to whatever has the same three calls.

init(**options)   once, before the first number
log({name: x})    each mean loss of a segment and each accuracy, with the update, of each seed
finish()          at the end, also after an error
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from cljax.engine.lanes import Event
from cljax.errors import UserError, in_words

__all__ = ["Logger", "log_to"]

_NAMES = {"segment": "loss", "eval": "accuracy", "diverged": "diverged"}


class Logger(Protocol):
    """What ``wandb`` and ``trackio`` have in common."""

    init: Callable[..., Any]
    log: Callable[[dict[str, Any]], Any]
    finish: Callable[[], Any]


@contextlib.contextmanager
def log_to(module: Logger | str, **init: Any) -> Iterator[Callable[[Event], None]]:
    """A callback for ``progress`` that logs each event; what it began is finished at the end.

        with cljax.loggers.log_to("wandb", project="mine") as log:
            run = cljax.run("er", "split-mnist", progress=[True, log])  # the line, and the log
            wandb.log({"RA": run.metric("RA").mean()})

    Seeds are curves of their own, ``loss/seed_0`` and ``accuracy/seed_0`` over
    ``update/seed_0``: seeds run side by side, so there is no step that they share. Those of a sweep
    are called as its lanes, in a comparison after the method's name.

    Args:
      module: ``wandb``, ``trackio``, or anything with ``init``, ``log`` and ``finish``; or the name
        of such a module.
      **init: passed to its ``init``, such as project and config.

    Raises:
      UserError: if the package is not installed, or lacks one of the calls.
    """
    target = _imported(module) if isinstance(module, str) else module
    for call in ("init", "log", "finish"):
        if not callable(getattr(target, call, None)):
            raise UserError(
                f"the logger is {in_words(module)}, but it must have the calls init, log and "
                f"finish, as wandb and trackio do; it lacks {call}."
            )

    def log(event: Event) -> None:
        if event.kind in _NAMES:
            value = 1.0 if event.kind == "diverged" else event.value
            curve = event.lane or f"seed_{event.seed}"
            name = (event.kind == "eval" and event.note) or _NAMES[event.kind]
            target.log({f"{name}/{curve}": value, f"update/{curve}": event.step})

    target.init(**init)
    try:
        yield log
    finally:
        target.finish()


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if error.name != name:
            raise UserError(f"{name} cannot be imported: {error}.") from error
        raise UserError(f"{name} is not installed: pip install {name}.") from None
