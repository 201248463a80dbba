"""The tables and the chart of what was measured with kept students."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rd3.cell import Cell
from rd3.robustness.calibration import reliability
from rd3.store import Entry, FolderStore
from tests.tracking.report.test_tables import Results as Grid
from tracking.report.charts import CHARTS
from tracking.report.charts.reliability import pooled
from tracking.report.extra import TABLES
from tracking.report.extra._base import extra_tables
from tracking.report.extra.robustness import Measured, labels_of, measured
from tracking.report.results import Results

ECE = {("random", 1): (2.0, 3.0, 4.0), ("rded", 1): (5.0, None, None), ("herding", 1): (None, None, None)}


def made(tmp_path: Path, *, corruptions: bool = True, asked: bool = True) -> Results:
    """Three methods with three student seeds; None: not measured yet."""
    tmp_path.mkdir(exist_ok=True)
    store, cells = FolderStore(tmp_path / "store"), []
    for (method, ipc), values in ECE.items():
        for seed, ece in enumerate(values):
            evaluation, robustness = f"{len(cells):064x}", f"{100 + len(cells):064x}"
            own = {"method": method, "dataset": "digits", "ipc": ipc, "teacher": "mine", "student": "convnet"}
            own |= {"protocol": "rd3", "labels": "soft", "varied": {}, "set_seed": 0, "student_seed": seed}
            cells.append(Cell(**own, set="a" * 64, evaluation=evaluation, robustness=robustness if asked else None))
            folder = tmp_path / evaluation
            folder.mkdir()
            result = {"top1_pct": 50.0 + seed, "correct": 1, "tested": 100}
            store.put(Entry(kind="evaluation", key=evaluation, recipe={}, result=result), folder)
            if ece is not None:
                figures = {"top1_pct": 50.0 + seed, "ece_pct": ece, "nll": ece / 10, "brier": 0.5}
                if corruptions:
                    figures |= {"corrupted_top1_pct": 40.0 + seed, "contrast_top1_pct": 30.0 + seed}
                    figures |= {f"severity_{number}_top1_pct": 45.0 - number + seed for number in range(1, 6)}
                store.put(Entry(kind="robustness", key=robustness, recipe={}, result=figures), folder)
    return Results.of(cells, store.find)


def test_one_row_per_method_with_spread_and_what_is_missing(tmp_path: Path):
    table = extra_tables(made(tmp_path))["robustness"]
    assert table.columns[:6] == ["dataset", "ipc", "method", "clean top-1 %", "corrupted top-1 %", "ECE %"]
    random, rded, herding = table.texts
    # Three values of spread 1: the t quantile at 2 degrees of freedom is 4.303.
    assert random[5] == "3.0 ± 1.0 [0.5, 5.5] (3)" and random[4] == "41.0 ± 1.0 [38.5, 43.5] (3)"
    assert random[6] == "0.300 ± 0.100 [0.052, 0.548] (3)"
    assert random[3].startswith("51.0 ± 1.0") and random[8] == "–", "no temperature was fitted"
    assert rded[5] == "5.0 (n=1, 2 missing)"
    assert herding[3].startswith("51.0") and herding[4:] == ["not done"] * 5


def test_a_measurement_without_a_temperature_is_not_missing():
    figures = [{"scaled_ece_pct": 2.0}, {}]
    found = Measured(score=None, planned=3, by_set_seed=[(0, figures[0]), (0, figures[1])])
    assert found.text("scaled_ece_pct", 1) == "2.0 (n=1, 1 missing, 1 without)"
    assert Measured(None, 2, found.by_set_seed).text("scaled_ece_pct", 1) == "2.0 (n=1, 1 without)"


def test_changed_and_varied_fields_are_named_as_everywhere_else():
    grid, figures = Grid(), {}
    for varied in ({}, {"temperature": 4.0}):
        grid.add("random", 1, [50.0], varied=varied)
    cells = [cell.model_copy(update={"robustness": cell.evaluation}) for cell in grid.cells]
    for cell in cells:
        figures["robustness", cell.robustness] = Entry(
            kind="robustness", key=cell.robustness, recipe={}, result={"top1_pct": 50.0, "ece_pct": 2.0}
        )
    results = Results.of(cells, lambda kind, key: figures.get((kind, key)) or grid.find(kind, key))
    [plain, changed] = TABLES.get("robustness")(results).texts
    assert (plain[:4], changed[:4]) == (["cifar10", "1", "random", ""], ["cifar10", "1", "random", "temperature=4.0"])
    assert labels_of(measured(results)) == ["base point", "temperature=4.0"]


def test_accuracy_by_corruption(tmp_path: Path):
    table = extra_tables(made(tmp_path))["corruptions"]
    assert table.columns == ["dataset", "ipc", "method", "contrast"]
    assert [row[3] for row in table.texts] == ["31.0 ± 1.0 [28.5, 33.5] (3)", "30.0 (n=1, 2 missing)", "not done"]


def test_calibration_alone_has_no_corruptions(tmp_path: Path):
    found = extra_tables(made(tmp_path, corruptions=False))
    assert "corrupted top-1 %" not in found["robustness"].columns and "corruptions" not in found
    assert CHARTS.get("severity")(made(tmp_path / "again", corruptions=False), None) is None


@pytest.mark.parametrize("name", ["robustness", "corruptions"])
def test_grids_that_measure_nothing_have_no_table(tmp_path: Path, name: str):
    assert TABLES.get(name)(made(tmp_path, asked=False)) is None


def test_the_chart_has_a_line_for_each_method_that_was_measured(tmp_path: Path):
    drawing = CHARTS.get("severity")(made(tmp_path), None)
    text = drawing.svg.decode()
    assert "random" in text and "rded" in text and "herding" not in text


def diagram(chances: np.ndarray, labels: np.ndarray) -> list[dict]:
    return [each._asdict() for each in reliability(chances, labels)]


def test_pooled_diagrams_are_the_diagram_of_all_images():
    draw = np.random.default_rng(0)
    chances, labels = draw.dirichlet(np.full(4, 0.7), 900), draw.integers(0, 4, 900)
    parts = np.split(np.arange(900), [200, 500])
    whole = [
        (100 * each["confidence"], 100 * each["accuracy"]) for each in diagram(chances, labels) if each["images"] >= 10
    ]
    assert len(whole) > 5
    assert np.allclose(pooled(diagram(chances[part], labels[part]) for part in parts), whole)


def test_reliability_has_a_panel_for_each_method_that_was_measured(tmp_path: Path):
    chances = np.array([[0.9, 0.1]] * 20)
    made_of = {"reliability": diagram(chances, np.array([0] * 15 + [1] * 5))}
    (tmp_path / "robustness.json").write_text(json.dumps(made_of))
    drawing = CHARTS.get("reliability")(made(tmp_path / "grid"), lambda kind, key: tmp_path)
    text = drawing.svg.decode()
    assert "random" in text and "rded" in text and "herding" not in text
    assert CHARTS.get("reliability")(made(tmp_path / "none", asked=False), None) is None
