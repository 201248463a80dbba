"""Reliability diagrams of kept students: accuracy against confidence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rd3.robustness.measure import RESULT
from tracking.report.charts._base import Drawing, register_chart
from tracking.report.extra.robustness import labels_of, measured
from tracking.report.figures import MOST_PANELS, panels_chart
from tracking.report.results import Results
from tracking.report.sheets import Fetch

_CAPTION = (
    "Share of correct predictions among the test images whose confidence lies in a bin, against their mean confidence "
    "(Guo et al., 2017).  Below the diagonal a student is overconfident.  The images of all seeds are pooled; bins of "
    "under ten are left out."
)
_FEWEST = 10
"""Images that a bin needs."""


@register_chart("reliability")
def reliability(results: Results, fetch: Fetch) -> Drawing | None:
    """Reliability diagrams, one panel per score; for grids that measure calibration."""
    found = [each for each in measured(results) if each.keys]
    if not 0 < len(found) <= MOST_PANELS:
        return None
    panels = {}
    for label, each in zip(labels_of(found), found, strict=True):
        diagrams = [json.loads((fetch("robustness", key) / RESULT).read_text())["reliability"] for key in each.keys]
        panels[label] = {"students": pooled(diagrams), "perfect calibration": [(0.0, 0.0), (100.0, 100.0)]}
    drawn = panels_chart(panels, x="confidence %", y="accuracy %", name="reliability")
    return Drawing("Reliability", _CAPTION, drawn)


def pooled(diagrams: Iterable[Iterable[Mapping[str, Any]]]) -> list[tuple[float, float]]:
    """(confidence, accuracy) in per cent of the bins of several diagrams, each weighted by its images."""
    points = []
    for bins in zip(*diagrams, strict=True):  # the same bin of each diagram
        full = [each for each in bins if each["images"]]
        images = sum(each["images"] for each in full)
        if images >= _FEWEST:
            totals = (sum(each["images"] * each[name] for each in full) for name in ("confidence", "accuracy"))
            confidence, accuracy = (100 * total / images for total in totals)
            points.append((confidence, accuracy))
    return points
