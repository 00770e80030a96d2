"""A figure as a dark page shows it, from the pixels of the light one: nothing is drawn twice.

    outside of images    lightness is reversed, hues stay: out = M (255 - rgb), white is the page's
    inside               as it is: colours of a scale and photographs keep what they say
    grey in a scale      as outside: it is a blank cell, or a line through it

M turns hues by 180 degrees at equal luminance, which undoes what reversing does to them.

Source of M: W3C, "Filter Effects Module Level 1", hue-rotate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cljax.report.style import BACK

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["darkened"]

_TURN = np.array([[-0.574, 1.430, 0.144], [0.426, 0.430, 0.144], [0.426, 1.430, -0.856]])
_BACK = np.array([int(BACK[i : i + 2], 16) for i in (1, 3, 5)])
_TOP = 238  # what black becomes
_GREY = (120, 246)  # cells without a value, where text may be written in black or white


def darkened(light: Image, axes: list[Any]) -> Image:
    """The dark form of a drawn figure; ``axes`` are its, laid out."""
    span = ((_TOP - _BACK) / 255)[:, None]
    matrix = np.concatenate([-span * _TURN, (_BACK + span[:, 0] * 255)[:, None]], axis=1)
    dark = light.convert("RGB", tuple(matrix.ravel().tolist()))
    for ax in axes:
        if ax.images or any(hasattr(mesh, "get_coordinates") for mesh in ax.collections):
            _restore(dark, light, ax)
    return dark


def _restore(dark: Image, light: Image, ax: Any) -> None:
    """Puts back what an image or a mesh shows, but for its blank cells."""
    from PIL import Image

    extent = ax.get_window_extent()
    left, right = round(extent.x0), round(extent.x1)
    top, bottom = (round(light.height - y) for y in (extent.y1, extent.y0))
    box = (left, top, right, bottom)
    inside, mask = light.crop(box), None
    shown = ax.images[0].get_array() if ax.images else ax.collections[0].get_array()
    if np.ma.is_masked(shown):
        pixels = np.asarray(inside).astype(np.int16)
        least, most = _GREY if any(hasattr(part, "texts") for part in ax.collections) else (0, 256)
        grey = (np.ptp(pixels, axis=-1) <= 2) & (pixels[..., 0] >= least)
        mask = Image.fromarray(~(grey & (pixels[..., 0] < most)))
    dark.paste(inside, box[:2], mask)
