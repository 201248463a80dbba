"""Figure 1 of the paper: by how much its protocol moves the accuracies that the methods' own papers report."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tracking.report.charts._base import Drawing, register_chart
from tracking.report.extra.rectified import Rectified, rectified
from tracking.report.figures import INK, PAPER, STYLE, label_point, rendered
from tracking.report.results import Results
from tracking.report.sheets import Fetch

_CAPTION = (
    "Bars: rectified minus reported accuracy, in points, both as the paper prints them. Dots: our mean minus the "
    "reported accuracy. A bar to the left: the method's own paper reports more than the paper's protocol gives."
)


@register_chart("rectified")
def chart(results: Results, fetch: Fetch) -> Drawing | None:
    """Rectified minus reported accuracy by method and IPC; for grids that name both parts of Table 2."""
    found = [one for one in rectified(results.scores) if one.change is not None or one.ours is not None]
    if not found:
        return None
    text = "Rectified minus reported, in points: " + "; ".join(
        f"{one.method}, IPC {one.score.ipc}: {one.change:+.1f}" for one in found if one.change is not None
    )
    return Drawing("Rectified minus reported accuracy", _CAPTION, _drawn(found), text)


def _drawn(found: Sequence[Rectified]) -> bytes:
    methods = list(dict.fromkeys(one.method for one in found))
    panels = sorted(dict.fromkeys((one.score.dataset, one.score.ipc) for one in found), key=lambda panel: panel[1])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(4.6, 2.3 * len(panels) + 1.2), 0.9 + 0.32 * len(methods)), layout="constrained")
        axes_of = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (dataset, ipc) in zip(axes_of, panels, strict=True):
            axes.set_title(f"{dataset}, IPC {ipc}" if len({name for name, _ipc in panels}) > 1 else f"IPC {ipc}")
            shown = [one for one in found if (one.score.dataset, one.score.ipc) == (dataset, ipc)]
            _panel(axes, {methods.index(one.method): one for one in shown})
            axes.set_yticks(range(len(methods)), methods)
            axes.set_ylim(len(methods) - 0.5, -0.5)
        return rendered(figure, "rectified")


def _panel(axes: Axes, by_row: dict[int, Rectified]) -> None:
    for y, one in by_row.items():
        if one.change is not None:
            axes.barh(y, one.change, height=0.55, color=PAPER)
            offset, side = (3, "left") if one.change >= 0 else (-3, "right")
            label_point(axes, f"{one.change:+.1f}", (one.change, y), (offset, 0), ha=side, va="center")
        if one.ours is not None:
            axes.plot(one.ours, y, marker="o", markersize=6, color=INK, linestyle="none")
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.margins(x=0.25)
    axes.set_xlabel("points")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
