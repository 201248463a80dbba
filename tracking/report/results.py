"""The results of a grid as every table, figure and page takes them: read once, summarised once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, TypeVar

import pandas as pd

from rd3.cell import Cell
from rd3.errors import why
from rd3.registry import Registry
from tracking.report.query import rows
from tracking.report.scores import Score, scores
from tracking.report.tables import ResultTable, result_tables
from tracking.runs.fields import Find
from tracking.runs.garbage import without_collection

T = TypeVar("T")


def run_all(
    registry: Registry[Callable[..., T | None]], failed: Callable[[str, str], T], *inputs: object
) -> dict[str, T]:
    """What the members of a registry make of ``inputs``, by name, without those that have nothing to show.

    ``failed(name, reason)`` makes a stand-in for a member that raises or could not be imported, so that the others are
    shown.
    """
    found: dict[str, T | None] = {}
    for name in registry:
        try:
            found[name] = registry.get(name)(*inputs)
        except Exception as error:
            found[name] = failed(name, why(error)[1])
    found |= {name: failed(name, reason) for name, reason in registry.broken().items()}
    return {name: one for name, one in found.items() if one is not None}


@dataclass(frozen=True)
class Results:
    """One row per evaluation, and one score per group of evaluations that differ only in their seeds."""

    find: Find
    """Looks up the ledger entries that they are made from."""
    frame: pd.DataFrame
    """With the columns of :data:`tracking.report.query.COLUMNS`, in the order of the grid's cells."""
    scores: list[Score]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of ``frame``, as mappings from columns to values."""
        found: list[dict[str, Any]] = self.frame.to_dict("records")
        return found

    @cached_property
    def tables(self) -> list[ResultTable]:
        """The result tables of the scores, with their comparisons of methods."""
        return result_tables(self.scores)

    @classmethod
    @without_collection()
    def of(cls, cells: Sequence[Cell], find: Find) -> Self:
        """Of a grid's cells; ``find`` looks up ledger entries."""
        frame = rows(cells, find)
        return cls(find, frame, scores(frame))
