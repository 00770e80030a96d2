"""Residual networks: CIFAR's with 32, 14 and 8 layers, and two with 18, iTAML's and ImageNet's.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv:1512.03385);
Liu et al., "Mnemonics Training", CVPR 2020 (arXiv:2002.10211), released code, for CIFAR's, their
projections, cosine heads and features that may be negative. Rajasegaran et al., "iTAML: An
Incremental Task-Agnostic Meta-learning Approach", CVPR 2020 (arXiv:2003.11652), for the thinner
ResNet-18, that of RPS-net (NeurIPS 2019, arXiv:1906.01120) with a single path. Xiong et al.,
"Learning to Remember from a Multi-Task Teacher", 2019, for CIFAR's with GroupNorm.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

from cljax.errors import UserError, check_flag, check_known, check_positive
from cljax.nets.cosine import Head
from cljax.nets.linen import from_linen
from cljax.types import Model, Net

__all__ = ["Norm", "resnet8", "resnet14", "resnet18", "resnet18_third", "resnet32"]

Dtype = Literal["float32", "bfloat16"]
Norm = Literal["batch", "group"]


class _Stages(NamedTuple):
    """The body of a ResNet: widths of its stages, blocks of each, and what stands before them."""

    widths: tuple[int, ...]
    blocks: int
    large_stem: bool = False  # 7x7 of stride 2 and a max-pool, as for ImageNet
    group: bool = False  # GroupNorm, else BatchNorm


def resnet32(
    *widths: int,
    norm: Norm = "batch",
    head: Head | None = None,
    last_relu: bool | None = None,
    dtype: Dtype = "float32",
) -> Net:
    """ResNet-32 for 32x32 images: a 3x3 stem, three stages of five blocks, mean-pooling.

    Stages of widths 16, 32, 64 unless given; the second and third start with stride 2 and a 1x1
    projection. Convolutions have no bias: 466 256 parameters before the head, and with a cosine
    head of 50 outputs 469 457. With GroupNorm shortcuts have no parameters, every other pixel and
    channels of zeros in place of projections: 463 504 before the head.

    Args:
      norm: BatchNorm, or GroupNorm of 8 groups (fewer where 8 do not divide the width), under
        which examples do not see each other.
      head: cosine compares directions and has no bias (see ``cljax.nets.cosine``); linear has one.
        None is cosine, but linear with GroupNorm.
      last_relu: whether a ReLU follows the last block; without it features may be negative. None
        is False, but True with GroupNorm.
      dtype: type of convolutions and activations; parameters, statistics of BatchNorm, pooled
        features and logits stay in float32 (float64 for float64 images, with dtype float32).

    Raises:
      UserError: unless there are three widths of at least 1, or for an unknown norm, head or
        dtype; also for widths that fall, with GroupNorm.
    """
    usual = _Stages((16, 32, 64), 5)
    return _cifar("resnet32", usual, widths, norm, head, last_relu, dtype)


def resnet14(
    *widths: int,
    norm: Norm = "batch",
    head: Head | None = None,
    last_relu: bool | None = None,
    dtype: Dtype = "float32",
) -> Net:
    """ResNet-14 for 32x32 images: ``resnet32`` with two blocks a stage.

    With GroupNorm 171 856 parameters before the head.

    Args:
      norm: BatchNorm or GroupNorm, as of ``resnet32``.
      head: linear or cosine, as of ``resnet32``.
      last_relu: whether a ReLU follows the last block, as of ``resnet32``.
      dtype: type of convolutions and activations, as of ``resnet32``.

    Raises:
      UserError: as ``resnet32``.
    """
    usual = _Stages((16, 32, 64), 2)
    return _cifar("resnet14", usual, widths, norm, head, last_relu, dtype)


def resnet8(
    *widths: int,
    norm: Norm = "batch",
    head: Head | None = None,
    last_relu: bool | None = None,
    dtype: Dtype = "float32",
) -> Net:
    """ResNet-8 for small images: ``resnet32`` with one block a stage, of widths 8, 16, 32.

    Args:
      norm: BatchNorm or GroupNorm, as of ``resnet32``.
      head: linear or cosine, as of ``resnet32``.
      last_relu: whether a ReLU follows the last block, as of ``resnet32``.
      dtype: type of convolutions and activations, as of ``resnet32``.

    Raises:
      UserError: as ``resnet32``.
    """
    usual = _Stages((8, 16, 32), 1)
    return _cifar("resnet8", usual, widths, norm, head, last_relu, dtype)


def resnet18_third(*widths: int, dtype: Dtype = "float32") -> Net:
    """ResNet-18(1/3) for 32x32 images: four stages of two blocks, generalised-mean pooling.

    Stages of widths 21, 42, 85, 170 unless given; every convolution has a bias, and the head has
    none. The second blocks of stages 2 and 3 end in a 2x2 max-pool, the only down-sampling. 100
    outputs make 1 250 236 parameters, one fewer than the authors', whose network holds a scalar
    that it never uses.

    Args:
      dtype: type of convolutions and activations, as of ``resnet32``.

    Raises:
      UserError: unless there are four widths of at least 1, or for an unknown dtype.
    """
    widths = _checked("resnet18-third", widths, (21, 42, 85, 170))
    compute = _compute(dtype)

    def net(num_outputs: int) -> Model:
        from cljax.nets.residual import SinglePath

        return from_linen(SinglePath(num_outputs, widths, compute), head="head", floats=True)

    net.__name__ = _name("resnet18-third", ",".join(map(str, widths)), dtype)
    return net


def resnet18(*, head: Head = "linear", last_relu: bool = True, dtype: Dtype = "float32") -> Net:
    """ResNet-18 as for ImageNet: 7x7 stem of stride 2, max-pool, widths 64 to 512, mean-pooling.

    Convolutions have no bias, a linear head has one: 11 227 812 parameters with 100 outputs.
    Mnemonics training's has a cosine head and no last ReLU: 11 202 113 with 50.

    Args:
      head: linear or cosine, as of ``resnet32``.
      last_relu: whether a ReLU follows the last block.
      dtype: type of convolutions and activations, as of ``resnet32``.

    Raises:
      UserError: for an unknown head or dtype.
    """
    _check(head, last_relu, dtype)
    words = ("" if head == "linear" else head, "" if last_relu else "no-last-relu")
    name = _name("resnet18", *words, dtype)
    stages = _Stages((64, 128, 256, 512), blocks=2, large_stem=True)
    return _plain(name, stages, head, last_relu, dtype)


def _cifar(
    kind: str,
    usual: _Stages,
    widths: tuple[int, ...],
    norm: Norm,
    head: Head | None,
    last_relu: bool | None,
    dtype: Dtype,
) -> Net:
    check_known("norm", norm, get_args(Norm))
    group = norm == "group"
    widths = _checked(kind, widths, usual.widths)
    if group and list(widths) != sorted(widths):
        raise UserError(
            f"{kind} has widths {','.join(map(str, widths))}, but with GroupNorm, where shortcuts "
            "only add channels, none can be below the one before."
        )
    # What a network has unless its name says another: of GroupNorm, or of BatchNorm.
    default: tuple[Head, bool] = ("linear", True) if group else ("cosine", False)
    head = default[0] if head is None else head
    last_relu = default[1] if last_relu is None else last_relu
    _check(head, last_relu, dtype)
    relu = "" if last_relu == default[1] else "last-relu" if last_relu else "no-last-relu"
    sizes = "" if widths == usual.widths else ",".join(map(str, widths))
    words = ["group" * group, "" if head == default[0] else head, relu]
    stages = usual._replace(widths=widths, group=group)
    return _plain(_name(kind, sizes, *words, dtype), stages, head, last_relu, dtype)


def _plain(
    name: str,
    stages: _Stages,
    head: Head,
    last_relu: bool,
    dtype: Dtype,
) -> Net:
    compute, (widths, blocks, large_stem, group) = _compute(dtype), stages

    def net(num_outputs: int) -> Model:
        from cljax.nets.residual import ResNet

        module = ResNet(num_outputs, widths, blocks, large_stem, head, last_relu, compute, group)
        return from_linen(module, head="head", floats=True)._replace(cosine=head == "cosine")

    net.__name__ = name
    return net


def _check(head: Head, last_relu: bool, dtype: str) -> None:
    check_known("head", head, get_args(Head))
    check_flag(last_relu=last_relu)
    _compute(dtype)


def _checked(kind: str, widths: tuple[int, ...], default: tuple[int, ...]) -> tuple[int, ...]:
    """``widths``, as many as ``default`` and at least 1, or ``default`` where there are none."""
    for width in widths:
        check_positive(width=width)
    widths = widths or default
    if len(widths) != len(default):
        given, right = (",".join(map(str, sizes)) for sizes in (widths, default))
        count = {3: "three", 4: "four"}[len(default)]
        raise UserError(f"{kind} has widths {given}, but it takes {count}, such as {right}.")
    return widths


def _compute(dtype: str) -> Any:
    """Flax's ``dtype``: None keeps to the parameters'."""
    check_known("dtype", dtype, ("float32", "bfloat16"))
    return None if dtype == "float32" else dtype


def _name(*words: str) -> str:
    """A name for ``cljax.resolve.net``: every word but those for defaults."""
    return ":".join(word for word in words if word not in ("", "float32"))
