"""What of the surroundings can change a run's bits: settings of JAX and XLA, processor, versions.

They are no part of a run's identity. They are recorded in its config; a run is continued only where
all of them are the same, and a finished one says with which it was made where they now differ.
"""

from __future__ import annotations

import functools
import os
import platform
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

__all__ = ["changes", "decisive", "settings"]

# Options of jax.config that choose other arithmetic, other random bits or another program.
_OF_JAX = (
    "allow_f16_reductions", "compiler_enable_remat_pass", "custom_vjp3", "default_device",
    "default_matmul_precision", "default_prng_impl", "disable_jit", "disable_most_optimizations",
    "enable_custom_prng", "enable_x64", "exec_time_optimization_effort", "explicit_x64_dtypes",
    "high_dynamic_range_gumbel", "memory_fitting_effort", "memory_fitting_level",
    "numpy_dtype_promotion", "optimization_level", "pallas_use_mosaic_gpu",
    "ragged_dot_use_gpu_pallas_triton_lowering", "ragged_dot_use_ragged_dot_instruction",
    "random_seed_offset", "remat3", "scan3", "softmax_custom_jvp", "threefry_gpu_kernel_lowering",
    "threefry_partitionable", "use_direct_linearize", "use_magma", "use_shardy_partitioner",
    "use_simplified_jaxpr_constants", "xla_profile_version",
)  # fmt: skip
_OF_ENVIRONMENT = (
    "CUBLAS_WORKSPACE_CONFIG", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE",
    "TF_CUDNN_DETERMINISTIC",
)  # fmt: skip
# Words in XLA's flags about devices, dumps and messages, which change no bit.
_HARMLESS = ("device_count", "dump", "log", "profile", "cuda_data_dir", "verbose")
# Of a processor's features those that XLA compiles arithmetic for.
_ARITHMETIC = ("amx", "asimd", "avx", "bf16", "f16c", "fma", "i8mm", "sse4", "sve", "svebf16")
_VERSIONS = ("cljax", "jax", "jaxlib", "flax", "optax", "numpy")


def settings() -> dict[str, Any]:
    """The settings that change bits as they are now, for a run's config."""
    result: dict[str, Any] = {}
    for name in _OF_JAX:
        if not hasattr(jax.config, f"jax_{name}"):  # of another version of JAX
            continue
        value = getattr(jax.config, f"jax_{name}")
        plain = value is None or type(value) in (bool, int, float, str)
        result[f"jax_{name}"] = value if plain else str(value)
    result |= {name: os.environ[name] for name in _OF_ENVIRONMENT if name in os.environ}
    device = jax.devices()[0]
    return {
        **result,
        "xla_flags": _flags(os.environ.get("XLA_FLAGS", "")),
        "processor": _processor() if device.platform == "cpu" else device.device_kind,
        "platform_version": getattr(device.client, "platform_version", ""),
    }


def _flags(text: str) -> dict[str, str]:
    """XLA's flags by name, the last of each, in whatever order and form they were given."""
    words = text.strip()
    if words and not words.startswith("-"):  # the name of a file that holds them
        try:
            words = Path(words).read_text("utf-8")
        except (OSError, ValueError):
            return {"file": words}
    pairs = [word.lstrip("-").partition("=") for word in shlex.split(words)]
    kept = {name: value or "true" for name, _, value in pairs if not _harmless(name)}
    same = {"1": "true", "0": "false"}
    return {name: same.get(value.lower(), value) for name, value in sorted(kept.items())}


def _harmless(name: str) -> bool:
    return any(word in name for word in _HARMLESS)


@functools.cache
def _processor() -> str:
    """Its architecture and the instruction sets that numbers are computed with."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return " ".join((platform.machine(), platform.processor())).strip()
    listed = [line.partition(":")[2] for line in lines if line[:5] in ("flags", "Featu")]
    words = {word for word in " ".join(listed[:1]).split() if word.startswith(_ARITHMETIC)}
    return " ".join([platform.machine(), *sorted(words)])


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config must be the same to go on with its run: name -> value.

    The device, the versions of cljax, JAX and the packages that the run's own objects come from,
    and the settings that change bits.
    """
    names = (*_VERSIONS, *config.get("packages", ()))
    versions = {f"version of {name}": config["versions"].get(name) for name in names}
    of_device = {"backend": config["device"]["backend"], "device": config["device"]["kind"]}
    own = dict(config.get("settings", {}))
    flags = {f"--{name} of XLA_FLAGS": value for name, value in own.pop("xla_flags", {}).items()}
    return {**of_device, **versions, **own, **flags}


def changes(config: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of ``decisive`` two configs differ in, such as ``version of jax: 0.10.1, now 0.10.2``.

    A config of before settings were recorded says nothing of them.
    """
    was, own = decisive(config), decisive(now)
    names = [name for name in was if name in own] if "settings" not in config else {**was, **own}
    return [
        f"{name}: {was.get(name)}, now {own.get(name)}"
        for name in names
        if was.get(name) != own.get(name)
    ]
