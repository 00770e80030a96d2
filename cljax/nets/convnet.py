"""Plain convolutional networks for small images."""

from __future__ import annotations

from typing import get_args

from cljax.errors import UserError, check_known, check_positive
from cljax.nets.linen import from_linen
from cljax.nets.resnet import Norm
from cljax.types import Array, Model, Net

__all__ = ["convnet"]


def convnet(*widths: int, norm: Norm = "batch") -> Net:
    """3x3 convolutions of the given widths, each normalised and rectified; mean-pooling.

    The first has stride 1, the others 2; none has a bias. The features are the last width's
    channels, averaged over positions, and the head is linear. ``conv:8,16,16:group`` on RGB images
    and 10 outputs has 3 922 parameters.

    Args:
      norm: BatchNorm, or GroupNorm of 8 groups (fewer where 8 do not divide the width), under
        which examples do not see each other.

    Raises:
      UserError: without widths, for one below 1, or for an unknown norm.
    """
    if not widths:
        raise UserError("conv has no widths, but it takes one for each layer, as in conv:8,16,16.")
    for width in widths:
        check_positive(width=width)
    check_known("norm", norm, get_args(Norm))

    def net(num_outputs: int) -> Model:
        import flax.linen as nn
        import jax.numpy as jnp

        from cljax.nets.residual import ConvBN, ConvGN, linear

        layer = ConvGN if norm == "group" else ConvBN

        class ConvNet(nn.Module):
            @nn.compact
            def __call__(
                self, x: Array, train: bool, member: Array | None = None
            ) -> tuple[Array, Array]:
                kept = jnp.promote_types(x.dtype, jnp.float32)
                for place, width in enumerate(widths):
                    stride = 2 if place else 1
                    conv = layer(width, stride=stride, param_dtype=kept)
                    x = nn.relu(conv(x, train, member))
                features = jnp.mean(x, axis=(1, 2))
                return linear(num_outputs, features), features

        return from_linen(ConvNet(), head="head", floats=True)

    net.__name__ = ":".join(["conv", ",".join(map(str, widths))] + ["group"] * (norm == "group"))
    return net
