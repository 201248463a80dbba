"""The best of several tests as a diagnostic beside the last epoch."""

from __future__ import annotations

from pathlib import Path

from rd3.cell import Cell
from rd3.store import Entry, FolderStore
from tracking.report.extra.best_of_tests import best_of_tests
from tracking.report.results import Results

TESTS = [{10: 30.0, 20: 50.0, 30: 40.0}, {10: 42.0, 20: 35.0, 30: 44.0}, {30: 90.0}]
"""Accuracy by epoch of three students; the third was tested once."""


def test_means_of_the_best_and_of_the_last_over_those_that_were_tested_before(tmp_path: Path):
    store, cells = FolderStore(tmp_path / "store"), []
    for seed, tests in enumerate(TESTS):
        (tmp_path / str(seed)).mkdir()
        own = {"method": "rded", "dataset": "digits", "ipc": 1, "teacher": "mine", "student": "convnet"}
        own |= {"protocol": "rded", "labels": "soft", "set_seed": 0, "student_seed": seed}
        cells.append(Cell(**own, set="a" * 64, evaluation=f"{seed:064x}"))
        result = {f"diagnostic_top1_pct_epoch_{epoch}": top1 for epoch, top1 in tests.items() if epoch < 30}
        result |= {"epochs_run": 30, "top1_pct": tests[30]}
        store.put(Entry(kind="evaluation", key=f"{seed:064x}", recipe={}, result=result), tmp_path / str(seed))
    table = best_of_tests(Results.of(cells, store.find))
    assert table is not None and table.columns == ["dataset", "IPC", "method", *table.columns[3:]]
    assert table.texts == [["digits", "1", "rded", "3", "42.0", "47.0", "+5.0"]]  # (40 + 44) / 2, (50 + 44) / 2
    assert best_of_tests(Results.of(cells[2:], store.find)) is None
    cells[1] = cells[1].model_copy(update={"student": "resnet18"})
    table = best_of_tests(Results.of(cells[:2], store.find))
    assert table is not None and [row[3] for row in table.texts] == ["convnet", "resnet18"]  # else alike
