"""Runs as lanes: which of them advance together in one program, and what each brings along.

batching   how many runs one program advances, and how: by vmap, by map, or each alone
lanes      a run's method, plans and test rows, stacked where runs share a program
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax.engine.compilation import Batching, put
from cljax.engine.lanes import Lane
from cljax.engine.options import Running
from cljax.engine.programs import Carry, Hyper, device_plan
from cljax.errors import UserError, check_known
from cljax.evaluation.accuracy import TestRows
from cljax.method import Method
from cljax.storage import checkpoint
from cljax.types import PyTree, StepPlan

__all__ = [
    "SeedInputs", "batching_of", "bundle", "hypers_of", "resolve_lanes", "split_runs",
]  # fmt: skip


class SeedInputs(NamedTuple):
    """What a seed decides of a lane."""

    plans: Mapping[tuple[str, int], StepPlan]
    tests: TestRows
    fits: PyTree  # rows and mask of what readouts are fitted on; () without any


def resolve_lanes(lanes: str) -> str:
    """The way of running lanes that ``auto`` stands for here: threads on CPUs, else vmap."""
    check_known("lanes", lanes, ("auto", "threads", "sequential", "vmap", "map"))
    if lanes != "auto":
        return lanes
    return "threads" if jax.default_backend() == "cpu" else "vmap"


def hypers_of(methods: Sequence[Method], class_orders: Sequence[np.ndarray] | None) -> list[Hyper]:
    """What differs between runs that share a program; real options are arrays.

    Raises:
      UserError: for methods that need programs of their own.
    """
    dtype, shape = jnp.result_type(float), jax.tree.structure(methods[0])
    for method in methods:
        if jax.tree.structure(method) != shape:
            raise UserError(
                f"The methods {methods[0].name} and {method.name} of two runs differ in more than "
                "real options, so they cannot share a program; run them apart."
            )
    with np.errstate(over="ignore"):  # what is too large for the type diverges, and is told
        made = [jax.tree.map(lambda leaf: np.asarray(leaf, dtype), method) for method in methods]
    orders = class_orders or [None] * len(made)
    return [Hyper(method, order) for method, order in zip(made, orders, strict=True)]


def batching_of(policy: str, num: int, running: Running) -> Batching | None:
    """How runs are batched; None: each is a lane of its own."""
    on_cpu = jax.default_backend() == "cpu"
    alone = on_cpu and jax.process_count() == 1
    count = running.devices or (1 if alone else jax.device_count())
    if policy not in ("vmap", "map"):
        if count > 1:
            raise UserError(
                f"devices is {count} with lanes={policy}, but only lanes=vmap and lanes=map are "
                "split over devices; choose one of them."
            )
        return None
    if count > jax.device_count():
        raise UserError(f"devices is {count}, but there are {jax.device_count()} here.")
    size = -(-(running.lanes_at_a_time or num) // count) * count
    mesh = None
    if count > 1:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("lane",))
    return Batching(size, policy, mesh)  # type: ignore[arg-type]


def bundle(
    labels: Sequence[str],
    seeds: Sequence[int],
    hypers: Sequence[Hyper],
    inputs: Mapping[int, SeedInputs],
    batching: Batching | None,
    *,
    own_tests: bool,
) -> list[Lane]:
    """The lanes of runs: one each, or as many runs a lane as a batched program advances.

    Args:
      labels: a name for each run. inputs: by seed.
      own_tests: whether each seed has test rows of its own.
    """
    if batching is None:
        placed = {seed: _on_device(own) for seed, own in inputs.items()}
        return [
            _single(i, labels[i], seed, hypers[i], placed[seed]) for i, seed in enumerate(seeds)
        ]
    numbers = range(len(seeds))
    parts = [numbers[i : i + batching.lanes] for i in range(0, len(seeds), batching.lanes)]
    return [_batched(part, labels, seeds, hypers, inputs, batching, own_tests) for part in parts]


def _on_device(own: SeedInputs) -> SeedInputs:
    """All but the counts of tests."""
    there = device_plan(own)
    return there._replace(tests=there.tests._replace(counts=own.tests.counts))


def _single(number: int, label: str, seed: int, hyper: Hyper, own: SeedInputs) -> Lane:
    plans, (rows, mask, counts), fits = own
    hyper = jax.tree.map(jnp.asarray, hyper)
    return Lane((number,), label, (seed,), hyper, plans, (rows, mask), fits, counts, None)


def _batched(
    part: Sequence[int],
    labels: Sequence[str],
    seeds: Sequence[int],
    hypers: Sequence[Hyper],
    inputs: Mapping[int, SeedInputs],
    batching: Batching,
    own_tests: bool,
) -> Lane:
    """A lane of several runs, filled up with copies of its last one."""
    filled = tuple(part) + (part[-1],) * (batching.lanes - len(part))
    stack = lambda *leaves: put(np.stack(leaves), batching)
    of_runs = [inputs[seeds[i]] for i in filled]
    rows_mask = [(own.tests.rows, own.tests.mask) for own in of_runs]
    if own_tests:
        tests = jax.tree.map(stack, *rows_mask)
    else:
        tests = jax.tree.map(lambda a: put(a, batching, None), rows_mask[0])
    label = "+".join(labels[i] for i in part)
    if len(part) > 1:
        label = f"{len(part)}-{hashlib.sha256(label.encode()).hexdigest()[:12]}"
    return Lane(
        members=filled,
        label=label,
        seeds=tuple(seeds[i] for i in filled),
        hyper=jax.tree.map(stack, *[hypers[i] for i in filled]),
        plans=jax.tree.map(stack, *[own.plans for own in of_runs]),
        tests=tests,
        fits=jax.tree.map(stack, *[own.fits for own in of_runs]),
        counts=np.stack([own.tests.counts for own in of_runs]),
        batching=batching,
    )


def split_runs(carry: Carry, lane: Lane) -> dict[int, Carry]:
    """The carry of each run of a lane, by the run's number."""
    if lane.batching is None:
        return {lane.members[0]: carry}
    if lane.batching.mesh is not None:
        carry = jax.tree.map(checkpoint.host_copy, carry)
    return {
        member: jax.tree.map(lambda a, i=i: a[i], carry) for i, member in enumerate(lane.members)
    }
