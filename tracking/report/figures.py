"""Charts of scores as SVG bytes: accuracy by method and IPC, sensitivity to a field, accuracy against cost.

Figures are drawn without pyplot and its global state.  The colours are the colour-blind safe palette of Okabe and Ito
with two additions of different lightness, its yellow left out; each method has a colour and marker that no other has.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from rd3.component import changes_text, plain_text, value_by_name
from rd3.errors import BadValue
from rd3.protocol import EvalProtocol
from rd3.values import neutral_values
from tracking.report.paper import names
from tracking.report.scores import Score, Summary
from tracking.report.tables import ResultTable, differences, top1_text

INK = "#1f2328"
"""Replaced by ``currentColor`` in SVG, so that a chart follows the light or dark theme of its page."""
COLOURS = (INK, "#0072B2", "#E69F00", "#56B4E9", "#8C6D31", "#009E73", "#CC79A7", "#6A51A3", "#D55E00")
MARKERS = ("o", "s", "X", "P", "h", "D", "v", "p", "^", "<", ">", "*")
PAPER = "#7a8088"
"""Colour of the paper's values."""
_DASHES = ("-", "--", ":", "-.")
_POINT: dict[str, Any] = {"linestyle": "none", "markersize": 6}
"""Look of a legend's entry for points without a line."""
_PAPER_POINT: dict[str, Any] = {"color": PAPER, "marker": "D", "markerfacecolor": "none"}
_RING: dict[str, Any] = {"color": INK, "marker": "o", "markerfacecolor": "none", "linestyle": "none"}
"""Around the base point of a sensitivity study."""
TIP = "tip-"
"""Beginning of the id of a marker with a tooltip, whose text follows in hexadecimal."""
BARS = "bars: 95 % interval of the mean, from three seeds on."
if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

STYLE: dict[RcKeyType, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.axisbelow": True,
    "errorbar.capsize": 2.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,
}


def _styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each method, fixed for the paper's methods and in order of the name for others."""
    known = list(names()["methods"])
    order = enumerate(known + sorted(set(methods) - set(known)))
    return {name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]} for i, name in order}


def rendered(figure: Figure, name: str) -> bytes:
    """The figure as SVG, with ids prefixed by ``name`` and without metadata."""
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, bbox_inches="tight", metadata=no_metadata)
    text = out.getvalue().decode()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(rf'<g id="{TIP}([0-9a-f]+)">', _with_title, text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    # style.css takes the width from --width.
    text = re.sub(r'<svg (?=.*?\bwidth="([^"]+)")', r'<svg role="img" style="--width: \1" ', text, count=1)
    return text.encode()


def _with_title(found: re.Match[str]) -> str:
    """The group of a marker with its text, which a browser shows on hover and a screen reader reads."""
    return f"<g><title>{escape(bytes.fromhex(found.group(1)).decode(), quote=False)}</title>"


def _tip(score: Score) -> str:
    """Id of a score's marker, which :func:`rendered` turns into a title."""
    changes = changes_text({**score.overrides, **score.varied})
    text = ", ".join(filter(None, (score.method, f"IPC {score.ipc}", changes)))
    return TIP + f"{text}: {top1_text(score)}".encode().hex()


def _grid(axes: Axes, axis: Literal["both", "y", "x"]) -> None:
    axes.grid(axis=axis, color=INK, alpha=0.13, linewidth=0.6)


def _legend(figure: Figure, looks: Mapping[str, Mapping[str, Any]], columns: int = 5) -> None:
    """Add a legend below the panels; ``looks``: attributes of a line by its label."""
    entries = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    figure.legend(
        handles=entries, loc="outside lower center", ncols=min(columns, len(entries)), handletextpad=0.4, fontsize=9
    )


def label_point(axes: Axes, text: str, point: tuple[float, float], offset: tuple[int, int], **alignment: Any) -> None:
    """Write a text beside a point, at an offset in typographic points."""
    axes.annotate(text, point, xytext=offset, textcoords="offset points", fontsize=8, **alignment)


def accuracy_chart(table: ResultTable, *, name: str = "accuracy") -> bytes:
    """Mean top-1 accuracy with 95 % interval by method, one panel per IPC; hollow diamonds: the paper's mean ± std."""
    count = len(table.rows)
    styles = _styles([score.method for row in table.rows for score in row.scores.values()])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(4.6, 2.9 * len(table.ipcs) + 1.2), 1.0 + 0.46 * count), layout="constrained")
        panels = figure.subplots(1, len(table.ipcs), sharey=True, squeeze=False)[0]
        for axes, ipc in zip(panels, table.ipcs, strict=True):
            axes.set_title(f"IPC {ipc}")
            for y, row in enumerate(table.rows):
                score = row.scores.get(ipc)
                if score is not None and score.paper is not None:
                    look = {**_PAPER_POINT, "markersize": 5, "elinewidth": 1.4}
                    axes.errorbar(score.paper.mean, y - 0.16, xerr=score.paper.std or None, **look)
                if score is not None and score.top1 is not None:
                    look = {**styles[score.method], "markersize": 6.5, "elinewidth": 1.4}
                    drawn = axes.errorbar(score.top1.mean, y + 0.1, xerr=_bar(score.top1) or None, **look)
                    drawn.lines[0].set_gid(_tip(score))
                    label_point(axes, f"{score.top1.mean:.1f}", (score.top1.mean, y + 0.1), (0, -12), ha="center")
            axes.set_yticks(range(count), [row.label for row in table.rows])
            axes.set_ylim(count - 0.3, -0.5)
            axes.margins(x=0.15)
            axes.set_xlabel("top-1 %")
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            _grid(axes, "x")
        if any(score.paper for row in table.rows for score in row.scores.values()):
            _legend(figure, {"here": {"color": INK, "marker": "s"} | _POINT, "paper": _PAPER_POINT | _POINT})
        return rendered(figure, name)


