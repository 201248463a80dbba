"""All methods of a column against each other."""

from __future__ import annotations

from rd3.comparisons import Comparison
from tracking.report.columns import EQUIVALENCE_MARGIN
from tracking.report.extra import Table, register_table
from tracking.report.results import Results
from tracking.report.tables import short_names, varied_tables

WITHIN = f"within ±{EQUIVALENCE_MARGIN:g} point"
NOTE = (
    "Mean difference in points (first minus second) on shared seeds with its own 95 % interval; p-values of paired "
    "t-tests after Holm's correction for all pairs of one table (or one varied value) and IPC. Equal within noise: no "
    f"significant difference, which does not prove equality. Equivalent {WITHIN}: two one-sided t-tests at 5 %, after "
    "Holm's correction too, show that the difference is smaller than that. With three seeds, only differences far "
    "above the spread can be significant, and only a spread far below a point can show equivalence."
)
COLUMNS = (
    *("table", "varied", "ipc", "first", "second", "difference", "95 % interval", "p (Holm)"),
    *(f"p ({WITHIN})", "shared", "verdict"),
)


@register_table("comparisons")
def comparisons(results: Results) -> Table | None:
    """All pairs of methods on shared seeds, with Holm's correction."""
    tables = {"": results.tables, **varied_tables(results.scores)}
    rows = [
        [name, varied, str(ipc), *_texts(one, column.unit)]
        for varied, found in tables.items()
        for name, table in zip(short_names(found), found, strict=True)
        for ipc, column in table.columns.items()
        for one in column.comparisons
    ]
    return Table("Methods compared pairwise", COLUMNS, rows, NOTE).without_empty() if rows else None


def _texts(one: Comparison, unit: str) -> list[str]:
    shared = f"{one.shared} {unit if one.shared != 1 else unit.removesuffix('s')}"
    numbers = ["", "", "", ""]
    if (got := one.difference) is not None and one.adjusted is not None and one.equivalent is not None:
        p_values = (f"{one.adjusted:.2g}", f"{one.equivalent:.2g}")
        numbers = [f"{got.mean:+.1f}", f"[{got.low:.1f}, {got.high:.1f}]", *p_values]
    return [one.first, one.second, *(number.replace("-", "−") for number in numbers), shared, verdict_text(one)]


def verdict_text(one: Comparison) -> str:
    """The verdict with the margin; a difference that is significant and small is said to be both."""
    if one.verdict() != "equivalent":
        return one.verdict()
    return f"different, but {WITHIN}" if one.separated() else f"equivalent {WITHIN}"
