"""Which classes each task brings, and in which order.

In class-incremental learning tasks may all have as many new classes (``DATA-TxB``: T tasks of B),
or the first has ``base`` classes and T tasks of as many new ones follow (``DATA-bBASE-T``), as in
mnemonics training (Liu et al. 2020, arXiv:2002.10211, section 5.1).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Literal, TypeAlias

import numpy as np

from cljax.errors import UserError, check_known, check_positive
from cljax.streams.manifests import load_class_order
from cljax.streams.orders import permutation

__all__ = [
    "PER_SEED", "ClassOrder", "class_groups", "name_of", "order_1993", "seed_orders",
    "tasks_in_words",
]  # fmt: skip

PER_SEED = "per-seed"  # an order of its own for each seed, see ``seed_orders``

ClassOrder: TypeAlias = Literal["natural", "seeded", "1993"] | str  # or a FILE.json
_ORDERS = ("natural", "seeded", "1993")


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
        that of ``order_1993``; or a file that ``save_class_order`` wrote.

    Raises:
      UserError: for counts out of range or an unknown order.
    """
    file = isinstance(order, str) and order.endswith(".json")
    if not file:
        check_known("class order", order, _ORDERS)
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
    if file:
        ordered = np.array(load_class_order(order))
        if len(ordered) != num_classes:
            raise UserError(
                f"The class order {order} holds {len(ordered)} classes, but there are "
                f"{num_classes}."
            )
    elif order == "1993":
        ordered = order_1993(num_classes)
    else:
        natural = np.arange(num_classes)
        ordered = natural if order == "natural" else permutation(num_classes, "class-order", seed)
    chosen = ordered[:classes].tolist()
    first = [] if base is None else [chosen[:base]]
    later = range(base or 0, classes, classes_per_task)
    return first + [chosen[i : i + classes_per_task] for i in later]


def seed_orders(
    num_classes: int,
    classes_per_task: int,
    *,
    base: int | None = None,
    classes: int | None = None,
    multi_head: bool,
) -> tuple[list[list[int]], Callable[[int], np.ndarray]]:
    """Tasks of equal size over places in an order of the classes that each seed draws anew.

    The order of seed s is ``class_groups``' seeded one of that seed.

    Returns:
      The places of each task, and seed -> [classes] int32.

    Raises:
      UserError: for counts that do not divide or are out of range, or with one head, whose methods
        would need one order of the classes to know their outputs by.
    """
    groups = class_groups(num_classes, classes_per_task, base=base, classes=classes)
    if not multi_head:
        raise UserError(
            "class_order is per-seed with one head, but only tasks with heads of their own may "
            "differ from seed to seed; add multi_head, or choose class_order=seeded."
        )
    if len(groups[-1]) < classes_per_task:
        raise UserError(
            f"classes_per_task is {classes_per_task}, which does not divide the "
            f"{sum(map(len, groups))} classes; with class_order=per-seed all tasks are equal."
        )
    count = sum(map(len, groups))
    return groups, lambda seed: permutation(num_classes, "class-order", seed, take=count)


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


def tasks_in_words(num_classes: int, classes_per_task: int, base: int | None) -> str:
    """How the classes are cut, for a line about a stream."""
    later = -(-(num_classes - (base or 0)) // classes_per_task)
    if base is None:
        return f"in {later} tasks of {classes_per_task} new classes"
    return f"in a task of {base} classes, then {later} of {classes_per_task} new ones"
