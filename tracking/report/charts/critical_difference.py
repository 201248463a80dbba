"""Average ranks of methods with Nemenyi's critical difference (Demšar 2006), drawn by scikit-posthocs."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from scipy.stats import studentized_range

from rd3.comparisons import ALPHA
from rd3.rankings import AverageRanks, average_ranks
from rd3.stats import mean
from tracking.report.blocks import complete_blocks
from tracking.report.charts._base import Drawing, register_chart
from tracking.report.figures import INK, STYLE, rendered
from tracking.report.results import Results
from tracking.report.sheets import Fetch

TITLE = "Average ranks"
FEWEST_BLOCKS = 5
FEWEST_METHODS = 3
"""Below these there are no average ranks, and no diagram."""
BLOCKS = (
    "A block is one dataset, IPC and setting of the evaluation in which every method has a result, as a mean over "
    "seeds. The tests take blocks as independent, which those of one dataset are not."
)
INSTALL = "The diagram needs scikit-posthocs: pip install 'rd3[statistics]'."


@register_chart("critical-difference")
def critical_difference(results: Results, fetch: Fetch) -> Drawing | None:
    """Critical-difference diagram of the methods' average ranks; for grids with several methods."""
    methods, complete = complete_blocks(results.scores)
    if len(methods) < 2:
        return None
    if len(complete) < FEWEST_BLOCKS:
        return _sentence(
            f"No average ranks: {len(complete)} {'block has' if len(complete) == 1 else 'blocks have'} a result of all "
            f"{len(methods)} methods, at least {FEWEST_BLOCKS} are needed. {BLOCKS}"
        )
    blocks = [{name: mean(list(found[name].by_seeds.values())) for name in methods} for found in complete]
    found = average_ranks(blocks)
    text = ranks_text(found, len(blocks))
    if len(methods) < FEWEST_METHODS:
        return _sentence(f"{text} A diagram needs at least {FEWEST_METHODS} methods. {BLOCKS}")
    try:
        library = importlib.import_module("scikit_posthocs")
    except ModuleNotFoundError:
        return _sentence(f"{text} {INSTALL} {BLOCKS}")
    separated = found.p_value is not None and found.p_value < ALPHA
    drawn = _drawn(library, found.ranks, blocks, separated)
    return Drawing(TITLE, f"{text} Bars join methods that are not separated. {BLOCKS}", drawn, text)


def _sentence(text: str) -> Drawing:
    return Drawing(TITLE, text, b"", text)


def critical_distance(methods: int, blocks: int) -> float:
    """Nemenyi's critical difference: average ranks that differ by less are not separated at 5 %."""
    quantile = float(studentized_range.ppf(1 - ALPHA, methods, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * blocks))


def ranks_text(found: AverageRanks, blocks: int) -> str:
    """Ranks and tests in sentences."""
    order = sorted(found.ranks, key=lambda name: found.ranks[name])
    ranks = ", ".join(f"{name} {found.ranks[name]:.2f}" for name in order)
    text = f"Average ranks over {blocks} blocks (1 is the best): {ranks}."
    if found.p_value is None:
        return text
    if found.p_value >= ALPHA:
        return f"{text} Friedman's test finds no difference between the methods (p = {found.p_value:.2g})."
    distance = critical_distance(len(order), blocks)
    groups = "; ".join(" and ".join(group) for group in joined(found.ranks, distance)) or "none"
    return (
        f"{text} Friedman's test finds differences (p = {found.p_value:.2g}). Methods that Nemenyi's test does not "
        f"separate (critical difference {distance:.2f} at 5 %): {groups}."
    )


def joined(ranks: Mapping[str, float], distance: float) -> list[list[str]]:
    """The largest groups of at least two methods whose average ranks all differ by less than ``distance``."""
    order = sorted(ranks, key=lambda name: ranks[name])
    groups = [[one for one in order[start:] if ranks[one] - ranks[first] < distance]
              for start, first in enumerate(order)]  # fmt: skip
    return [
        group
        for place, group in enumerate(groups)
        if len(group) > 1 and (place == 0 or group[-1] != groups[place - 1][-1])
    ]


def _drawn(library: Any, ranks: Mapping[str, float], blocks: Sequence[Mapping[str, float]], separated: bool) -> bytes:
    """The diagram as SVG; without ``separated`` all methods are joined, as Friedman's test finds no difference."""
    p_values: pd.DataFrame = library.posthoc_nemenyi_friedman(pd.DataFrame(blocks))
    if not separated:
        p_values.loc[:, :] = 1.0
    with matplotlib.rc_context({**STYLE, "axes.spines.top": True}):
        figure = Figure(figsize=(6.2, 0.9 + 0.2 * len(ranks)), layout="constrained")
        axes = figure.subplots()
        library.critical_difference_diagram(
            dict(ranks),
            p_values,
            alpha=ALPHA,
            ax=axes,
            label_fmt_left="{label} {rank:.2f}",
            label_fmt_right="{rank:.2f} {label}",
            text_h_margin=0.05,
            elbow_props={"color": INK, "linewidth": 0.9},
            marker_props={"color": INK, "s": 16},
            crossbar_props={"color": INK, "linewidth": 3},
        )
        axes.set_xlim(0.9, len(ranks) + 0.1)
        axes.xaxis.set_major_locator(FixedLocator(range(1, len(ranks) + 1)))
        return rendered(figure, "critical-difference")
