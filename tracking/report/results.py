"""The results of a grid as every table, figure and page takes them: read once, summarised once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import pandas as pd

from rd3.cell import Cell
from tracking.report.query import Find, rows
from tracking.report.scores import Score, scores
from tracking.report.tables import ResultTable, result_tables


@dataclass(frozen=True)
class Results:
    """One row per evaluation, and one score per set of evaluations that differ only in their seeds."""

    find: Find
    """Looks up the ledger entries that they are made from."""
    frame: pd.DataFrame
    """With the columns of :data:`tracking.report.query.COLUMNS`, in the order of the grid's cells."""
    scores: list[Score]

    @cached_property
    def tables(self) -> list[ResultTable]:
        """The result tables of the scores, with their comparisons of methods."""
        return result_tables(self.scores)

    @classmethod
    def of(cls, cells: Sequence[Cell], find: Find) -> Self:
        """Of a grid's cells; ``find`` looks up ledger entries."""
        frame = rows(cells, find)
        return cls(find, frame, scores(frame))
