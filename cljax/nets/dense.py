"""Multi-layer perceptrons."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax

from cljax.errors import check_flag, check_known, check_positive
from cljax.nets.cosine import Head, cosine_head
from cljax.nets.inits import KERNELS, fan_in_uniform, variance_scaling
from cljax.nets.linen import from_linen
from cljax.types import Array, FirstProduct, Model, Net, Params

__all__ = ["mlp"]

Init = Literal["kaiming-normal", "xavier-normal", "xavier-uniform", "lecun-normal", "pytorch"]


def mlp(
    *widths: int,
    init: Init = "kaiming-normal",
    head_bias: bool = True,
    head: Head = "linear",
) -> Net:
    """ReLU layers of the given widths and an output layer, with biases.

    ``mlp(100, 100)`` on 784 pixels and 10 classes has 89 610 parameters (La-MAML, section 5);
    ``mlp(400, 400, init="pytorch", head_bias=False)`` has 478 400 (iTAML code). Inputs of any
    shape are flattened. The features are the last hidden layer.

    Args:
      init: of the kernels; biases start at zero, with pytorch as its kernels.
      head_bias: whether a linear output layer has a bias.
      head: linear, or cosine for one that compares directions and has no bias (see
        ``cljax.nets.cosine``); such a network has no first product.

    Raises:
      UserError: if a width is below 1, or ``init`` or ``head`` is not known.
    """
    for width in widths:
        check_positive(width=width)
    check_known("initialisation", init, KERNELS)
    check_known("head", head, get_args(Head))
    check_flag(head_bias=head_bias)

    def net(num_outputs: int) -> Model:
        import flax.linen as nn

        class MLP(nn.Module):
            @nn.compact
            def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
                x = x.reshape(x.shape[0], -1)
                for width in widths:
                    x = nn.relu(_linear(width, x, init)(x))
                if head == "cosine":
                    return cosine_head(num_outputs)(x), x
                return _linear(num_outputs, x, init, head_bias)(x), x

        if head == "cosine":
            return from_linen(MLP(), head="head", floats=True)._replace(cosine=True)
        last = f"Dense_{len(widths)}"
        return from_linen(MLP(), head=last, floats=True)._replace(
            first_product=_first_product(len(widths))
        )

    net.__name__ = f"mlp:{','.join(map(str, widths))}" + (
        f":{init}" if init != "kaiming-normal" else ""
    )
    if head == "cosine":
        net.__name__ += ":cosine"
    elif not head_bias:
        net.__name__ += ":no-head-bias"
    return net


def _linear(width: int, x: Array, init: str, use_bias: bool = True) -> Any:
    """The Linen layer for ``x``, named ``Dense_i``; only inside a compact method."""
    import flax.linen as nn

    zeros = nn.initializers.zeros
    return nn.Dense(
        width,
        use_bias=use_bias,
        kernel_init=variance_scaling(*KERNELS[init]),
        bias_init=fan_in_uniform(x.shape[-1]) if init == "pytorch" else zeros,
        # Parameters take the inputs' precision: float64 data makes a float64 run.
        param_dtype=x.dtype,
    )


def _first_product(num_hidden: int) -> FirstProduct:
    """The same network from ``x @ kernel`` on; layer i of Linen's is ``Dense_i``."""

    def add_bias(dense: Params, z: Array) -> Array:
        return z + dense["bias"][None] if "bias" in dense else z

    def split(params: Params) -> tuple[Array, Params]:
        first = params["Dense_0"]
        rest = {name: leaf for name, leaf in first.items() if name != "kernel"}
        return first["kernel"], {**params, "Dense_0": rest}

    def join(kernel: Array, rest: Params) -> Params:
        return {**rest, "Dense_0": {"kernel": kernel, **rest["Dense_0"]}}

    def apply(rest: Params, z: Array) -> Array:
        z = add_bias(rest["Dense_0"], z)
        for layer in range(1, num_hidden + 1):
            dense = rest[f"Dense_{layer}"]
            z = add_bias(dense, jax.nn.relu(z) @ dense["kernel"])
        return z

    return FirstProduct(split, join, apply)
