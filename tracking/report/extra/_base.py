"""What a table of a report is: a function from a grid's results to rows of scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from rd3.component import changes_text
from rd3.registry import Registry
from tracking.report.results import Results, run_all
from tracking.report.scores import Score, differing
from tracking.report.tables import escape_markdown, reduced_text, top1_text

Cell = Score | str | float | None
"""A score is shown with its spread, its repeats and what was reduced; None is empty."""


@dataclass(frozen=True)
class Table:
    """One table; every row has a cell for each column."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    """What the reader has to know, in a sentence or two."""

    @classmethod
    def of(cls, title: str, scores: Sequence[Score], rows: Sequence[str], column: str) -> Self:
        """A row per combination of the fields ``rows`` and others that differ, a column per value of ``column``."""
        by = [*rows, *(name for name in differing(scores) if name not in (*rows, column))]
        across = sorted({getattr(score, column) for score in scores})
        found: dict[tuple[str, ...], dict[object, Score]] = {}
        for score in scores:
            found.setdefault(tuple(_text(getattr(score, name)) for name in by), {})[getattr(score, column)] = score
        lines = [[*key, *(cells.get(value) for value in across)] for key, cells in found.items()]
        return cls(title, [*by, *(f"{column} {value}" for value in across)], lines)

    def without_empty(self) -> Self:
        """The table without columns that are empty in every row."""
        kept = [place for place, texts in enumerate(zip(*self.texts, strict=True)) if any(texts)]
        rows = [[row[place] for place in kept] for row in self.rows]
        return replace(self, columns=[self.columns[place] for place in kept], rows=rows)

    @property
    def texts(self) -> list[list[str]]:
        """The cells as they are shown."""
        return [[_text(cell) for cell in row] for row in self.rows]

    @property
    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.texts]
        table = "".join(f"| {' | '.join(map(escape_markdown, line))} |\n" for line in lines)
        return f"{escape_markdown(self.note)}\n\n{table}" if self.note else table


ReportTable = Callable[[Results], Table | None]
"""Takes a grid's results; None if there is nothing to show.  The docstring's first line is its summary."""

TABLES: Registry[ReportTable] = Registry("table", "tracking.report.extra")

register_table: Callable[[str], Callable[[ReportTable], ReportTable]] = TABLES.register
"""Decorator: register a table under a name, which is that of its CSV file in ``tables/``."""


def extra_tables(results: Results) -> dict[str, Table]:
    """Every table with something to show, by name; one that fails shows the reason."""
    return run_all(TABLES, lambda name, reason: Table(name, ["error"], [[reason]]), results)


def _text(cell: object) -> str:
    if isinstance(cell, Score):
        return " ".join(filter(None, (top1_text(cell), reduced_text(cell.reduced))))
    return "" if cell is None else changes_text(cell) if isinstance(cell, dict) else str(cell)
