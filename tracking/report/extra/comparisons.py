"""All methods of a column against each other."""

from __future__ import annotations

from rd3.comparisons import Comparison
from tracking.report.extra import Table, register_table
from tracking.report.results import Results
from tracking.report.tables import ResultTable, short_names, varied_tables

NOTE = (
    "Mean difference in points (first minus second) on shared seeds with its own 95 % interval; p-values of paired "
    "t-tests after Holm's correction for all pairs of one table (or one varied value) and IPC. Equal within noise: no "
    "significant difference, which does not prove equality. With three seeds, only differences far above the spread "
    "can be significant."
)
COLUMNS = ("table", "varied", "ipc", "first", "second", "difference", "95 % interval", "p (Holm)", "shared", "verdict")


@register_table("comparisons")
def comparisons(results: Results) -> Table | None:
    """All pairs of methods on shared seeds, with Holm's correction."""
    tables = {"": results.tables, **varied_tables(results.scores)}
    rows = [
        row
        for varied, found in tables.items()
        for name, table in zip(short_names(found), found, strict=True)
        for row in _rows(name, varied, table)
    ]
    return Table("Methods compared pairwise", COLUMNS, rows, NOTE).without_empty() if rows else None


def _rows(name: str, varied: str, table: ResultTable) -> list[list[str]]:
    return [
        [name, varied, str(ipc), *_texts(one, column.unit)]
        for ipc, column in table.columns.items()
        for one in column.comparisons
    ]


def _texts(one: Comparison, unit: str) -> list[str]:
    shared = f"{one.shared} {unit if one.shared != 1 else unit.removesuffix('s')}"
    if one.difference is None or one.adjusted is None:
        return [one.first, one.second, "", "", "", shared, one.verdict()]
    got = one.difference
    numbers = (f"{got.mean:+.1f}", f"[{got.low:.1f}, {got.high:.1f}]", f"{one.adjusted:.2g}")
    return [one.first, one.second, *(number.replace("-", "−") for number in numbers), shared, one.verdict()]
