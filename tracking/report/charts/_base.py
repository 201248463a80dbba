"""What a chart of a report is: a function from a grid's results, and the files behind them, to a drawing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from rd3.registry import Registry
from tracking.report.results import Results, run_all
from tracking.report.sheets import Fetch


@dataclass(frozen=True)
class Drawing:
    """A chart as SVG, with a title and a caption of whole sentences."""

    title: str
    caption: str
    svg: bytes
    """UTF-8; empty for a chart that failed or cannot be drawn, whose caption then says why."""
    text: str = ""
    """What the chart shows, in sentences: its text alternative, and its place in Markdown; empty: tables show it."""

    @property
    def markup(self) -> Markup:
        """The chart as safe HTML: matplotlib has escaped its text."""
        return Markup(self.svg.decode())


ReportChart = Callable[[Results, Fetch], Drawing | None]
"""Takes a grid's results and a store's ``fetch``; None if there is nothing to show.  The docstring's first line is its
summary."""

CHARTS: Registry[ReportChart] = Registry("chart", "tracking.report.charts")

register_chart: Callable[[str], Callable[[ReportChart], ReportChart]] = CHARTS.register
"""Decorator: register a chart under a name."""


def drawings(results: Results, fetch: Fetch) -> list[Drawing]:
    """Every chart with something to show; one that fails shows the reason."""
    found = run_all(CHARTS, lambda name, reason: Drawing(name, f"Not drawn: {reason}", b""), results, fetch)
    return list(found.values())
