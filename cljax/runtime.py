"""What JAX sees of a machine: ``check`` prints it, as the first cell of each notebook does.

A package that brings a newer jax leaves the plugin of the accelerator behind, and JAX then goes on
with the CPU. ``python -m cljax.runtime`` prints the same in a shell.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import jax

from cljax.engine.allocator import keep_freed_memory
from cljax.version import __version__

__all__ = ["accelerator", "advice", "check", "keep_freed_memory"]

_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")
_SECONDS = 10.0  # for the driver's answer


def check() -> None:
    """Prints versions and devices and, where JAX does not see an accelerator, how to change it."""
    devices = jax.devices()
    number = f"{len(devices)} device{'s'[: len(devices) > 1]}"
    versions = f"cljax {__version__}, jax {jax.__version__}"
    print(f"{versions}: {number} of kind {devices[0].device_kind}")
    unseen = accelerator() if jax.default_backend() == "cpu" and not _hidden(os.environ) else ""
    if unseen:
        print(advice(unseen, jax.__version__, _plugins()))


def accelerator() -> str:
    """The name of this machine's first accelerator, as its driver tells it; empty without one."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        name = ""
    else:
        name = done.stdout.partition("\n")[0].strip() if done.returncode == 0 else ""
    return name or ("TPU" if sys.platform == "linux" and any(Path("/dev").glob("accel*")) else "")


def advice(name: str, version: str, plugins: Mapping[str, str]) -> str:
    """The sentence about an accelerator that JAX does not see: why, and what to do.

    Args:
      name: the accelerator's.
      version: of jax.
      plugins: version by name, of the plugins that are installed.
    """
    other = next((plugin for plugin in plugins if plugins[plugin] != version), "")
    extra = "tpu" if name == "TPU" else "cuda13" if "cuda13" in other else "cuda12"
    remedy = f"pip install -U 'jax[{extra}]=={version}' and restart"
    if name == "TPU" or not plugins:
        why = "since it has no plugin for it"
    elif other:
        why = f"since its plugin {other} is {plugins[other]}"
    else:
        why = f"although {next(iter(plugins))} is of the same version"
        remedy = "nvidia-smi says whether the driver works"
    seen = f"This machine has an accelerator ({name}) that jax {version} does not see"
    return f"{seen}, {why}; {remedy}."


def _hidden(environment: Mapping[str, str]) -> bool:
    """Whether the user asked for the CPU."""
    asked = environment.get("JAX_PLATFORMS") or environment.get("JAX_PLATFORM_NAME")
    return bool(asked) or environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def _plugins() -> dict[str, str]:
    result = {}
    for name in _PLUGINS:
        try:
            result[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return result


if __name__ == "__main__":
    check()