def _bar(got: Summary) -> float | None:
    """Length of an error bar to one side: half of the 95 % interval; None for fewer than three seeds."""
    return got.half_95 if got.interval else None


def _value(score: Score, field: str) -> Any:
    """The field's value in the resolved protocol (a batch is capped at the set's size), or else in the grid.

    Image-steps, to which a protocol's epochs are rounded, are those of the result.
    """
    if field == "image_steps" and score.image_steps is not None:
        return score.image_steps
    value = value_by_name(score.resolved, field) if score.resolved else score.varied.get(field)
    if value is None and field not in (score.resolved or {}):  # a field that did not exist yet
        value = neutral_values(EvalProtocol).get(field)
    if value is None and field in ("label_top_k", "label_epochs"):
        return "all"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else plain_text(value)


def sensitivity_lines(scores: Sequence[Score], field: str) -> dict[str, list[tuple[Any, Score]]]:
    """Map line labels to points (value, score), in order of the value.

    A line has all that :func:`_line` names, at the base point and where only ``field`` was varied.  Equal values give
    one point, the base point first; points without a result are left out.
    """
    varied = {_line(score, field) for score in scores if list(score.varied) == [field]}
    shown = [
        score
        for score in scores
        if score.top1 is not None and _line(score, field) in varied and list(score.varied) in ([], [field])
    ]
    shown.sort(key=lambda score: bool(score.varied))
    lines: dict[str, dict[Any, Score]] = {}
    for score, apart in zip(shown, differences([_line(score, field)[1:] for score in shown]), strict=True):
        label = f"{score.method}, {apart}" if apart else score.method
        lines.setdefault(label, {}).setdefault(_value(score, field), score)
    return {
        label: sorted(points.items(), key=lambda point: (isinstance(point[0], str), point[0]))
        for label, points in lines.items()
    }


def _line(score: Score, field: str) -> tuple[str, ...]:
    """The fields that all points of a line share."""
    labels = "" if field == "labels" else f"{score.labels} labels"
    trained = (score.dataset, f"IPC {score.ipc}", labels, score.student, score.teacher, score.protocol)
    return (score.method, *trained, changes_text(dict(sorted(score.overrides.items()))))


