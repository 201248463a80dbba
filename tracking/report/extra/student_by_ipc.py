"""Accuracy by IPC, one row per student."""

from __future__ import annotations

from tracking.report.extra import Table, register_table
from tracking.report.results import Results


@register_table("student-by-ipc")
def student_by_ipc(results: Results) -> Table | None:
    """Accuracy by IPC, one row per student; for grids with several students."""
    base = [score for score in results.scores if not score.varied]
    if len({score.student for score in base}) < 2:
        return None
    return Table.of("Accuracy by IPC, one row per student", base, rows=["student"], column="ipc")
