"""Which classes each task brings, and in which order.

In class-incremental learning tasks may all have as many new classes (``DATA-TxB``: T tasks of B),
or the first has ``base`` classes and T tasks of as many new ones follow (``DATA-bBASE-T``), as in
mnemonics training (Liu et al. 2020, arXiv:2002.10211, section 5.1).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import Literal, TypeAlias, get_args

import numpy as np

from cljax.errors import UserError, check_known, check_positive
from cljax.streams.orders import permutation

__all__ = ["ClassOrder", "class_groups", "name_of", "order_1993"]

ClassOrder: TypeAlias = Literal["natural", "seeded", "1993"]


def class_groups(
    num_classes: int,
    classes_per_task: int,
    *,
    base: int | None = None,
    classes: int | None = None,
    order: ClassOrder = "natural",
    seed: int = 0,
) -> list[list[int]]:
    """The classes of each task; the last task has fewer where they do not divide.

    Args:
      num_classes: of the data set.
      base: classes of the first task, which precedes those of ``classes_per_task``; None: as many
        as the others.
      classes: how many of them to use, the first ones of the order; None for all.
      order: ``natural``, by number; ``seeded``, a permutation that ``seed`` chooses; or ``1993``,
        that of ``order_1993``.

    Raises:
      UserError: for counts out of range or an unknown order.
    """
    check_known("class order", order, get_args(ClassOrder))
    classes = num_classes if classes is None else classes
    check_positive(classes=classes, classes_per_task=classes_per_task)
    if classes > num_classes:
        raise UserError(f"classes is {classes}, but there are only {num_classes} classes.")
    rest, which = classes, "classes"
    if base is not None:
        check_positive(base=base)
        if base >= classes:
            raise UserError(
                f"base is {base}, but of {classes} classes the first task can have at most "
                f"{classes - 1}, so that some follow."
            )
        rest, which = classes - base, f"classes after the {base} of the first task"
    if classes_per_task > rest:
        raise UserError(
            f"classes_per_task is {classes_per_task}, but there are only {rest} {which}."
        )
    if order == "1993":
        ordered = order_1993(num_classes)
    else:
        natural = np.arange(num_classes)
        ordered = natural if order == "natural" else permutation(num_classes, "class-order", seed)
    chosen = ordered[:classes].tolist()
    first = [] if base is None else [chosen[:base]]
    later = range(base or 0, classes, classes_per_task)
    return first + [chosen[i : i + classes_per_task] for i in later]


def order_1993(num_classes: int) -> np.ndarray:
    """[C] int64: the class order of class-incremental papers since Hou et al. (2019, LUCIR).

    ``arange(C)`` shuffled by NumPy's legacy generator with the seed 1993; recorded in
    ``class_order_1993.json``, for no version of NumPy is bound to draw it again.

    Raises:
      UserError: unless there are 10, 100 or 1000 classes.
    """
    recorded = resources.files("cljax.streams") / "class_order_1993.json"
    orders = json.loads(recorded.read_text("utf-8"))
    if str(num_classes) not in orders:
        raise UserError(
            "The class order 1993 is recorded for 10, 100 and 1000 classes, but there are "
            f"{num_classes}."
        )
    return np.array(orders[str(num_classes)])


def name_of(
    data: str, groups: Sequence[Sequence[int]], classes_per_task: int, base: int | None
) -> str:
    """A stream's name: ``DATA-TxB``, or ``DATA-bBASE-T`` with T tasks after the first one."""
    if base is None:
        return f"{data}-{len(groups)}x{classes_per_task}"
    return f"{data}-b{base}-{len(groups) - 1}"
