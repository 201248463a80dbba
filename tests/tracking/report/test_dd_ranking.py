"""DD-Ranking's metrics: closed forms, coverage of intervals on simulated data, and the table of a grid."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rd3.cell import Cell
from rd3.store import Entry, FolderStore
from tracking.report.extra import Table
from tracking.report.extra._base import extra_tables
from tracking.report.extra.dd_ranking import Estimate, sum_of_means, unit_score
from tracking.report.results import Results


def hlr(full: float, synthetic: float) -> float:
    return full - synthetic


def ior(synthetic: float, random: float) -> float:
    return synthetic - random


def lrs(improvement: float, recovery: float) -> float:
    return (math.exp(0.5 * improvement - 0.5 * recovery) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def ars(augmented: float, plain: float) -> float:
    return (math.exp(0.5 * augmented + 0.5 * plain) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def test_scores_at_the_ends_and_in_the_middle() -> None:
    assert unit_score(0) == pytest.approx(1 / (math.e + 1)) == pytest.approx(0.269, abs=5e-4)
    assert unit_score(1) == pytest.approx(1) and unit_score(-1) == 0


def test_the_interval_of_one_mean_is_students() -> None:
    values = [0.31, 0.35, 0.30, 0.38]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    found = sum_of_means(0.5, [values])
    assert found == pytest.approx((0.5 + np.mean(values), 0.5 + low, 0.5 + high))


def test_the_interval_of_a_difference_is_welchs() -> None:
    first, second = [0.31, 0.35, 0.30, 0.38], [0.2, 0.29, 0.22]
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    found = sum_of_means(0, [first, [-value for value in second]])
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_single_values_have_no_interval_and_equal_ones_an_interval_of_no_width() -> None:
    assert sum_of_means(1, [[0.5], [0.1, 0.2]]) == (pytest.approx(1.65), None, None)
    assert sum_of_means(0.5, []) == (0.5, None, None)
    assert sum_of_means(0, [[0.25, 0.25]]) == (0.25, 0.25, 0.25)
    assert Estimate(0, -1, 1).through(unit_score) == pytest.approx((1 / (math.e + 1), 0, 1))


CELLS = {  # mean accuracy of (method, labels, augmented), in per cent
    ("random", "soft", True): 50.0, ("random", "hard", True): 40.0,
    ("random", "soft", False): 48.0, ("random", "hard", False): 35.0,
    ("rded", "soft", True): 56.0, ("rded", "hard", True): 41.0,
    ("rded", "soft", False): 53.0, ("rded", "hard", False): 32.0,
}  # fmt: skip
FULL = 90.0


def results(
    folder: Path, cells: dict[Any, float] = CELLS, spread: Any = None, student: str = "convnet", sets: int = 3,
    network: str = "convnet", none: Any = (),
) -> Results:  # fmt: skip
    """A grid with set seeds 0, 1, ...; ``spread(method, labels, augmented, set_seed)`` is added to the means."""
    store, planned = FolderStore(folder), []
    empty = folder / "empty"
    empty.mkdir(parents=True)
    teacher = Entry(kind="teacher", key="f" * 64, recipe={"network": network}, result={"top1_pct": FULL})
    store.put(teacher, empty)
    for (method, labels, augmented), value in cells.items():
        for seed in range(sets):
            key = f"{len(planned):064x}"
            own = {"method": method, "dataset": "digits", "ipc": 5, "teacher": "mine", "student": student}
            own |= {"protocol": "rd3", "labels": labels, "set_seed": seed, "student_seed": 0}
            own |= {"varied": {} if augmented else {"augmentation": none}}
            own |= {"overrides": {"labels": "hard", "loss": "ce"} if labels == "hard" else {}}
            planned.append(Cell(**own, set=f"{seed:064x}", evaluation=key))
            top1 = value + (spread(method, labels, augmented, seed) if spread else 0)
            recipe = {"teachers": ["f" * 64] if labels == "soft" else [], "tested_on": "test"}
            store.put(Entry(kind="evaluation", key=key, recipe=recipe, result={"top1_pct": top1}), empty)
    return Results.of(planned, store.find)


def rows(table: Table) -> dict[str, dict[str, str]]:
    lines = (dict(zip(table.columns, texts, strict=True)) for texts in table.texts)
    return {line["method"]: line for line in lines}


def table_of(found: Results) -> Table:
    return extra_tables(found)["dd-ranking"]


def test_the_table_has_what_the_formulas_give(tmp_path: Path) -> None:
    found = rows(table_of(results(tmp_path)))["rded"]
    expected = {
        "HLR": hlr(0.9, 0.41),
        "IOR soft": ior(0.56, 0.5),
        "IOR hard": ior(0.41, 0.4),
        "LRS soft": lrs(ior(0.56, 0.5), hlr(0.9, 0.41)),
        "LRS hard": lrs(ior(0.41, 0.4), hlr(0.9, 0.41)),
        "ARS soft": ars(ior(0.56, 0.5), ior(0.53, 0.48)),
        "ARS hard": ars(ior(0.41, 0.4), ior(0.32, 0.35)),
    }
    for column, value in expected.items():
        assert found[column] == f"{100 * value:.1f} [{100 * value:.1f}, {100 * value:.1f}]".replace("-", "−")
    assert found["full data"] == "90.0" and "missing" not in found
    assert rows(table_of(results(tmp_path / "again")))["random"]["IOR soft"] == "0.0 [0.0, 0.0]"


@pytest.mark.parametrize(("method", "random", "score"), [(100.0, 0.0, "100.0"), (0.0, 100.0, "0.0")])
def test_per_cent_of_results_are_fractions_in_the_formulas(method, random, score, tmp_path: Path) -> None:
    cells = {cell: method if cell[0] == "rded" else random for cell in CELLS}
    found = rows(table_of(results(tmp_path, cells, sets=1)))["rded"]
    assert found["ARS soft"] == found["ARS hard"] == f"{score} (no interval)"
    assert found["IOR soft"] == f"{method - random:.1f} (no interval)".replace("-", "−")


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    assert rows(table_of(results(tmp_path, sets=1)))["rded"]["HLR"] == "49.0 (no interval)"


@pytest.mark.parametrize(
    ("left_out", "column", "reason"),
    [
        (("rded", "hard", True), "HLR", "no hard-label cell of rded"),
        (("random", "soft", True), "IOR soft", "no soft-label cell of random"),
        (("rded", "hard", False), "ARS hard", "no hard-label cell of rded without augmentation"),
    ],
)
def test_what_is_missing_says_why(left_out, column: str, reason: str, tmp_path: Path) -> None:
    cells = {cell: value for cell, value in CELLS.items() if cell != left_out}
    found = rows(table_of(results(tmp_path, cells)))["rded"]
    assert (found[column], found["missing"]) == ("missing", reason)


def test_the_full_data_needs_the_students_network(tmp_path: Path) -> None:
    found = rows(table_of(results(tmp_path, network="resnet18")))["rded"]
    assert found["missing"] == "full-data accuracy of convnet is unknown: the teacher is a resnet18"
    assert found["HLR"] == found["LRS soft"] == "missing" and found["IOR soft"].startswith("6.0")
    assert found["full data"] == "missing"


def test_a_cell_that_is_not_done_says_so(tmp_path: Path) -> None:
    whole = results(tmp_path)
    cells = [Cell(**{name: row[name] for name in Cell.model_fields}) for row in whole.frame.to_dict("records")]
    gone = {
        cell.evaluation for cell in cells if (cell.method, cell.labels, bool(cell.varied)) == ("rded", "soft", False)
    }
    found = Results.of(cells, lambda kind, key: None if key in gone else whole.find(kind, key))
    assert rows(table_of(found))["rded"]["missing"] == "soft-label cell of rded: not done"


def test_a_grid_that_is_not_about_these_metrics_has_no_such_table(tmp_path: Path) -> None:
    soft = {cell: value for cell, value in CELLS.items() if cell[1:] == ("soft", True)}
    assert "dd-ranking" not in extra_tables(results(tmp_path / "soft", soft))
    alone = {cell: value for cell, value in CELLS.items() if cell[0] == "random"}
    assert "dd-ranking" not in extra_tables(results(tmp_path / "random", alone))


@pytest.mark.parametrize("repeats", [3, 5])
def test_intervals_of_lrs_and_ars_cover_the_truth(repeats: int) -> None:
    """2,000 grids whose cells share the effect of their set: 95 % intervals cover 93 to 98 %.

    With three repeats Welch's interval is known to be slightly wide.
    """
    stream = np.random.default_rng(repeats)
    truth = {"lrs": lrs(ior(0.56, 0.5), hlr(0.9, 0.41)), "ars": ars(ior(0.56, 0.5), ior(0.53, 0.48))}
    covered = {"lrs": 0, "ars": 0}
    for _trial in range(2000):
        set_effect = stream.normal(0, 0.02, (2, repeats))

        def cell(value: float, method: int, effect: np.ndarray = set_effect) -> np.ndarray:
            return value + effect[method] + stream.normal(0, 0.01, repeats)

        soft, hard, plain = cell(0.56, 0), cell(0.41, 0), cell(0.53, 0)
        random_soft, random_plain = cell(0.5, 1), cell(0.48, 1)
        found = {
            "lrs": sum_of_means(-0.45, [(0.5 * (soft + hard)).tolist(), (-0.5 * random_soft).tolist()]),
            "ars": sum_of_means(0, [(0.5 * (soft + plain)).tolist(), (-0.5 * (random_soft + random_plain)).tolist()]),
        }
        for name, estimate in found.items():
            score = estimate.through(unit_score)
            covered[name] += score.low <= truth[name] <= score.high
    assert all(0.93 <= count / 2000 <= 0.98 for count in covered.values()), covered


def test_cells_of_one_method_are_paired_by_their_sets(tmp_path: Path) -> None:
    """A common effect of the set makes LRS soft of a method wider, and one of opposite signs narrower."""

    def same(method: str, labels: str, augmented: bool, seed: int) -> float:
        return (0.0, 1.0, -1.0)[seed] if method == "rded" else 0.0

    def opposite(method: str, labels: str, augmented: bool, seed: int) -> float:
        return same(method, labels, augmented, seed) * (1 if labels == "soft" else -1)

    wide = rows(table_of(results(tmp_path / "same", spread=same)))["rded"]["LRS soft"]
    none = rows(table_of(results(tmp_path / "opposite", spread=opposite)))["rded"]["LRS soft"]
    alpha, half = 0.5 * 0.06 - 0.5 * 0.49, float(stats.t.ppf(0.975, 2)) * 0.01 / math.sqrt(3)
    ends = [100 * unit_score(alpha + sign * half) for sign in (-1, 1)]
    assert wide == f"{100 * unit_score(alpha):.1f} [{ends[0]:.1f}, {ends[1]:.1f}]"
    assert none == f"{100 * unit_score(alpha):.1f} [{100 * unit_score(alpha):.1f}, {100 * unit_score(alpha):.1f}]"


@pytest.mark.parametrize("none", [(), []])
def test_no_augmentation_is_recognised_however_it_is_written(none: Any, tmp_path: Path) -> None:
    found = table_of(results(tmp_path, none=none))
    assert len(found.rows) == 2 and "missing" not in found.columns
    assert found.columns[:4] == ["dataset", "ipc", "student", "method"]
