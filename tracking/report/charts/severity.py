"""Accuracy of kept students by the severity of corruptions."""

from __future__ import annotations

from rd3.robustness.corruptions import SEVERITIES
from tracking.report.charts._base import Drawing, register_chart
from tracking.report.extra.robustness import Measured, labels_of, measured
from tracking.report.figures import panels_chart
from tracking.report.results import Results
from tracking.report.sheets import Fetch

_MOST = 12
"""Lines of a chart at most."""


@register_chart("severity")
def severity(results: Results, fetch: Fetch) -> Drawing | None:
    """Accuracy by severity, the mean over corruptions, one line per score; for grids that measure it."""
    found = measured(results)
    points = zip(labels_of(found), map(_points, found), strict=True)
    lines = {label: line for label, line in points if line}
    if not 0 < len(lines) <= _MOST:
        return None
    drawn = panels_chart({"": lines}, x="severity", y="top-1 %", name="severity")
    return Drawing("Accuracy by severity", "Mean over corruptions and seeds; severity 0 is the clean images.", drawn)


def _points(each: Measured) -> list[tuple[float, float]]:
    """(severity, mean accuracy); empty if corruptions were not measured."""
    names = {0: "top1_pct"} | {number: f"severity_{number}_top1_pct" for number in SEVERITIES}
    found = [(float(number), each.summary(name)) for number, name in names.items()]
    points = [(number, got.mean) for number, got in found if got is not None]
    return points if len(points) == len(names) else []
