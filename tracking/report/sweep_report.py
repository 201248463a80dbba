"""The report of a sweep: Markdown and a self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tracking.report.files import write_files
from tracking.report.page import fill

Row = Mapping[str, str]


@dataclass(frozen=True)
class Plot:
    """A plot with its caption."""

    name: str
    caption: str
    svg: bytes

    @property
    def source(self) -> str:
        """The plot as a data URI, which isolates its colours and ids from the page."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


@dataclass(frozen=True)
class MethodSection:
    """Results of one method."""

    label: str
    study: str
    state: str
    """``40 of 40 trials: 28 complete, 12 pruned``."""
    preset: str
    """Name of the winner's protocol in grids; empty if there is no winner yet."""
    winner: Sequence[Row]
    """``field``, ``base``, ``winner`` for every field that was tuned."""
    validation: Row
    """Validation accuracy of ``base`` and ``winner``."""
    tests: Sequence[Row]
    """``winner``, ``base``, ``difference``, ``params``, ``validation``, ``when``, ``sweep``, ``current``: yes or no."""
    winners: int
    """Number of different winners that were evaluated on the test split."""
    trials: Sequence[Row]
    plots: Sequence[Plot]


@dataclass(frozen=True)
class SweepPage:
    """The data that the templates render."""

    name: str
    description: str
    lines: Mapping[str, str]
    """Facts about the sweep, by name."""
    fairness: str
    """What the methods have in common, or that there is only one."""
    sections: Sequence[MethodSection]


def write_sweep_report(page: SweepPage, out: Path) -> dict[str, Path]:
    """Write ``report.md``, ``report.html`` and the plots into ``out``; returns a map of file names to paths."""
    written: dict[str, str | bytes] = {
        "report.md": fill("sweep.md.j2", page),
        "report.html": fill("sweep.html.j2", page),
        **{f"{section.label}-{plot.name}.svg": plot.svg for section in page.sections for plot in section.plots},
    }
    return write_files(out, written, "report")
