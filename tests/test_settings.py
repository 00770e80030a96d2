"""Settings, processor and versions: recorded, the same for a run to go on, and said where not."""

from __future__ import annotations

import importlib

import jax
import pytest
import support

import cljax
from cljax.errors import UserError
from cljax.runner import settings
from cljax.runner.config import since
from cljax.runner.options import RunOptions
from cljax.runner.prepare import prepare

SMALL = RunOptions(net="mlp:5", seeds=1, batch_size=4)


def config():
    return prepare(cljax.Finetune(), support.stream(), SMALL).config


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("", {}),
        ("--xla_cpu_max_isa=AVX2 --xla_dump_to=/x", {"xla_cpu_max_isa": "AVX2"}),
        ("--xla_force_host_platform_device_count=8", {}),
        ("--xla_a=1 --xla_cpu_enable_fast_math", {"xla_a": "true",
                                                  "xla_cpu_enable_fast_math": "true"}),
        ("--xla_a=2 --xla_a=3", {"xla_a": "3"}),
    ],
)  # fmt: skip
def test_flags_of_xla_are_compared_as_parsed(monkeypatch, flags, found):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert settings.settings()["xla_flags"] == found


def test_every_setting_that_changes_bits_is_decisive_and_no_part_of_the_hash(monkeypatch):
    base = config()
    assert since(base) == []
    changed = {
        "jax_threefry_partitionable": lambda: jax.threefry_partitionable(False),
        "jax_default_matmul_precision": lambda: jax.default_matmul_precision("bfloat16"),
        "jax_numpy_dtype_promotion": lambda: jax.numpy_dtype_promotion("strict"),
        "jax_default_prng_impl": lambda: jax.default_prng_impl("rbg"),
    }
    for name, change in changed.items():
        with change():
            assert [line.partition(":")[0] for line in since(base)] == [name]
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert any("--xla_cpu_enable_fast_math of XLA_FLAGS" in line for line in since(base))
    assert config()["config_hash"] == base["config_hash"]
    monkeypatch.undo()
    monkeypatch.setattr(settings, "_processor", lambda: "x86_64 sse4_2")
    assert any(line.endswith("now x86_64 sse4_2") for line in since(base))


def test_packages_of_own_objects_are_recorded(monkeypatch):
    optax = pytest.importorskip("optax")
    method = cljax.Finetune(optimizer=optax.sgd(0.1))
    made = prepare(method, support.stream(), SMALL).config
    assert "optax" in made["packages"] and made["versions"]["optax"] == optax.__version__
    older = {**made, "versions": {**made["versions"], "optax": "0.0.1"}}
    assert since(older) == [f"version of optax: 0.0.1, now {optax.__version__}"]
    before = {name: value for name, value in made.items() if name not in ("settings", "packages")}
    assert since(before) == []  # of a version that recorded neither


def test_a_run_goes_on_only_with_the_same_settings_and_is_read_back_with_any(tmp_path, monkeypatch):
    runs = importlib.import_module("cljax.runner.run")
    often = cljax.Running(checkpoint_every="1", segment_seconds=0.001)

    class Stop(Exception):
        pass

    def stop(event):
        if event.kind == "checkpoint":
            raise Stop

    def go(**options):
        return cljax.run(
            cljax.Finetune(), support.stream(), seeds=1, net="mlp:5", batch_size=4,
            out=tmp_path / "run", running=often, **options,
        )  # fmt: skip

    with pytest.raises(Stop):
        go(progress=stop)
    with jax.threefry_partitionable(False):
        with pytest.raises(UserError, match="jax_threefry_partitionable was True and is False"):
            go()
    whole = go()
    assert "Made with" not in whole.table()
    with jax.threefry_partitionable(False):
        again = go()
        assert again.resumed and again.results == whole.results
        assert "Made with jax_threefry_partitionable: True, now False." in again.table()
    assert runs.load(tmp_path / "run").table() == whole.table()
