"""Figures: what they say, that missing entries show, and that files are whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cljax import plot
from cljax.errors import UserError


def _matrix(num_tasks: int, num_seeds: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    matrix = 0.7 + 0.2 * rng.random((num_seeds, num_tasks + 1, num_tasks))
    matrix[:, 0] = 0.1
    return matrix


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image.load()
        return np.asarray(image.convert("RGB"))


def _texts(ax) -> list[str]:
    return [text for part in ax.collections for text in getattr(part, "texts", ())]


def test_matrix_writes_mean_percent_into_cells(tmp_path: Path) -> None:
    matrix = np.array([[0.10, 0.12], [0.905, 0.2], [0.6, 0.95]])
    ax = plot.accuracy_matrix(np.stack([matrix - 0.02, matrix + 0.02]), title="two tasks")
    assert _texts(ax) == ["10.0", "12.0", "90.5", "20.0", "60.0", "95.0"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["untrained", "1", "2"]
    assert ax.get_xlabel() == "Tested on task" and ax.get_ylabel() == "After learning task"
    assert ax.get_title() == "two tasks"
    pixels = _pixels(plot.save(ax, tmp_path / "matrix.png"))
    assert min(pixels.shape[:2]) > 400
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_matrix_of_20_tasks_is_written_and_of_21_is_not() -> None:
    assert len(_texts(plot.accuracy_matrix(_matrix(20)))) == 21 * 20
    assert _texts(plot.accuracy_matrix(_matrix(21))) == []


def test_missing_entries_are_grey_and_said(tmp_path: Path) -> None:
    matrix = _matrix(4)
    matrix[:, 1:][:, ~np.tri(4, dtype=bool)] = np.nan
    matrix[0, 2, 0] = np.nan  # one seed of three: the mean of the others is shown
    ax = plot.accuracy_matrix(matrix)
    assert len(_texts(ax)) == 4 + 10
    assert f"{100 * np.nanmean(matrix[:, 2, 0]):.1f}" in _texts(ax)
    (cells,) = ax.patches
    assert len(cells.get_path()) == 6 * 5 and cells.get_hatch() == "///"
    assert "hatched: not evaluated" in ax.get_xlabel()
    grey = np.array([0xE4, 0xE4, 0xE4])
    share = (_pixels(plot.save(ax, tmp_path / "m.png")) == grey).all(axis=-1).mean()
    assert 0.05 < share < 0.5


def test_matrix_where_nothing_was_evaluated() -> None:
    assert _texts(plot.accuracy_matrix(np.full((4, 3), np.nan))) == []


@pytest.mark.parametrize("value", [0.0, 0.3, 0.5, 0.6, 0.7, 1.0])
def test_text_contrasts_with_its_cell(value: float) -> None:
    ax = plot.accuracy_matrix(np.full((3, 2), value))
    image = ax.images[0]

    def luminance(colour) -> float:
        from matplotlib.colors import to_rgb

        c = np.array(to_rgb(colour))
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    cell = luminance(image.cmap(image.norm(value * 100))[:3])
    text = luminance(ax.collections[0].get_facecolor()[0, :3])
    high, low = max(cell, text), min(cell, text)
    assert (high + 0.05) / (low + 0.05) > 3.0


@pytest.mark.parametrize("shape", [(3, 3), (4,), (2, 2, 4, 3)])
def test_wrong_matrices_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="must be"):
        plot.accuracy_matrix(np.zeros(shape))


def test_curves_show_mean_and_interval() -> None:
    import scipy.stats

    rise = np.array([[0.7], [0.9], [0.95], [0.8], [0.85]])
    values = np.hstack([np.array([[0.5], [0.6], [0.55], [0.5], [0.6]]), np.full((5, 1), 0.6), rise])
    ax = plot.over_time({"lamaml": values, "one seed": [0.2, 0.3, np.nan]})
    first, second = ax.lines
    np.testing.assert_allclose(first.get_ydata(), 100 * values.mean(axis=0))
    np.testing.assert_allclose(second.get_ydata(), [20, 30, np.nan])
    (band,) = ax.collections  # one seed has none
    heights = band.get_paths()[0].vertices[:, 1]
    interval = scipy.stats.t.interval(0.95, 4, 100 * values[:, 2].mean(),
                                      100 * scipy.stats.sem(values[:, 2]))  # fmt: skip
    assert heights.max() == pytest.approx(interval[1])
    assert first.get_color() != second.get_color()
    assert first.get_linestyle() != second.get_linestyle()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["lamaml", "one seed"]
    assert ax.get_xlabel() == "Tasks learned" and ax.get_ylabel() == "Test accuracy (%)"


def test_fewer_than_five_seeds_are_thin_lines_with_points_and_no_band() -> None:
    values = np.array([[0.5, 0.6], [0.6, 0.6], [0.4, 0.9]])
    ax = plot.over_time({"three": values})
    mean, *singles = ax.lines
    np.testing.assert_allclose([line.get_ydata() for line in singles], 100 * values)
    assert not ax.collections
    for line in singles:
        assert line.get_linewidth() < mean.get_linewidth() and line.get_marker() == "o"


def test_a_band_is_cut_where_an_accuracy_ends() -> None:
    ax = plot.over_time({"five": np.array([[0.0, 1.0]] * 2 + [[0.3, 0.7]] * 3)})
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert heights.min() == 0 and heights.max() == 100


def test_task_curves_start_where_a_task_is_learned() -> None:
    matrix = _matrix(3)
    curves = plot.task_curves(matrix)
    assert list(curves) == ["task 1", "task 2", "task 3"]
    assert np.isnan(curves["task 3"]).tolist() == [[True, True, False]] * 3
    np.testing.assert_array_equal(curves["task 2"][:, 1:], matrix[:, 2:, 1])
    np.testing.assert_allclose(
        plot.mean_curve(matrix)[:, 1], matrix[:, 2, :2].mean(axis=-1), rtol=1e-14
    )


def test_many_tasks_stay_legible(tmp_path: Path) -> None:
    ax = plot.over_time(plot.task_curves(_matrix(100)))
    assert len(ax.lines) == 100 and not ax.collections
    names = [t.get_text() for t in ax.get_legend().get_texts()]
    assert names[0] == "task 1" and names[-1] == "task 100" and len(names) <= 25
    assert _pixels(plot.save(ax, tmp_path / "tasks.png")).std() > 5


def test_wrong_curves_are_refused() -> None:
    with pytest.raises(UserError, match="no curves"):
        plot.over_time({})
    with pytest.raises(UserError, match="'b' has shape"):
        plot.over_time({"a": [0.1, 0.2], "b": [0.1]})
    with pytest.raises(UserError, match="'a' has shape"):
        plot.over_time({"a": [0.1, 0.2]}, x=[1, 2, 3])


def test_given_axes_are_used() -> None:
    from matplotlib.figure import Figure

    left, right = Figure().subplots(1, 2)
    assert plot.accuracy_matrix(_matrix(2), left) is left
    assert plot.over_time({"a": [0.1, 0.2]}, [100, 200], right, xlabel="Updates") is right
    assert right.get_xlabel() == "Updates"


def test_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    paths = [plot.save(plot.accuracy_matrix(_matrix(3)), tmp_path / n) for n in ("a.png", "b.png")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_save_makes_folders_and_takes_a_figure(tmp_path: Path) -> None:
    ax = plot.over_time({"a": [0.1, 0.2]})
    path = plot.save(ax.figure, tmp_path / "plots" / "deep" / "curve.png")  # pyright: ignore
    assert path.exists() and _pixels(path).shape[0] == 800
    with pytest.raises(UserError, match=r"\.png"):
        plot.save(ax, tmp_path / "curve.pdf")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"old")
    ax = plot.over_time({"a": [0.1, 0.2]})
    ax.set_title(r"$\broken{$")  # mathtext that cannot be parsed
    with pytest.raises(ValueError):
        plot.save(ax, target)
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_matplotlib_comes_in_only_with_a_figure_and_pyplot_never() -> None:
    code = (
        "import sys, cljax.plot as p\n"
        "assert 'matplotlib' not in sys.modules\n"
        "p.accuracy_matrix([[0.1], [0.9]])\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
