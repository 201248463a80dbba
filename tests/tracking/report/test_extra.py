"""Tables that register themselves: what they show, and that a failing one costs nothing else."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from rd3.cell import Cell
from rd3.store import Entry, FolderStore
from tracking.report.extra import TABLES, Table
from tracking.report.extra._base import extra_tables
from tracking.report.extra.label_budget import labels_text
from tracking.report.page import write_report
from tracking.report.results import Results
from tracking.report.tables import to_csv, top1_text

TOP1 = {("convnet", 1): (20.0, 22.0), ("convnet", 10): (40.0, 44.0), ("resnet18", 10): (50.0, 50.0)}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    store, cells = FolderStore(tmp_path / "store"), []
    for student, ipc in TOP1:
        for seed, top1 in enumerate(TOP1[student, ipc]):
            key = f"{len(cells):064x}"
            own = {"method": "random", "dataset": "digits", "ipc": ipc, "teacher": "mine", "student": student}
            own |= {"protocol": "rd3", "labels": "soft", "varied": {}, "set_seed": 0, "student_seed": seed}
            cells.append(Cell(**own, set="a" * 64, evaluation=key))
            result = {"top1_pct": top1, "correct": 1, "tested": 100}
            (tmp_path / key).mkdir()
            store.put(Entry(kind="evaluation", key=key, recipe={}, result=result), tmp_path / key)
    return Results.of(cells, store.find)


def test_a_row_per_student_and_a_column_per_ipc(results: Results):
    table = extra_tables(results)["student-by-ipc"]
    shown = {(score.student, score.ipc): top1_text(score) for score in results.scores}
    assert table.columns == ["student", "ipc 1", "ipc 10"]
    assert table.texts == [
        ["convnet", shown["convnet", 1], shown["convnet", 10]],
        ["resnet18", "", shown["resnet18", 10]],
    ]
    assert shown["convnet", 10].startswith("42.0")


def test_every_table_is_in_the_report_and_a_failing_one_says_why(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(_results: Results) -> Table:
        raise ValueError("no such <column>")

    TABLES.names()
    monkeypatch.setitem(TABLES._things, "broken", broken)
    monkeypatch.setitem(TABLES._things, "silent", lambda _results: None)

    fetch = FolderStore(tmp_path / "empty").fetch
    written = write_report("study", results, fetch, tmp_path / "out", facts={})
    assert {name for name in written if name.startswith("tables/")} == {
        "tables/broken.csv", "tables/broken.tex", "tables/student-by-ipc.csv", "tables/student-by-ipc.tex",
        "tables/results-1-digits-soft-labels-student-convnet.tex",
        "tables/results-2-digits-soft-labels-student-resnet18.tex",
    }  # fmt: skip
    rows = list(csv.reader(written["tables/student-by-ipc.csv"].read_text().splitlines()))
    assert rows[1:] == extra_tables(results)["student-by-ipc"].texts
    assert "ValueError: no such &lt;column&gt;" in written["report.html"].read_text()
    assert "| convnet |" in written["report.md"].read_text()
    [means] = re.findall(r'<td class="whole">convnet</td>(.*?)</tr>', written["report.html"].read_text())
    assert re.findall(r'data-sort="(.*?)"', means) == [str(score.top1.mean) for score in results.scores[:2]]


BUDGETS = {
    # labels: (fields of the protocol, label bytes, image-steps)
    "on the fly": ({}, None, 400),
    "hard": ({"labels": "hard"}, 0, 400),
    "once (fp32)": ({"soft_labels": "once", "label_dtype": "fp32"}, 400, 400),
    "stored (fp16, 4 of 40 epochs, 3 largest logits)": (
        {"soft_labels": "stored", "label_epochs": 4, "label_top_k": 3}, 480, 400,
    ),
    "stored (fp16)": ({"soft_labels": "stored"}, 8000, 400),
}  # fmt: skip
FIELDS = {"labels": "soft", "epochs": 40, "label_dtype": "fp16", "label_epochs": None, "label_top_k": None}


def budgets(tmp_path: Path, chosen: dict) -> Results:
    store, cells = FolderStore(tmp_path / "store"), []
    for place, (fields, stated, steps) in enumerate(chosen.values()):
        key = f"{place:064x}"
        own = {"method": "random", "dataset": "digits", "ipc": 1, "teacher": "mine", "student": "convnet"}
        own |= {"protocol": "rd3", "varied": {"field": place}, "set_seed": 0, "student_seed": 0}
        cells.append(Cell(**own, labels=fields.get("labels", "soft"), set="a" * 64, evaluation=key))
        result = {"top1_pct": 9.0, "correct": 1, "tested": 100, "image_steps": steps}
        result |= {} if stated is None else {"label_bytes": stated}
        (tmp_path / key).mkdir()
        entry = Entry(kind="evaluation", key=key, recipe={"protocol": FIELDS | fields}, result=result)
        store.put(entry, tmp_path / key)
    # The last point belongs to another part of the grid, too.
    cells.append(cells[-1].model_copy(update={"varied": {}, "overrides": {"field": place}}))
    return Results.of(cells, store.find)


def test_labels_by_their_bytes(tmp_path: Path):
    """Fewer bytes first; labels from a teacher in training, which have none, last; every point once."""
    results = budgets(tmp_path, BUDGETS)
    table = extra_tables(results)["label-budget"]
    found = {row[4]: (row[5], row[6]) for row in table.texts}
    assert found == {
        name: ("" if stated is None else str(stated), str(steps)) for name, (_, stated, steps) in BUDGETS.items()
    }
    assert list(found) == [*list(BUDGETS)[1:], "on the fly"] and len(table.rows) == len(BUDGETS)
    rows = list(csv.DictReader(to_csv(results.scores, results.tables).splitlines()))
    assert {(row["label_bytes"], row["image_steps"]) for row in rows} == set(found.values())


def test_labels_that_a_set_comes_with_are_named_so():
    assert labels_text({"labels": "soft", "soft_labels": "own", "label_dtype": "fp16"}) == "the set's own"


def test_grids_without_stored_labels_have_no_table_of_them(tmp_path: Path):
    chosen = {name: BUDGETS[name] for name in ("on the fly", "hard")}
    assert "label-budget" not in extra_tables(budgets(tmp_path, chosen))