def sensitivity_chart(
    lines: Mapping[str, Sequence[tuple[Any, Score]]], field: str, *, name: str = "sensitivity"
) -> bytes:
    """Mean top-1 accuracy with 95 % interval against one protocol field, with the base point circled.

    ``lines``: at least one, of :func:`sensitivity_lines`.  The x axis is logarithmic if positive values span a decade
    or more, and categorical if values are not numbers.
    """
    values = sorted({value for points in lines.values() for value, _ in points}, key=lambda v: (isinstance(v, str), v))
    numeric = not any(isinstance(value, str) for value in values)
    logarithmic = numeric and min(values) > 0 and max(values) / min(values) >= 10
    positions = {value: value if numeric else index for index, value in enumerate(values)}
    drawn_methods = [points[0][1].method for points in lines.values()]
    styles, looks = _styles(drawn_methods), dict[str, dict[str, Any]]()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 3.4), layout="constrained")
        axes = figure.subplots()
        for index, (label, points) in enumerate(lines.items()):
            method = drawn_methods[index]
            dashes = _DASHES[drawn_methods[:index].count(method) % len(_DASHES)]
            looks[label] = styles[method] | {"linestyle": dashes}
            # Lines with the same x values are shifted a little, so that their error bars do not overlap.
            shifted = _shifted(positions, index - (len(lines) - 1) / 2, logarithmic)
            axes.errorbar(
                [shifted[value] for value, _ in points],
                [score.top1.mean for _, score in points if score.top1],
                yerr=[_bar(score.top1) or 0.0 for _, score in points if score.top1],
                linewidth=1.3,
                elinewidth=1.3,
                **looks[label],
            )
            for value, score in points:
                if score.top1 and not score.varied:
                    axes.plot(shifted[value], score.top1.mean, markersize=13, **_RING)
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.08, y=0.12)
        ticks = [value if isinstance(value, str) else f"{value:g}" for value in values]
        axes.set_xticks([positions[value] for value in values], ticks)
        axes.set_xlabel(field)
        axes.set_ylabel("top-1 %")
        _grid(axes, "y")
        _legend(figure, looks | {"base point": _RING | {"markersize": 11}}, columns=3)
        return rendered(figure, name)


def _shifted(positions: dict[Any, float], steps: float, logarithmic: bool) -> dict[Any, float]:
    """The positions shifted by ``steps`` times 0.8 % of the axis."""
    low, high = min(positions.values()), max(positions.values())
    if logarithmic:
        return {value: x * (high / low) ** (0.008 * steps) for value, x in positions.items()}
    return {value: x + 0.008 * steps * (high - low) for value, x in positions.items()}


def log_ticks(low: float, high: float, wanted: int = 3) -> list[float]:
    """Ticks of a logarithmic axis from ``low`` to ``high``, at least ``wanted`` of them within a decade too.

    Powers of ten, or else their multiples by 1, 2 and 5, or by 1 to 9; round numbers on narrower axes.
    """
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5), range(1, 10)):
        ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        shown = [tick for tick in ticks if low <= tick <= high]
        if len(shown) >= wanted:
            return shown
    return [tick for tick in MaxNLocator(6).tick_values(low, high) if low <= tick <= high]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, accuracy) that no other one beats: each is more accurate than all that cost as much or less."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def cost_chart(scores: Sequence[Score], *, name: str = "cost") -> bytes:
    """Mean top-1 accuracy against the time of generating the set (log scale), one point per method and IPC.

    A panel per unit of time: CPU seconds, and seconds on each kind of GPU.  A dotted line leads to the time without
    preparation (that of the parents of a set), where there was any.  The grey line is the Pareto front of a panel's
    means.  Raises :class:`BadValue` if no result has both.
    """
    units: dict[str, list[Score]] = {}
    for score in scores:
        if score.top1 and score.generation_s and not score.varied:
            units.setdefault(score.generation_unit, []).append(score)
    if not units:
        raise BadValue("No result has both an accuracy and a generation time.", "run the grid first")
    methods = list(dict.fromkeys(score.method for shown in units.values() for score in shown))
    styles = _styles(methods)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2 if len(units) == 1 else 4.2 * len(units), 3.4), layout="constrained")
        panels = figure.subplots(1, len(units), sharey=True, squeeze=False)[0]
        for axes, (unit, shown) in zip(panels, units.items(), strict=True):
            _cost_panel(axes, shown, styles)
            hollow = "\n(hollow: without preparation)" if any(score.preparation_s for score in shown) else ""
            axes.set_xlabel(f"generation time of the set, {unit}{hollow}")
        panels[0].set_ylabel("top-1 %")
        _legend(figure, {method: styles[method] | _POINT for method in methods})
        return rendered(figure, name)


