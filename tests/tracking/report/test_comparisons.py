"""Tables of comparisons, ranks and rankings, from made-up grids: against scipy and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from rd3.stats import holm
from tests.tracking.report.test_tables import APART
from tests.tracking.report.test_tables import Results as Grid
from tracking.report.extra import TABLES, Table
from tracking.report.results import Results

FAR = {"rded": [40.0, 41.0, 42.5, 41.2], "random": [30.1, 31.0, 32.6, 31.2], "sre2l": [20.0, 21.1, 22.4, 21.2]}


def table(grid: Grid, name: str) -> Table | None:
    return TABLES.get(name)(Results.of(grid.cells, grid.find))


def rows(grid: Grid, name: str) -> list[dict[str, str]]:
    found = table(grid, name)
    return [dict(zip(found.columns, texts, strict=True)) for texts in found.texts]


def test_every_pair_of_a_column_is_compared_with_holms_correction():
    grid = Grid()
    for method, tops in APART.items():
        grid.add(method, 10, tops)
    grid.add("edc", 10, [50.0, 51.0])
    grid.add("cda", 10, [None])
    found = {(row["first"], row["second"]): row for row in rows(grid, "comparisons")}
    pairs = [("rded", "random"), ("rded", "sre2l"), ("random", "sre2l")]
    adjusted = holm([stats.ttest_rel(APART[a], APART[b]).pvalue for a, b in pairs])
    assert [found[pair]["p (Holm)"] for pair in pairs] == [f"{p:.2g}".replace("-", "−") for p in adjusted]
    assert [found[pair]["verdict"] for pair in pairs] == ["equivalent within ±1 point", "different", "different"]
    low, high = stats.ttest_rel(APART["rded"], APART["sre2l"]).confidence_interval(0.95)
    assert found["rded", "sre2l"]["95 % interval"] == f"[{low:.1f}, {high:.1f}]"
    assert found["rded", "edc"] == {  # a single table needs no name
        "ipc": "10", "first": "rded", "second": "edc", "difference": "", "95 % interval": "",
        "p (Holm)": "", "p (within ±1 point)": "", "shared": "2 student seeds", "verdict": "not tested",
    }  # fmt: skip
    assert len(found) == 6


NEAR = {
    "rded": [40.0, 41.0, 42.5, 41.2],
    "cda": [40.1, 40.9, 42.4, 41.3],
    "edc": [40.4, 41.5, 42.9, 41.6],
    "random": [38.0, 44.0, 39.0, 43.0],
}


def test_pairs_within_a_point_are_equivalent_and_others_only_not_separated():
    grid = Grid()
    for method, tops in NEAR.items():
        grid.add(method, 10, tops)
    found = {(row["first"], row["second"]): row for row in rows(grid, "comparisons")}
    pairs = list(itertools.combinations(NEAR, 2))
    differences = [np.subtract(NEAR[a], NEAR[b]) for a, b in pairs]
    tests = [[stats.ttest_1samp(one, -1, alternative="greater"), stats.ttest_1samp(one, 1, alternative="less")]
             for one in differences]  # fmt: skip
    adjusted = holm([max(one.pvalue, other.pvalue) for one, other in tests])
    assert [found[pair]["p (within ±1 point)"] for pair in pairs] == [f"{p:.2g}".replace("-", "−") for p in adjusted]
    assert found["rded", "cda"]["verdict"] == "equivalent within ±1 point"
    assert found["rded", "edc"]["verdict"] == "different, but within ±1 point"
    assert found["rded", "random"]["verdict"] == "equal within noise"


def test_a_small_but_significant_difference_is_not_equal_to_the_best():
    grid = Grid()
    for method in ("rded", "edc"):
        grid.add(method, 10, NEAR[method])
    [table] = Results.of(grid.cells, grid.find).tables
    assert {row.label: table.standing(row, 10) for row in table.rows} == {"rded": "", "edc": "best"}


def test_tables_are_named_by_what_differs():
    grid = Grid()
    for method, tops in APART.items():
        grid.add(method, 10, tops)
        grid.add(method, 10, tops, labels="hard", overrides={"labels": "hard"})
    for name, count in (("comparisons", 3), ("ranks", 3)):
        assert [row["table"] for row in rows(grid, name)] == ["soft labels"] * count + ["hard labels"] * count


def test_varied_points_are_compared_with_each_other():
    grid = Grid()
    for method, tops in APART.items():
        grid.add(method, 10, tops)
        grid.add(method, 10, tops[::-1], varied={"temperature": 4.0})
    found = rows(grid, "comparisons")
    assert [row["varied"] for row in found] == [""] * 3 + ["temperature=4.0"] * 3
    assert [row["p (Holm)"] for row in found[:3]] == [row["p (Holm)"] for row in found[3:]]


def test_one_method_has_no_comparison():
    grid = Grid()
    grid.add("rded", 10, APART["rded"])
    assert [table(grid, name) for name in ("comparisons", "ranks", "rankings")] == [None, None, None]


def test_ranks_with_what_remains_possible():
    grid = Grid()
    for method, tops in {**APART, "edc": [90.0]}.items():
        grid.add(method, 1, tops)
    assert table(grid, "ranks") is None  # one method has a single seed, so that there is nothing to rank over
    grid.cells = [cell for cell in grid.cells if cell.method != "edc"]
    found = {row["method"]: (row["rank"], row["95 % interval"]) for row in rows(grid, "ranks")}
    assert found == {"rded": ("1", "1–2"), "random": ("2", "1–2"), "sre2l": ("3", "3")}


def test_rankings_of_settings_that_differ_in_one_field():
    grid = Grid()
    for method, tops in FAR.items():
        grid.add(method, 10, tops)
        grid.add(method, 10, [60 - top for top in tops], labels="hard", overrides={"labels": "hard"})
        grid.add(method, 10, [top + 1 for top in tops], varied={"temperature": 4.0})
        grid.add(method, 10, [top + 1 for top in tops], protocol="rd3-reduced", varied={"temperature": 4.0})
    found = {(row["first"], row["second"]): row for row in rows(grid, "rankings")}
    assert set(found) == {("soft", "hard"), ("base point", "temperature=4.0"), ("rd3", "rd3-reduced")}
    fields = ("tau", "95 % interval", "resampled", "in the opposite order", "undecided")
    assert [found["soft", "hard"][name] for name in fields] == ["−1.00", "[−1.00, −1.00]", "[−1.00, −1.00]", "3", "0"]
    assert found["base point", "temperature=4.0"]["pairs in the same order"] == "3"


def test_a_ranking_of_two_seeds_has_no_interval():
    grid = Grid()
    for method, tops in FAR.items():
        grid.add(method, 10, tops[:2])
        grid.add(method, 10, tops[:2], varied={"zeta": 2.0})
    [row] = rows(grid, "rankings")
    assert (row["tau"], row["95 % interval"], row["undecided"]) == ("1.00", "too few seeds", "")


@pytest.mark.parametrize("count", [1, 2])
def test_a_ranking_needs_three_methods(count):
    grid = Grid()
    for method in list(FAR)[:count]:
        grid.add(method, 10, FAR[method])
        grid.add(method, 10, FAR[method], varied={"zeta": 2.0})
    assert table(grid, "rankings") is None


def test_settings_without_a_common_seed_are_left_out():
    grid = Grid()
    for method, tops in FAR.items():
        grid.add(method, 10, tops[:1])
        grid.add(method, 10, [None, tops[1]], varied={"zeta": 2.0})
    assert table(grid, "rankings") is None
