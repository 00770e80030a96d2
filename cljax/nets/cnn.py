"""La-MAML's convolutional networks: strided convolutions, flattened, then dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from cljax.errors import UserError, check_known, check_positive, in_words
from cljax.nets.inits import KERNELS, variance_scaling
from cljax.nets.linen import from_linen
from cljax.nets.resnet import Dtype
from cljax.types import Array, Model, Net

__all__ = ["cnn"]

Init = Literal["kaiming-normal", "xavier-normal"]


def cnn(
    *widths: int,
    dense: Sequence[int] = (),
    init: Init = "kaiming-normal",
    dtype: Dtype = "float32",
) -> Net:
    """3x3 convolutions of stride 2 and padding 1, flattened, then dense layers and the outputs.

    ReLU after every layer but the last, biases everywhere, no normalisation, no pooling.
    ``cnn:160,160,160:320,320`` has 1 419 940 parameters on CIFAR-100 (32x32 images, 100 outputs);
    ``cnn:160,160,160,160:640,640`` has 2 873 640 on TinyImageNet (64x64, 200). The features are the
    last hidden layer. Flattening runs over rows, columns, then channels; the released code has
    channels first, which is another order of weights that are all drawn alike.

    Source: Gupta, Yadav, Paull, "La-MAML", NeurIPS 2020 (arXiv:2007.13904), section 5.2, and its
    released code.

    Args:
      dense: widths of the hidden dense layers, in a name after a colon.
      init: kaiming-normal, kernels N(0, 2 / fan_in) and biases 0; or xavier-normal, as the code has
        it for Meta-BGD: kernels N(0, 2 / (fan_in + fan_out)), biases of convolutions
        N(0, 2 / (1 + fan_out)), others 0. Fans count the nine places of a window.
      dtype: type of all layers but the last; parameters and logits stay in float32 (float64 for
        float64 images, with dtype float32). On accelerators products in float32 have the
        precision of JAX's ``jax_default_matmul_precision``.

    Raises:
      UserError: without widths, for one below 1, for an unknown init or dtype; and when it is
        initialised, unless examples are [height, width, channels].
    """
    dense = _checked(widths, dense, init, dtype)
    words = [init] * (init != "kaiming-normal") + [dtype] * (dtype != "float32")
    parts = [",".join(map(str, w)) for w in (widths, dense) if w]
    name = ":".join(["cnn", *parts, *words])

    def net(num_outputs: int) -> Model:
        module = _module(name, widths, dense, num_outputs, init, dtype)
        return from_linen(module, head="head", floats=True)

    net.__name__ = name
    return net


def _module(
    name: str,
    widths: tuple[int, ...],
    dense: tuple[int, ...],
    num_outputs: int,
    init: Init,
    dtype: Dtype,
) -> Any:
    """The network as a Flax module, ``(x, train) -> (logits, features)``."""
    import flax.linen as nn
    import jax.numpy as jnp

    from cljax.nets.conv import convolution

    kernels = variance_scaling(*KERNELS[init])

    def biases(width: int) -> Any:
        if init == "xavier-normal":
            return nn.initializers.normal((2 / (1 + 9 * width)) ** 0.5)
        return nn.initializers.zeros

    class CNN(nn.Module):
        @nn.compact
        def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
            if x.ndim != 4:
                raise UserError(
                    f"Examples have shape {list(x.shape[1:])}, but {name} needs images "
                    "[height, width, channels]."
                )
            stored = jnp.promote_types(x.dtype, jnp.float32)
            used = None if dtype == "float32" else jnp.dtype(dtype)
            shared: dict[str, Any] = dict(kernel_init=kernels, param_dtype=stored, dtype=used)
            for i, width in enumerate(widths):
                layer = convolution(
                    width, 3, 2, name=f"Conv_{i}", bias_init=biases(width), **shared
                )
                x = nn.relu(layer(x))
            x = x.reshape(x.shape[0], -1)
            for width in dense:
                x = nn.relu(nn.Dense(width, **shared)(x))
            features = x.astype(stored)
            head = nn.Dense(num_outputs, name="head", **{**shared, "dtype": None})
            return head(features), features

    return CNN()


def _checked(
    widths: tuple[int, ...],
    dense: Sequence[int],
    init: Init,
    dtype: Dtype,
) -> tuple[int, ...]:
    """The widths of the dense layers; or it says what is wrong with the options."""
    if not widths:
        raise UserError("cnn has no widths, but it takes one for each layer, as in cnn:20,20,20.")
    for width in widths:
        check_positive(width=width)
    if not isinstance(dense, Sequence) or isinstance(dense, (str, bytes)):
        raise UserError(f"dense is {in_words(dense)}, but it must be a list of widths.")
    for width in dense:
        check_positive(dense=width)
    check_known("initialisation", init, get_args(Init))
    check_known("dtype", dtype, get_args(Dtype))
    return tuple(int(width) for width in dense)
