"""The table of generation times: with and without preparation, and per image."""

from __future__ import annotations

from pathlib import Path

from rd3.cell import Cell
from rd3.store import Entry, FolderStore
from tracking.report.extra.generation import generation
from tracking.report.results import Results

TIMES = {"minimax": (30.0, 25.0), "random": (2.0, 0.0)}
"""Generation time and the part of it that was preparation, in seconds; 10 images each."""


def _results(store: FolderStore, folder: Path, stated: bool) -> Results:
    cells = []
    for place, (method, (total, before)) in enumerate(TIMES.items()):
        made, key = f"{place:064x}", f"{place + 8:064x}"
        own = {"method": method, "dataset": "digits", "ipc": 1, "teacher": "mine", "student": "convnet"}
        own |= {"protocol": "rd3", "labels": "soft", "set_seed": 0, "student_seed": 0}
        own |= {"overrides": {"minimax.steps": 5}} if method == "minimax" else {}
        cells.append(Cell(**own, set=made, evaluation=key))
        result = {"count": 10, "generation_wall_s": total, "generation_process_s": 2 * total}
        result |= {"preparation_wall_s": before, "preparation_process_s": 2 * before} if stated else {}
        for kind, entry_key, figures in (("set", made, result), ("evaluation", key, {"top1_pct": 50.0})):
            (folder / f"{kind}{place}").mkdir(parents=True)
            store.put(Entry(kind=kind, key=entry_key, recipe={}, result=figures), folder / f"{kind}{place}")
    return Results.of(cells, store.find)


def test_times_with_and_without_preparation_and_per_image(tmp_path: Path):
    table = generation(_results(FolderStore(tmp_path / "store"), tmp_path / "files", True))
    assert table is not None
    assert table.columns[4:] == (
        *("CPU s", "CPU s of preparation", "wall s", "wall s of preparation"),
        "wall s per image, without preparation",
    )
    assert table.texts == [
        ["digits", "1", "minimax (minimax.steps=5)", "10", "60.0", "50.0", "30.0", "25.0", "0.50"],
        ["digits", "1", "random", "10", "4.00", "0.00", "2.00", "0.00", "0.20"],
    ]


def test_results_that_do_not_state_the_preparation_have_no_table(tmp_path: Path):
    assert generation(_results(FolderStore(tmp_path / "store"), tmp_path / "files", False)) is None
