"""Data and exemplars in feature space, as one picture; ``cljax.geometry`` has the numbers.

Source: Liu, Su, Liu, Schiele, Sun, "Mnemonics Training", CVPR 2020 (arXiv:2002.10211), figures 1
and 5: real data light, exemplars dark. The settings are not given there; ours are perplexity 30,
the two principal components to start from, a fixed seed, and one fit of all points. t-SNE: van
der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 9, 2008, by scikit-learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cljax.errors import UserError, in_words
from cljax.plot import parts
from cljax.types import Features

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["tsne"]

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_APART = 24  # at most so many classes can be told apart by colour and marker


def tsne(
    data: Features,
    exemplars: Features,
    seed: int = 0,
    *,
    names: parts.Names = None,
    ax: Axes | None = None,
    perplexity: float = 30.0,
    title: str | None = None,
) -> Axes:
    """Data, light and small, and exemplars, dark and large, in one t-SNE of their features.

    Both are fitted jointly, from their two principal components. t-SNE looks at three times as
    many neighbours as the perplexity, so that of n points it is at most (n - 1) / 3; the value that
    was used stands below the picture.

    Args:
      data: features [N, D] and labels of the data; up to some thousand rows take seconds.
      exemplars: features [M, D] and labels of the exemplars; the mask says which there are.
      seed: the same seed gives the same picture.
      names: of the classes, by label.
      ax: where to draw; None: a new figure.
      perplexity: > 0, about the number of near neighbours that count.

    Raises:
      UserError: without scikit-learn (the extra ``pictures``), for other shapes, fewer than 5
        points, points that are all the same or not finite, or more classes than can be told apart.
    """
    points, owners, num_data = _together(data, exemplars)
    classes = np.unique(owners)
    if len(classes) > _APART:
        raise UserError(
            f"labels hold {len(classes)} classes, but at most {_APART} can be told apart in one "
            "picture; choose some."
        )
    called = [parts.class_name(names, label) for label in classes]
    used = min(perplexity, (len(points) - 1) / 3)
    place = _embedded(points, used, seed)
    ax = parts.axes(ax, (6.4, 4.8))
    is_data, handles = np.arange(len(points)) < num_data, []
    for i, label in enumerate(classes):
        own, marker = owners == label, _MARKERS[(i + i // 8) % 8]
        light, dark = _light_and_dark(parts.PALETTE[i % 8])
        below = {"s": 11, "c": [light], "linewidths": 0, "zorder": 2}
        above = {"s": 46, "c": [dark], "linewidths": 0.7, "edgecolors": parts.PAPER, "zorder": 3}
        ax.scatter(*place[own & is_data].T, marker=marker, **below)
        handles.append(ax.scatter(*place[own & ~is_data].T, marker=marker, **above))
    parts.legend(ax, handles, called, small=len(classes) > 12, length=1.2)
    said = f"t-SNE, perplexity {used:.3g}, seed {seed}; light: data, dark: exemplars"
    if used < perplexity:
        said += f"\n(perplexity {perplexity:.3g} needs {int(np.ceil(3 * perplexity)) + 1} points)"
    ax.set_xlabel(said, fontsize=8)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_aspect("equal", adjustable="datalim")
    ax.spines[:].set_color("#BDBDBD")
    if title:
        ax.set_title(title, fontsize=10)
    return ax


def _together(data: Features, exemplars: Features) -> tuple[np.ndarray, np.ndarray, int]:
    """Valid features [n, D] and labels [n] of both, those of the data first, and how many they are.

    Raises:
      UserError: for what is no ``Features``, or for shapes that do not fit.
    """
    for name, given in (("data", data), ("exemplars", exemplars)):
        if not isinstance(given, Features):
            raise UserError(
                f"{name} is {in_words(given)}, but it must be a cljax.types.Features(x, labels)."
            )
    x, chosen = np.asarray(data.x, np.float64), np.asarray(exemplars.x, np.float64)
    if x.ndim != 2 or chosen.ndim != 2 or x.shape[1] != chosen.shape[1]:
        raise UserError(
            f"The features of data and exemplars have shapes {list(x.shape)} and "
            f"{list(chosen.shape)}, but must be [N, D] and [M, D]."
        )
    labels, valid = parts.labels_of("data", data.labels, len(x), data.mask)
    own, some = parts.labels_of("exemplar", exemplars.labels, len(chosen), exemplars.mask)
    points = np.concatenate([x[valid], chosen[some]])
    return points, np.concatenate([labels[valid], own[some]]), int(valid.sum())


def _embedded(points: np.ndarray, perplexity: float, seed: int) -> np.ndarray:
    """[n, 2] t-SNE of [n, D]."""
    if len(points) < 5 or points.shape[1] < 2:
        raise UserError(
            f"t-SNE was given {len(points)} points of {points.shape[1]} features, but needs at "
            "least 5 points of 2."
        )
    if not np.isfinite(points).all() or (points == points[0]).all():
        raise UserError("features for t-SNE must be finite and not all the same.")
    if not perplexity > 0 or seed < 0:
        raise UserError(
            f"perplexity is {perplexity} and seed {seed}, but perplexity must be positive and seed "
            "not negative."
        )
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits  # comes with scikit-learn
    except ImportError:
        raise UserError("t-SNE needs the extra: pip install 'cljax[pictures]'.") from None
    # One thread: the same sums on every machine, and no waiting for each other on a busy one.
    with threadpool_limits(1):
        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)


def _light_and_dark(colour: str) -> tuple[np.ndarray, np.ndarray]:
    from matplotlib.colors import to_rgb

    full = np.asarray(to_rgb(colour))
    return 0.38 * full + 0.62, 0.8 * full
