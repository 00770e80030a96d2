"""The sentence of a notebook's first cell: what JAX sees, and what it does not."""

from __future__ import annotations

import os
import subprocess

import jax
import pytest

from cljax import runtime


@pytest.fixture
def machine(monkeypatch):
    """Plays a machine: what its driver answers, the plugins installed, the variables set."""

    def play(driver="", plugins=(), **variables):
        def answer(command, **options):
            if not driver:
                raise FileNotFoundError(command[0])
            return subprocess.CompletedProcess(command, 0, stdout=driver, stderr="")

        for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "CUDA_VISIBLE_DEVICES"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(runtime.subprocess, "run", answer)
        monkeypatch.setattr(runtime, "_plugins", lambda: dict(plugins))
        monkeypatch.setattr(runtime.jax, "default_backend", lambda: "cpu")

    return play


def test_versions_and_devices_are_one_line(machine, capsys):
    machine()
    runtime.check()
    line = capsys.readouterr().out
    assert line.startswith("cljax ") and f"jax {jax.__version__}: " in line
    assert "of kind cpu" in line and line.count("\n") == 1


def test_an_accelerator_that_jax_does_not_see_is_named_with_the_remedy(machine, capsys):
    machine("Tesla T4\nTesla T4\n", {"jax-cuda12-plugin": "0.7.2"})
    runtime.check()
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("This machine has an accelerator (Tesla T4) that jax ")
    assert "since its plugin jax-cuda12-plugin is 0.7.2" in line
    assert f"'jax[cuda12]=={jax.__version__}' and restart." in line


@pytest.mark.parametrize(
    "variables",
    [{"JAX_PLATFORMS": "cpu"}, {"JAX_PLATFORM_NAME": "cpu"}, {"CUDA_VISIBLE_DEVICES": ""}],
)
def test_who_asked_for_the_cpu_hears_nothing_of_an_accelerator(machine, variables, capsys):
    machine("Tesla T4\n", **variables)
    runtime.check()
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(
    ("plugins", "why", "remedy"),
    [
        ({}, "since it has no plugin for it", "jax[cuda12]==0.8.0"),
        ({"jax-cuda13-plugin": "0.7.0"}, "since its plugin jax-cuda13-plugin is 0.7.0",
         "jax[cuda13]==0.8.0"),
        ({"jax-cuda12-plugin": "0.8.0"}, "although jax-cuda12-plugin is of the same version",
         "nvidia-smi"),
    ],
)  # fmt: skip
def test_the_advice_fits_the_plugin(plugins, why, remedy):
    said = runtime.advice("L4", "0.8.0", plugins)
    assert why in said and remedy in said and said.endswith(".")


def test_a_driver_that_hangs_or_fails_is_no_accelerator(machine, monkeypatch):
    machine()
    monkeypatch.setattr(runtime.Path, "glob", lambda self, pattern: iter(()))
    assert runtime.accelerator() == ""

    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(runtime.subprocess, "run", hang)
    assert runtime.accelerator() == ""
    monkeypatch.setattr(
        runtime.subprocess, "run",
        lambda command, **_: subprocess.CompletedProcess(command, 9, "NVIDIA-SMI has failed", ""),
    )  # fmt: skip
    assert runtime.accelerator() == ""


def test_a_tpu_is_told_by_its_device(machine, monkeypatch):
    machine()
    monkeypatch.setattr(runtime.sys, "platform", "linux")
    monkeypatch.setattr(runtime.Path, "glob", lambda self, pattern: iter([os.devnull]))
    assert runtime.accelerator() == "TPU"
    assert "jax[tpu]==0.8.0" in runtime.advice("TPU", "0.8.0", {})
