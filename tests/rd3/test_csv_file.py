"""CSV files in which a spreadsheet computes nothing."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from rd3.csv_file import csv_text
from rd3.errors import DataMissing
from tests.tracking.report.test_tables import Results as Grid
from tracking.report import page
from tracking.report.page import write_report
from tracking.report.results import Results

COMPUTED = [
    "=SUM(1)",
    "@SUM(1)",
    "+1+1",
    "-1+1",
    "-2+3|x",
    "\t=1",
    "\n=1",
    "\uff1dSUM(1)",
    '=A("x","y")',
    "+1 (A1)",
]
LEFT = ["", "rded", "a=b", "1+1", "-5", "+0.0", "-1.5e-3", "+1.2 [-0.1, 2.3]", "[1, 2]", '{"a": 1}', "\u22120.5", "'a"]


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("text", COMPUTED)
def test_a_text_that_a_spreadsheet_computes_is_marked_as_text(text: str):
    assert read(csv_text([["name", text], [text, 1]])) == [["name", "'" + text], ["'" + text, "1"]]


def test_a_carriage_return_begins_no_row_of_its_own():
    assert read(csv_text([["\r=1", "a\r\n=1", "b\r=1"]])) == [["'\n=1", "a\n=1", "b\n=1"]]


def test_other_cells_are_as_they_are():
    numbers = [-1, -0.5, 2e-7, None, True]
    assert read(csv_text([LEFT, numbers])) == [LEFT, ["-1", "-0.5", "2e-07", "", "True"]]


def test_names_from_others_in_every_csv_of_a_report(tmp_path: Path):
    grid = Grid()
    for method, tops in {"=SUM(1)": [40.0, 41.0, 42.0], "rded": [50.0, 49.0, 51.5], "+1+1": [30.0, 32.0, 31.0]}.items():
        grid.add(method, 10, tops, setting="@SUM(1) part")

    def fetch(kind: str, key: str) -> Path:
        raise DataMissing("No files here.")

    written = write_report("grid", Results.of(grid.cells, grid.find), fetch, tmp_path, facts={})
    read_files = {name: read(path.read_text()) for name, path in written.items() if name.endswith(".csv")}
    assert {"results.csv", "evaluations.csv", "tables/comparisons.csv", "tables/ranks.csv"} <= set(read_files)
    for name, rows in read_files.items():
        cells = [cell for row in rows for cell in row]
        assert "'=SUM(1)" in cells, name
        computed = [cell for cell in cells if cell[:1] in ("=", "@", "+", "-") and not is_number(cell)]
        assert not computed, name


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_no_other_module_writes_csv():
    root = Path(page.__file__).parents[2]
    files = [file for part in ("rd3", "tracking", "pipelines", "benchmarks") for file in (root / part).rglob("*.py")]
    writers = {
        file.name for file in files if any(word in file.read_text() for word in ("csv.writer(", "csv.DictWriter("))
    }
    assert writers == {"csv_file.py"}
