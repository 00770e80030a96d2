"""Numbers in the cells of a heat map.

A map has hundreds of them, and matplotlib takes about a millisecond for each text. Here the
outlines of each number are made once, and one collection draws all cells.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.transforms import IdentityTransform

from cljax.plot import parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Numbers", "write_numbers"]


class Numbers(PathCollection):
    """The ``texts`` of cells, drawn around their ``offsets`` (column, row)."""

    def __init__(self, texts: list[str], size: float, **style: Any) -> None:
        # Of size 1, so that outlines are in points.
        super().__init__([_outline(text, size) for text in texts], (1.0,), linewidths=0, **style)
        self.set_transform(IdentityTransform())
        self.texts = texts


def write_numbers(
    ax: Axes, values: np.ndarray, image: Any, spec: str, size: float, *, zeros: bool = True
) -> None:
    """Writes each finite value [R, C] into its cell, dark on light or light on dark.

    Args:
      image: what ``imshow`` returned for the values.
      spec: format of each number.
      size: in points.
      zeros: also write values that are rounded to 0.
    """
    shown = np.isfinite(values) & (zeros | (np.round(values) != 0))
    if not shown.any():
        return
    light = image.cmap(image.norm(values[shown]))[:, :3] @ (0.299, 0.587, 0.114) > 0.48
    numbers = Numbers(
        [f"{value:{spec}}" for value in values[shown]], size,
        offsets=np.argwhere(shown)[:, ::-1], offset_transform=ax.transData,
        facecolors=[parts.INK if each else parts.PAPER for each in light],
    )  # fmt: skip
    numbers.set_in_layout(False)
    ax.add_collection(numbers, autolim=False)


@functools.cache
def _outline(text: str, size: float) -> Path:
    """The outlines of a text in points, around the middle of its width and of a digit's height."""
    path, digit = (TextPath((0, 0), each, size=size) for each in (text, "0"))
    low, high = (end(path.vertices, axis=0) for end in (np.min, np.max))
    middle = (low[0] + high[0]) / 2, digit.vertices[:, 1].max() / 2
    return Path(path.vertices - middle, path.codes)
