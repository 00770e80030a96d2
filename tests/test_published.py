"""Published numbers as data: spot checks against the papers, and what is refused."""

from __future__ import annotations

from importlib import resources

import pytest

from cljax.errors import UserError
from cljax.references import protocol
from cljax.references.published import published, sources, sources_of
from cljax.stats import Cell, equivalence


@pytest.mark.parametrize(
    "source,method,stream,metric,mean,std,n",
    [
        ("lamaml-table1", "lamaml", "mnist-rotations", "RA", 0.7742, 0.0065, 5),
        ("lamaml-table1", "lamaml", "mnist-rotations", "BTI", -0.0864, 0.00403, 5),
        ("lamaml-table1", "lamaml", "mnist-many-permutations", "BTI", -0.1296, 0.00073, 5),
        ("lamaml-table1", "sync-lamaml", "mnist-permutations", "RA", 0.7054, 0.0154, 5),
        ("lamaml-table1", "cmaml", "mnist-many-permutations", "RA", 0.4729, 0.0121, 5),
        ("lamaml-table1", "online", "mnist-rotations", "RA", 0.5338, 0.0153, 5),
        ("lamaml-table1", "gem", "mnist-permutations", "BTI", -0.2442, 0.0110, 5),
        ("lamaml-table2", "mer", "mnist-permutations", "seconds", 227.11, 12.12, None),
        ("lamaml-table3-single", "lamaml", "cifar100-20x5", "RA", 0.6118, 0.0144, 3),
        ("lamaml-table3-single", "icarl-ti", "tinyimagenet-40x5", "BTI", -0.0273, 0.0045, 3),
        ("lamaml-table3-multiple", "lamaml", "cifar100-20x5", "BTI", -0.0936, 0.0047, 3),
        ("lamaml-table3-multiple", "iid", "tinyimagenet-40x5", "RA", 0.771, 0.0106, 3),
        ("lamaml-table4", "cmaml", "cifar100-20x5", "gradient_alignment", 0.0184, 0.0003, None),
        ("itaml-table1", "itaml", "split-mnist", "accuracy", 0.9795, None, None),
        ("itaml-table1", "gem", "split-svhn", "accuracy", 0.7561, None, None),
        ("itaml-cifar100", "itaml", "cifar100-10x10", "accuracy", 0.7779, None, None),
        ("mnemonics-table1", "lucir+mnemonics", "cifar100-b50-5", "AIA", 0.6495, None, None),
        ("mnemonics-table1", "lucir", "cifar100-b50-25", "F", 0.2646, None, None),
        ("der-table2", "der++", "split-cifar10", "RA", 0.6488, 0.0117, 10),
        ("xder", "gdumb", "split-cifar10", "RA", 0.35, 0.006, None),
        ("reference-runs", "sync-lamaml", "mnist-permutations", "RA", 0.621, None, 1),
        ("reference-runs", "lamaml", "mnist-rotations", "LA", 0.854, None, 1),
        ("reference-runs", "mer", "mnist-rotations", "seconds", 534.0, None, 1),
        ("reference-runs-itaml", "itaml", "split-mnist", "accuracy_task_aware", 0.981, None, 1),
    ],
)
def test_spot_checks(
    source: str,
    method: str,
    stream: str,
    metric: str,
    mean: float,
    std: float | None,
    n: int | None,
) -> None:
    cell = published(source, method=method, stream=stream)[metric]
    assert cell[:3] == (mean, std, n)
    assert cell.source == sources()[source].reference


def test_the_readme_example() -> None:
    target = published("lamaml-table1", method="lamaml", stream="mnist-rotations")["RA"]
    assert target == Cell(0.7742, 0.0065, 5, "arXiv:2007.13904, Table 1")
    assert equivalence([0.77, 0.775, 0.78, 0.771, 0.774], target, 0.015).verdict == "equivalent"


