"""A measured row, its CSV file, and the table on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rd3.csv_file import csv_text


@dataclass(frozen=True)
class Row:
    """One comparison.  Times are medians of the rounds, the ratio is the median of the rounds' ratios."""

    case: str
    variant: str
    unit: str
    """What takes ``ours_s`` seconds."""
    ours_s: float
    reference_s: float
    ratio: float
    """How many times faster ours is."""
    rounds: int
    batch: int
    dtype: str
    """Data type of our path's matrix products."""
    layout: str
    aim: float | None = None
    """``ratio`` to reach."""
    images_per_s: float | None = None
    gflop_per_s: float | None = None
    """Rate of our path; a multiply-add counts as two operations, and only operations that a unit needs count."""
    share_of_peak: float | None = None
    """``gflop_per_s`` as a fraction of the best rate of a matrix product at ``dtype`` in the same process."""
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the aim is reached."""
        if self.aim is None:
            return ""
        return f"{'reaches' if self.ratio >= self.aim else 'MISSES'} {self.aim:g}"


def write_csv(path: Path, rows: Sequence[Row], facts: Mapping[str, Any]) -> None:
    """Every row, followed by the facts of the machine (column to value)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [*(field.name for field in fields(Row)), *facts]
    cells = [[*asdict(row).values(), *facts.values()] for row in rows]
    path.write_text(csv_text([columns, *cells]), encoding="utf-8")


def table(rows: Sequence[Row]) -> str:
    """Rows as text, one line each."""
    return "\n".join(_line(row) for row in rows)


def _line(row: Row) -> str:
    each = f"{1e3 * row.ours_s:10.2f} ms, reference {1e3 * row.reference_s:10.2f} ms per {row.unit}"
    rates = [f"{row.images_per_s:.0f} images/s"] if row.images_per_s else []
    rates += [f"{row.gflop_per_s:.0f} GFLOP/s"] if row.gflop_per_s else []
    rates += [f"{100 * row.share_of_peak:.1f} % of peak"] if row.share_of_peak else []
    words = [f"x {row.ratio:.2f}", row.verdict, *rates, row.dtype, row.note]
    return f"  {row.variant:<46} {each}  " + "; ".join(word for word in words if word)
