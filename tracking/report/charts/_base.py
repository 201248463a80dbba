"""What a chart of a report is: a function from a grid's results, and the files behind them, to a drawing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rd3.errors import why
from rd3.registry import Registry
from tracking.report.results import Results
from tracking.report.sheets import Fetch


@dataclass(frozen=True)
class Drawing:
    """A chart as SVG, with a title and a caption of whole sentences."""

    title: str
    caption: str
    svg: bytes
    """Empty for a chart that failed or cannot be drawn; the caption then says why."""
    text: str = ""
    """What the chart shows, in sentences: its text alternative, and its place in Markdown."""


ReportChart = Callable[[Results, Fetch], Drawing | None]
"""Takes a grid's results and a store's ``fetch``; None if there is nothing to show.  The docstring's first line is its
summary."""

CHARTS: Registry[ReportChart] = Registry("chart", "tracking.report.charts")

register_chart: Callable[[str], Callable[[ReportChart], ReportChart]] = CHARTS.register
"""Decorator: register a chart under a name."""


def drawings(results: Results, fetch: Fetch) -> Iterator[Drawing]:
    """Every chart with something to show; one that fails shows the reason, as a chart must not cost the report."""
    for name in CHARTS:
        try:
            found = CHARTS.get(name)(results, fetch)
        except Exception as error:
            found = Drawing(name, f"Not drawn: {why(error)[1]}", b"")
        if found is not None:
            yield found
    for name, reason in CHARTS.broken().items():
        yield Drawing(name, f"Not drawn: {reason}", b"")
