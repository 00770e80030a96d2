"""What `import cljax` costs and pulls in, seen from a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "tensorflow", "torch", "matplotlib", "tensorflow_datasets", "orbax", "tyro", "flax", "optax",
    "chex", "scipy", "sklearn", "pandas", "PIL", "equinox", "haiku", "safetensors", "sphinx",
    "wandb", "trackio", "tensorboardX",
)  # fmt: skip


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_import_is_silent_and_light():
    out = fresh(f"import sys, cljax; print([m for m in {HEAVY} if m in sys.modules])")
    assert out.strip() == "[]"


def test_import_sets_nothing_up():
    code = (
        "import os, random; before = (dict(os.environ), random.getstate());"
        "import jax; x64 = jax.config.jax_enable_x64; import cljax;"
        "assert before == (dict(os.environ), random.getstate());"
        "assert jax.config.jax_enable_x64 == x64;"
        "assert not jax._src.xla_bridge._backends"
    )
    fresh(code)


def test_the_core_works_without_optax_orbax_datasets_and_chex():
    code = (
        "import sys\n"
        "for name in ('optax', 'orbax', 'tensorflow_datasets', 'chex'): sys.modules[name] = None\n"
        "import cljax.memory.reservoir, cljax.inner_loop, cljax.metrics, cljax.methods\n"
        "print(sorted(cljax.methods.METHODS))"
    )
    assert "lamaml" in fresh(code)


def test_every_public_name_exists_and_is_documented():
    code = (
        "import cljax\n"
        "for name in cljax.__all__:\n"
        "    thing = getattr(cljax, name)\n"
        "    assert (thing.__doc__ or '').strip(), name"
    )
    fresh(code)
