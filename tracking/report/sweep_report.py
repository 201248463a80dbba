"""The report of a sweep: Markdown, and one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rd3.store import now, write_atomically
from tracking.report.page import fill, when

Row = Mapping[str, str]


@dataclass(frozen=True)
class Plot:
    """A picture with the words that stand for it."""

    name: str
    caption: str
    svg: bytes

    @property
    def source(self) -> str:
        """As a data URI: drawn elsewhere, it keeps its own colours and identifiers."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


@dataclass(frozen=True)
class MethodSection:
    """What came of one method."""

    label: str
    study: str
    state: str
    """``40 of 40 trials: 28 complete, 12 pruned``."""
    preset: str
    """What grids call the winner; empty while there is none."""
    winner: Sequence[Row]
    """``field``, ``base``, ``winner`` for every field that was moved."""
    validation: Row
    """``base`` and ``winner`` on validation images."""
    tests: Sequence[Row]
    """``winner``, ``base``, ``difference``, ``params``, ``validation``, ``when``, ``sweep``, ``current``: yes or no."""
    winners: int
    """How many different ones have met the test split."""
    trials: Sequence[Row]
    plots: Sequence[Plot]


@dataclass(frozen=True)
class SweepPage:
    """Everything that the templates show, worked out."""

    name: str
    description: str
    lines: Mapping[str, str]
    """What was asked for and run, by name."""
    fairness: str
    """What the methods share, or that there is one only."""
    sections: Sequence[MethodSection]
    made_at: str = ""


def write_sweep_report(page: SweepPage, out: Path) -> dict[str, Path]:
    """Write ``report.md``, ``report.html`` and the plots into ``out``; file name to path."""
    shown = SweepPage(**{**page.__dict__, "made_at": when(now())})
    written: dict[str, str | bytes] = {
        "report.md": fill("sweep.md.j2", shown),
        "report.html": fill("sweep.html.j2", shown),
        **{f"{section.label}-{plot.name}.svg": plot.svg for section in page.sections for plot in section.plots},
    }
    for name, content in written.items():
        write_atomically(out / name, content)
    return {name: out / name for name in written}
