"""What original papers report, what the paper's protocol gives, and what was measured here (Table 2, Figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tracking.report.blocks import method_text
from tracking.report.extra._base import Cell, Table, register_table
from tracking.report.paper import PaperValue
from tracking.report.results import Results
from tracking.report.scores import Score
from tracking.report.tables import paper_text, points_text

_COLUMNS = ("dataset", "IPC", "method", "reported", "rectified", "rectified − reported", "here", "here − reported")
_NOTE = (
    "Reported: by the paper of each method, under a protocol of its own. Rectified: under the paper's protocol. "
    "Differences are in points and have no interval, as no number of runs is stated."
)
TABLE = "2"
REPORTED, RECTIFIED = "rectified=no", "rectified=yes"
"""The two configurations of that table."""


class Rectified(NamedTuple):
    """One cell of the table."""

    score: Score
    """The result here, under the paper's protocol."""
    method: str
    """With its own changed settings."""
    reported: PaperValue | None
    """As the method's own paper reports it, under a protocol of its own."""
    rectified: PaperValue | None
    """Under the paper's protocol."""

    @property
    def change(self) -> float | None:
        """Rectified minus reported accuracy, in points: a bar of Figure 1."""
        if self.reported is None or self.rectified is None:
            return None
        return self.rectified.mean - self.reported.mean

    @property
    def ours(self) -> float | None:
        """Our mean minus the reported accuracy, in points; None as well if ours was reduced."""
        if self.reported is None or self.score.top1 is None or self.score.reduced:
            return None
        return self.score.top1.mean - self.reported.mean


def rectified(scores: Sequence[Score]) -> list[Rectified]:
    """The cells of which the paper prints a reported or a rectified accuracy, in the order of the scores."""
    found: dict[tuple[str, int, str, str], dict[str, Score]] = {}
    for score in scores:
        if TABLE in score.printed and not score.varied:
            place = (score.dataset, score.ipc, score.student, method_text(score))
            found.setdefault(place, {})[score.printed[TABLE]] = score
    return [
        Rectified(both[RECTIFIED], place[-1], both[REPORTED].paper, both[RECTIFIED].paper)
        for place, both in found.items()
        if {REPORTED, RECTIFIED} <= set(both) and (both[REPORTED].paper or both[RECTIFIED].paper)
    ]


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