def _cost_panel(axes: Axes, shown: Sequence[Score], styles: Mapping[str, dict[str, Any]]) -> None:
    points: list[tuple[float, float]] = []
    for score in shown:
        if score.top1 is None or score.generation_s is None:
            continue
        look = styles[score.method]
        x, y = score.generation_s, score.top1.mean
        points.append((x, y))
        if score.preparation_s and (alone := x - score.preparation_s) > 0:
            axes.plot([alone, x], [y, y], ":", color=look["color"], linewidth=1.0, zorder=1)
            axes.plot([alone], [y], markerfacecolor="none", zorder=1, **look)
        drawn = axes.errorbar(x, y, yerr=_bar(score.top1), elinewidth=1.3, **look)
        drawn.lines[0].set_gid(_tip(score))
        label_point(axes, f"IPC {score.ipc}", (x, y), (7, 3))
    front = pareto_front(points)
    axes.step(*zip(*front, strict=True), where="post", color=INK, alpha=0.35, linewidth=1.0, zorder=0)
    axes.set_xscale("log")
    axes.margins(0.12)
    axes.xaxis.set_major_locator(FixedLocator(log_ticks(*axes.get_xlim())))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    _grid(axes, "both")


def _panels(titles: Sequence[str], width: float, height: float, *, least: float, more: float) -> tuple[Figure, Any]:
    """A figure and its panels with common axes, three in a row; a panel has ``width`` and ``height`` in inches.

    The figure is at least ``least`` wide, and ``more`` higher than its panels.
    """
    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(max(least, width * columns), more + height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in grid[len(titles) :]:
        axes.set_visible(False)
    for axes, title in zip(grid, titles, strict=False):
        axes.set_title(title)
    return figure, grid[: len(titles)]


MOST_PANELS = 12
"""Panels that a chart of :func:`panels_chart` should have at most."""


def panels_chart(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], *, x: str, y: str, name: str = "panels"
) -> bytes:
    """Panels by title, each with lines of (x, y) points by label; ``x`` and ``y`` label the common axes."""
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    looks: dict[str, dict[str, Any]] = {
        label: {"color": COLOURS[place % len(COLOURS)], "linestyle": _DASHES[place % len(_DASHES)], "linewidth": 1.4}
        for place, label in enumerate(labels)
    }
    with matplotlib.rc_context(STYLE):
        figure, grid = _panels(list(panels), 2.7, 2.5, least=6.2, more=0.8)
        for place, (axes, lines) in enumerate(zip(grid, panels.values(), strict=True)):
            for label, points in lines.items():
                axes.plot([point[0] for point in points], [point[1] for point in points], **looks[label])
            axes.set_ylabel(y)
            axes.label_outer()
            if place + 3 >= len(grid):  # the lowest of its column, also above an empty place
                axes.set_xlabel(x)
                axes.xaxis.set_tick_params(labelbottom=True)
            _grid(axes, "y")
        _legend(figure, looks, columns=3)
        return rendered(figure, name)


class Points(NamedTuple):
    """Images of one origin."""

    features: np.ndarray
    """(n, D) float64, or (n, 2) once embedded."""
    labels: np.ndarray
    """(n,) int64."""


def map_chart(clouds: Mapping[str, Points], *, name: str = "map") -> bytes:
    """Embedded images by origin, coloured by label: a panel per origin, each drawn over the points of the first one."""
    background, palette = next(iter(clouds.values())), matplotlib.colormaps["tab10"]
    with matplotlib.rc_context(STYLE):
        figure, grid = _panels(list(clouds), 2.9, 2.9, least=0.0, more=0.3)
        for axes, cloud in zip(grid, clouds.values(), strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            colours = palette(background.labels % 10)
            axes.scatter(*background.features.T, s=5, c=colours, alpha=0.35, linewidths=0, rasterized=True)
            if cloud is not background:
                own = palette(cloud.labels % 10)
                axes.scatter(*cloud.features.T, s=34, c=own, edgecolors=INK, linewidths=0.6)
        return rendered(figure, name)
