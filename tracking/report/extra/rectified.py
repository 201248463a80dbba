"""Rectified and reported accuracies, and their differences (Table 2 and Figure 1 of the paper)."""

from __future__ import annotations

from tracking.report.extra._base import Cell, Table, register_table
from tracking.report.rectified import rectified
from tracking.report.results import Results
from tracking.report.tables import paper_text, points_text

_COLUMNS = ("dataset", "IPC", "method", "reported", "rectified", "rectified − reported", "here", "here − reported")
_NOTE = (
    "Reported: by the paper of each method, under a protocol of its own. Rectified: under the paper's protocol. "
    "Differences are in points and have no interval, as no number of runs is stated."
)


@register_table("rectified")
def table(results: Results) -> Table | None:
    """Reported and rectified accuracies of every method, and ours; for grids that name both parts of Table 2."""
    rows: list[list[Cell]] = [
        [
            *(one.score.dataset, one.score.ipc, one.method, paper_text(one.reported), paper_text(one.rectified)),
            *(points_text(one.change), one.score, points_text(one.ours)),
        ]
        for one in rectified(results.scores)
    ]
    return Table("Rectified and reported accuracy", _COLUMNS, rows, _NOTE) if rows else None
