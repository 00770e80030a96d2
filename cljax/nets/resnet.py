"""Residual networks with 18 layers: iTAML's thinner one for small images, and ImageNet's.

Source: Rajasegaran et al., "iTAML: An Incremental Task-Agnostic Meta-learning Approach", CVPR
2020 (arXiv:2003.11652), which takes the first from RPS-net (NeurIPS 2019, arXiv:1906.01120) with
a single path; He et al., "Deep Residual Learning for Image Recognition", CVPR 2016
(arXiv:1512.03385), for the second.
"""

from __future__ import annotations

from typing import Any, Literal

from cljax.errors import UserError, check_known, check_positive
from cljax.nets.linen import from_linen
from cljax.types import Model, Net

__all__ = ["resnet18", "resnet18_third"]

Dtype = Literal["float32", "bfloat16"]


def resnet18_third(*widths: int, dtype: Dtype = "float32") -> Net:
    """ResNet-18(1/3) for 32x32 images: four stages of two blocks, generalised-mean pooling.

    Stages of widths 21, 42, 85, 170 unless given; every convolution has a bias, and the head has
    none. The second blocks of stages 2 and 3 end in a 2x2 max-pool, the only down-sampling. 100
    outputs make 1 250 236 parameters, one fewer than the authors', whose network holds a scalar
    that it never uses.

    Args:
      dtype: type of convolutions and activations; parameters, statistics of BatchNorm, pooled
        features and logits stay in float32 (float64 for float64 images, with dtype float32).

    Raises:
      UserError: unless there are four widths of at least 1, or for an unknown dtype.
    """
    widths = widths or (21, 42, 85, 170)
    if len(widths) != 4:
        given = ",".join(map(str, widths))
        raise UserError(
            f"resnet18-third has widths {given}, but it takes four, such as 8,16,32,64."
        )
    for width in widths:
        check_positive(width=width)
    compute = _compute(dtype)

    def net(num_outputs: int) -> Model:
        from cljax.nets.residual import SinglePath

        return from_linen(SinglePath(num_outputs, widths, compute), head="head")

    net.__name__ = f"resnet18-third:{','.join(map(str, widths))}" + _suffix(dtype)
    return net


def resnet18(*, dtype: Dtype = "float32") -> Net:
    """ResNet-18 as for ImageNet: 7x7 stem of stride 2, max-pool, widths 64 to 512, mean-pooling.

    Convolutions have no bias, the head has one: 11 227 812 parameters with 100 outputs.

    Args:
      dtype: type of convolutions and activations, as of ``resnet18_third``.

    Raises:
      UserError: for an unknown dtype.
    """
    compute = _compute(dtype)

    def net(num_outputs: int) -> Model:
        from cljax.nets.residual import ResNet18

        return from_linen(ResNet18(num_outputs, compute), head="head")

    net.__name__ = "resnet18" + _suffix(dtype)
    return net


def _compute(dtype: str) -> Any:
    """Flax's ``dtype``: None keeps to the parameters'."""
    check_known("dtype", dtype, ("float32", "bfloat16"))
    return None if dtype == "float32" else dtype


def _suffix(dtype: str) -> str:
    return "" if dtype == "float32" else f":{dtype}"
