"""Multi-layer perceptrons."""

from __future__ import annotations

from typing import Any, Literal

import jax

from cljax.errors import check_known, check_positive
from cljax.nets.linen import from_linen
from cljax.types import Array, FirstProduct, Model, Net, Params

__all__ = ["mlp"]

# Name -> (scale, mode, distribution) of Flax's variance scaling.
_INITS: dict[str, tuple[float, Any, Any]] = {
    "kaiming-normal": (2.0, "fan_in", "normal"),  # La-MAML code: N(0, 2 / fan_in), output layer too
    "xavier-uniform": (1.0, "fan_avg", "uniform"),  # MER code
    "lecun-normal": (1.0, "fan_in", "normal"),
}


def mlp(
    *widths: int,
    init: Literal["kaiming-normal", "xavier-uniform", "lecun-normal"] = "kaiming-normal",
) -> Net:
    """ReLU layers of the given widths and a linear output, all with biases that start at zero.

    ``mlp(100, 100)`` on 784 pixels and 10 classes has 89 610 parameters (La-MAML, section 5).
    Inputs of any shape are flattened. The features are the last hidden layer.

    Raises:
      UserError: if a width is below 1 or ``init`` is not known.
    """
    for width in widths:
        check_positive(width=width)
    check_known("initialisation", init, _INITS)

    def net(num_outputs: int) -> Model:
        import flax.linen as nn

        class MLP(nn.Module):
            @nn.compact
            def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
                scaling = nn.initializers.variance_scaling(*_INITS[init])
                x = x.reshape(x.shape[0], -1)
                for width in widths:
                    # Parameters take the inputs' precision: float64 data makes a float64 run.
                    x = nn.relu(nn.Dense(width, kernel_init=scaling, param_dtype=x.dtype)(x))
                return nn.Dense(num_outputs, kernel_init=scaling, param_dtype=x.dtype)(x), x

        return from_linen(MLP())._replace(first_product=_first_product(len(widths)))

    net.__name__ = f"mlp:{','.join(map(str, widths))}" + (
        f":{init}" if init != "kaiming-normal" else ""
    )
    return net


def _first_product(num_hidden: int) -> FirstProduct:
    """The same network from ``x @ kernel`` on; layer i of Linen's is ``Dense_i``."""

    def split(params: Params) -> tuple[Array, Params]:
        first = params["Dense_0"]
        return first["kernel"], {**params, "Dense_0": {"bias": first["bias"]}}

    def join(kernel: Array, rest: Params) -> Params:
        return {**rest, "Dense_0": {"kernel": kernel, **rest["Dense_0"]}}

    def apply(rest: Params, z: Array) -> Array:
        z = z + rest["Dense_0"]["bias"][None]
        for layer in range(1, num_hidden + 1):
            dense = rest[f"Dense_{layer}"]
            z = jax.nn.relu(z) @ dense["kernel"] + dense["bias"][None]
        return z

    return FirstProduct(split, join, apply)
