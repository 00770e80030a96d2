"""The curriculum of meta-training: a bound of the loss and a length of truncation, by episode.

    level(i) = floor(i / every)                                    i episodes have ended
    tau      = min(threshold + threshold_step level, threshold_cap)
    S        = min(steps + steps_step level, steps_cap)

An episode ends where its loss passes tau, or after ``longest`` inner steps.

Source: Xiong, Ren, Zeng, Urtasun, "Learning to Remember from a Multi-Task Teacher", 2019
(arXiv:1910.04650), experiment 2: 20 to 50 by 5 and 5 to 17 by 2, every 300 episodes. The longest
episode is not stated.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from cljax.errors import UserError, check_above_zero, check_counts, check_positive, check_rate
from cljax.types import Array

__all__ = ["Curriculum", "Level", "check_curriculum", "level_at"]


class Curriculum(NamedTuple):
    """Where tau and S start, by how much they grow, and where they stop."""

    threshold: float = 20.0
    threshold_step: float = 5.0
    threshold_cap: float = 50.0
    steps: int = 5
    steps_step: int = 2
    steps_cap: int = 17
    every: int = 300  # episodes
    longest: int = 500  # inner steps of an episode, of each of its parts


class Level(NamedTuple):
    """What holds for an episode."""

    threshold: Array  # [] tau
    steps: Array  # [] int32, S


def check_curriculum(curriculum: Curriculum) -> None:
    """Raises UserError for counts below 1, bounds out of order, or truncation beyond an episode."""
    check_positive(
        truncation=curriculum.steps, truncation_cap=curriculum.steps_cap,
        level_every=curriculum.every, longest=curriculum.longest,
    )  # fmt: skip
    check_counts(truncation_step=curriculum.steps_step)
    start, step, cap = curriculum[:3]
    check_above_zero(threshold=start, threshold_cap=cap)
    check_rate(threshold_step=step)
    if start > cap:
        raise UserError(
            f"The threshold is {start} and its cap {cap}, but it must be above 0 and not above its "
            "cap."
        )
    if not curriculum.steps <= curriculum.steps_cap <= curriculum.longest:
        raise UserError(
            f"The truncation grows from {curriculum.steps} to {curriculum.steps_cap} steps, but it "
            f"must not shrink nor be longer than an episode, {curriculum.longest} steps."
        )


def level_at(curriculum: Curriculum, episodes: Array) -> Level:
    """The level once so many ``episodes`` [] int32 have ended."""
    level = episodes // curriculum.every
    threshold = curriculum.threshold + curriculum.threshold_step * level
    steps = curriculum.steps + curriculum.steps_step * level
    return Level(
        jnp.minimum(threshold, curriculum.threshold_cap),
        jnp.minimum(steps, curriculum.steps_cap),
    )
