"""Recipes of La-MAML's Table 3: the rows that are published, and the script's values."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from cljax import resolve
from cljax.recipes import recipe
from cljax.recipes.lamaml_table3 import RECIPES
from cljax.references.published import sources
from cljax.types import Spec

CIFAR, TINY = "cifar100-20x5", "tinyimagenet-40x5"


@pytest.mark.parametrize("passes", ["single", "multiple"])
def test_every_published_row_has_both_variants(passes):
    source = f"lamaml-table3-{passes}"
    there = {(r.method, r.stream, r.variant) for r in RECIPES if r.source == source}
    rows = sources()[source].cells
    assert {(*row, variant) for row in rows for variant in ("reference", "paper")} <= there
    assert len(there) == sum(r.source == source for r in RECIPES)


@pytest.mark.parametrize("entry", RECIPES, ids=lambda r: f"{r.method}-{r.name}-{r.stream[:5]}")
def test_every_recipe_fits_its_stream_and_network(entry):
    tasks, side = {CIFAR: (20, 32), TINY: (40, 64)}[entry.stream]
    mask = np.arange(5 * tasks) // 5 == np.arange(tasks)[:, None]
    spec = Spec(jax.ShapeDtypeStruct((side, side, 3), np.float32), mask, entry.batch_size, True)
    net = resolve.net(entry.net)
    assert net.__name__ == entry.net
    learner = resolve.method(entry.method, **entry.method_options).bind(net(spec.num_classes), spec)
    assert "logits" in learner.predictors


def values(method, stream, passes, variant="reference"):
    found = recipe(method, stream, f"lamaml-table3-{passes}", variant)
    return found, found.method_options


def test_the_scripts_values():
    found, ours = values("lamaml", CIFAR, "single")
    assert (ours["alpha_init"], ours["alpha_lr"], ours["glances"]) == (0.1, 0.25, 10)
    assert (ours["clip_norm"], ours["inner_clip"], ours["capacity"]) == (1.0, 1.0, 200)
    assert (ours["order"], ours["inner_steps"], ours["inner_relu"]) == ("second", 5, False)
    assert (found.epochs, found.batch_size, found.net) == (1, 10, "cnn:160,160,160:320,320")
    assert found.stream_options["class_order"] == "per-seed"
    found, tiny = values("lamaml", TINY, "multiple")
    assert (tiny["alpha_lr"], tiny["glances"], tiny["capacity"], found.epochs) == (0.4, 1, 400, 10)
    assert values("sync-lamaml", CIFAR, "single")[1]["alpha_lr"] == 0.35
    assert values("cmaml", TINY, "single")[1]["lr"] == 0.03
    assert values("la-er", TINY, "single")[1]["alpha_init"] == 0.3
    assert values("er", CIFAR, "single")[1]["replay_size"] == 1
    assert values("gem", TINY, "multiple")[1]["clip_norm"] == 2.0
    assert values("agem", CIFAR, "single")[1]["skip_first_task"]
    found, mer = values("mer", CIFAR, "single")
    assert (found.batch_size, mer["replay_size"], mer["clip_norm"]) == (1, 25, 10.0)
    found, bgd = values("meta-bgd", TINY, "single")
    assert (bgd["lr"], bgd["std_init"], bgd["inner_steps"]) == (30.0, 0.015, 3)
    assert found.net.endswith(":xavier-normal")
    found, _ = values("iid", CIFAR, "multiple")
    assert (found.epochs, found.batch_size) == (50, 32)


def test_the_printed_values():
    assert values("lamaml", CIFAR, "single", "paper")[1]["alpha_lr"] == 0.3
    printed = values("cmaml", CIFAR, "single", "paper")[1]
    assert (printed["alpha_init"], printed["lr"], printed["glances"]) == (0.03, 0.03, 5)
    assert printed["reservoir_rule"] == "textbook"
    assert values("er", TINY, "single", "paper")[1]["replay_size"] == 10
    assert values("gem", CIFAR, "single", "paper")[1]["clip_norm"] == 2.0