@pytest.mark.parametrize(
    "source,rows",
    [
        ("lamaml-table1", 7 * 3),
        ("lamaml-table2", 4),
        ("lamaml-table3-single", 10 * 2),
        ("lamaml-table3-multiple", 10 * 2 - 1),  # Meta-BGD unstable on TinyImageNet
        ("lamaml-table4", 4 * 2),
        ("itaml-table1", 10 + 7),
        ("mnemonics-table1", 8 * 3),
        ("reference-runs", 6 + 6),
    ],
)
def test_tables_are_whole(source: str, rows: int) -> None:
    assert len(sources()[source].cells) == rows


def test_units_and_signs() -> None:
    for name, source in sources().items():
        assert source.protocol.endswith(".") and source.reference
        for pair, cells in source.cells.items():
            for metric, cell in cells.items():
                where = (name, pair, metric)
                low, high = {"BTI": (-1, 0), "seconds": (1, 1000)}.get(metric, (0, 1))
                assert low <= cell.mean <= high, where
                assert cell.std is None or 0 < cell.std < abs(cell.mean), where


def test_ra_minus_bti_is_a_possible_learning_accuracy() -> None:
    """Guards against exchanged columns: LA is at least RA where there was forgetting, below 1."""
    for source in sources().values():
        for pair, cells in source.cells.items():
            if {"RA", "BTI"} <= set(cells):
                learning = cells["RA"].mean - cells["BTI"].mean
                assert cells["RA"].mean <= learning < 0.95, pair
                if "LA" in cells:
                    assert learning == pytest.approx(cells["LA"].mean, abs=0.0015), pair


def test_sources_of_a_pair_put_the_paper_first() -> None:
    assert sources_of("lamaml", "mnist-rotations") == (
        "lamaml-table1",
        "lamaml-table2",
        "reference-runs",
    )
    assert sources_of("lamaml", "mnist-rotations[sample]") == ()


@pytest.mark.parametrize(
    "source,method,stream,says",
    [
        ("lamaml-table9", "lamaml", "mnist-rotations", "lamaml-table1"),
        ("lamaml-table1", "lamaml", "cifar100-20x5", "on mnist-many-permutations, mnist-perm"),
        ("lamaml-table1", "icarl", "mnist-rotations", "mnist-rotations there for cmaml, ewc"),
        ("lamaml-table1", "itaml", "split-mnist", "methods cmaml, .* on streams mnist-many"),
        ("lamaml-table3-single", "iid", "cifar100-20x5", "there for agem"),
    ],
)
def test_what_is_not_there_is_said(source: str, method: str, stream: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        published(source, method=method, stream=stream)


def test_callers_cannot_change_the_data() -> None:
    cells = published("lamaml-table1", method="lamaml", stream="mnist-rotations")
    cells["RA"] = Cell(0.0)
    again = published("lamaml-table1", method="lamaml", stream="mnist-rotations")
    assert again["RA"].mean == 0.7742
    with pytest.raises(TypeError):
        sources()["mine"] = sources()["lamaml-table1"]  # pyright: ignore[reportIndexIssue]


def test_the_file_is_small() -> None:
    assert len(resources.files("cljax.references").joinpath("published.json").read_bytes()) < 40_000


@pytest.mark.parametrize(
    ("recipe", "sources"),
    [
        ("lamaml-table3-single:reference", {"lamaml-table3-single"}),
        ("defaults", {"lamaml-table3-single", "lamaml-table3-multiple"}),
    ],
)
def test_a_run_by_a_table_s_recipe_stands_beside_that_table_alone(recipe, sources):
    assert {source for source, *_ in protocol.compare(*a_run(recipe))} == sources


def a_run(recipe="defaults", *, status="default", published=True, seeds=5):
    config = {
        "method": {"options": {}},
        "recipe": {"name": recipe, "status": status},
        "stream_facts": {"published": published},
    }
    results = {
        "stream": "cifar100-20x5", "method": "lamaml", "seeds": list(range(seeds)),
        "metrics": {"RA": {"values": [0.6 + 0.01 * seed for seed in range(seeds)]}},
    }  # fmt: skip
    return config, results


@pytest.mark.parametrize(
    "other", [{"published": False}, {"seeds": 4}, {"status": "default, changed"}]
)
def test_other_data_settings_or_too_few_seeds_stand_beside_no_table(other):
    assert protocol.compare(*a_run()) and not protocol.compare(*a_run(**other))
