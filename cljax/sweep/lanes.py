"""The lanes of a sweep: settings and seeds, and the names of their folders."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np

from cljax.errors import UserError, check_positive, in_words
from cljax.identity.content import content, digest_of
from cljax.keys import check_seed, check_seeds
from cljax.options import Options
from cljax.runner.config import plain

__all__ = [
    "FIRST_SEED", "OF_RUN", "Lane", "On", "duration", "grid", "is_data", "label", "lanes_of",
    "short", "written",
]  # fmt: skip

FIRST_SEED = 1000  # of tuning; the seeds that runs report start at 0
OF_RUN = ("net", "batch_size", "epochs")  # what a setting may change beside the method's options
On: TypeAlias = Literal["validation", "test"]


class Lane(NamedTuple):
    """One run of a sweep."""

    setting: Mapping[str, Any]
    seed: int

    @property
    def name(self) -> str:
        """Its folder below ``lanes``."""
        return f"{label(self.setting)}/seed-{self.seed}"


def grid(**values: Sequence[Any]) -> list[dict[str, Any]]:
    """Every combination of values, the last name varying fastest.

    Raises:
      UserError: for a name without a list of values.

    Example:
        >>> import cljax
        >>> cljax.sweep.grid(lr=[0.1, 0.2], seed=range(2))[1:3]
        [{'lr': 0.1, 'seed': 1}, {'lr': 0.2, 'seed': 0}]
    """
    for name, options in values.items():
        if isinstance(options, str) or not np.iterable(options) or not len(list(options)):
            raise UserError(f"{name} is {in_words(options)}, but a grid needs a list of values.")
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def label(setting: Mapping[str, Any]) -> str:
    """A setting as text that can name a folder."""
    parts = [f"{name}={short(value)}" for name, value in sorted(setting.items())]
    text = ",".join(parts) or "default"
    text = re.sub(r"[^A-Za-z0-9=.,_+-]+", "-", text)
    if len(text) <= 120:
        return text
    return f"{text[:100]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def lanes_of(
    settings: Sequence[Mapping[str, Any]], seeds: int | Sequence[int], on: On
) -> list[Lane]:
    """A lane for every setting and seed; see ``cljax.sweep.plan``."""
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        check_positive(seeds=seeds)
        first = FIRST_SEED if on == "validation" else 0
        check_seed(first + seeds - 1)
        seeds = range(first, first + seeds)
    listed = isinstance(settings, (list, tuple))
    if not listed or not settings or not all(isinstance(setting, Mapping) for setting in settings):
        raise UserError(
            f"settings is {in_words(settings)}, but it must be a list of settings, such as "
            "cljax.sweep.grid(lr=[0.1, 0.2]) makes."
        )
    seeds = check_seeds(seeds)
    lanes = []
    for setting in settings:
        own = {name: value for name, value in setting.items() if name != "seed"}
        chosen = [setting["seed"]] if "seed" in setting else seeds
        lanes += [Lane(own, check_seed(seed)) for seed in chosen]
    names = [lane.name for lane in lanes]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"The lane {twice} is there twice; give each setting and seed once.")
    return lanes


def short(value: Any) -> str:
    """A value as part of a folder's name, the same for an object and for what is written of it."""
    value = written(value)
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, Mapping):
        return f"{value.get('name', 'dict')}-{digest_of(value)[:8]}"
    return str(value)


def written(value: Any) -> Any:
    """A value as ``sweep.json`` has it: of an object what it is called, and of what content."""
    if is_data(value) or isinstance(value, Options):
        return plain(value)
    name = getattr(value, "__name__", type(value).__name__).strip("<>")
    return f"{name}-{digest_of(content(value).json)[:8]}"


def is_data(value: Any) -> bool:
    """Whether a value is numbers and text alone, which JSON holds."""
    if isinstance(value, Mapping):
        return all(is_data(entry) for entry in value.values())
    if isinstance(value, (list, tuple)):
        return not hasattr(value, "_asdict") and all(is_data(entry) for entry in value)
    known = (bool, int, float, str, np.generic, np.ndarray, jax.Array)
    return value is None or isinstance(value, known)


def duration(seconds: float) -> str:
    """Seconds as people say them: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
