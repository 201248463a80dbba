"""Ranks of methods, and their agreement between the settings of a grid."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from rd3.comparisons import LEAST, Values
from rd3.rankings import RankingAgreement, rank_bootstrap, rank_intervals, ranking, ranking_agreement
from tracking.report.blocks import Setting, by_place
from tracking.report.columns import by_unit, several_sets, values_of
from tracking.report.extra import Table, register_table
from tracking.report.results import Results
from tracking.report.scores import Score
from tracking.report.tables import short_names

FEWEST = 3
"""Methods that a ranking needs."""
NOTE_RANKS = (
    "Rank by mean, the ranks that remain possible with 95 % confidence for all methods of a column at once (Holm's "
    "correction), and the middle 95 % of ranks when seeds are resampled, which describes and does not guarantee."
)
NOTE_TAU = (
    "Kendall's tau between two rankings of the same methods: 1 is the same order, −1 the opposite. 95 % interval: what "
    "paired tests over shared seeds leave possible, after Holm's correction over both settings; a pair of methods that "
    "is not separated in both may go either way. Resampled: the middle 95 % when seeds are resampled, which describes "
    "and does not guarantee."
)
COLUMNS_TAU = (
    *("dataset", "ipc", "first", "second", "methods", "tau", "95 % interval", "resampled"),
    *("pairs in the same order", "in the opposite order", "undecided"),
)


@register_table("ranks")
def ranks(results: Results) -> Table | None:
    """Rank of each method by IPC, with the ranks that its seeds leave possible."""
    rows: list[list[str]] = []
    for name, table in zip(short_names(results.tables), results.tables, strict=True):
        for ipc in table.ipcs:
            scores = {row.label: row.scores[ipc] for row in table.rows if ipc in row.scores}
            found = _ranks(values_of(scores))
            rows += [[name, str(ipc), *texts] for texts in found]
    columns = ("table", "ipc", "method", "rank", "95 % interval", "resampled")
    return Table("Ranks", columns, rows, NOTE_RANKS).without_empty() if rows else None


def _ranks(values: Values) -> list[list[str]]:
    """Method, rank and both intervals, on the seeds that all methods share; empty if these are too few."""
    shared = [seed for seed in next(iter(values.values()), {}) if all(seed in one for one in values.values())]
    if len(values) < FEWEST or len(shared) < LEAST:
        return []
    values = {name: {seed: one[seed] for seed in shared} for name, one in values.items()}
    place, possible = ranking(values), rank_intervals(values)
    drawn = rank_bootstrap(np.array([list(one.values()) for one in values.values()]).T)
    return [
        [name, str(place[name]), _range(*possible[name]), _range(*ends)]
        for name, ends in zip(values, drawn.T.tolist(), strict=True)
    ]


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}–{high}"


@register_table("rankings")
def rankings(results: Results) -> Table | None:
    """Kendall's tau between the rankings of the same methods in two settings of the grid that differ in one field."""
    rows = []
    for (dataset, ipc), settings in _settings(results.scores).items():
        for one, other in itertools.combinations(settings, 2):
            methods = [label for label in settings[one] if label in settings[other]]
            if sum(a != b for a, b in zip(one, other, strict=True)) == 1 and len(methods) >= FEWEST:
                pair = _values(settings[one], settings[other], methods)
                if pair is not None:
                    texts = _agreement(ranking_agreement(*pair))
                    rows.append([dataset, str(ipc), *_names(one, other), str(len(methods)), *texts])
    return Table("Agreement of rankings between settings", COLUMNS_TAU, rows, NOTE_TAU) if rows else None


def _settings(scores: Sequence[Score]) -> dict[tuple[str, int], dict[Setting, dict[str, Score]]]:
    """Finished scores by (dataset, IPC), by the setting and by the method with its own settings."""
    found: dict[tuple[str, int], dict[Setting, dict[str, Score]]] = {}
    for place, methods in by_place(scores).items():
        found.setdefault((place.dataset, place.ipc), {})[place.setting] = methods
    return found


def _names(one: Setting, other: Setting) -> tuple[str, str]:
    """The values of the one field in which two settings differ."""
    [(first, second)] = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
    return first or "base point", second or "base point"


def _values(
    one: Mapping[str, Score], other: Mapping[str, Score], methods: Sequence[str]
) -> tuple[dict[str, dict[Hashable, float]], dict[str, dict[Hashable, float]]] | None:
    """Results of both settings by set seed if any has several, else by student seed; None if they share no seed."""
    by_set = several_sets([scores[label] for scores in (one, other) for label in methods])
    first, second = ({label: by_unit(scores[label], by_set) for label in methods} for scores in (one, other))
    shared = set.intersection(*(set(values) for side in (first, second) for values in side.values()))
    return (first, second) if shared else None


def _agreement(got: RankingAgreement) -> list[str]:
    counts: list[Any] = ["", "", ""] if got.interval is None else [got.same, got.opposite, got.undecided]
    texts = [f"{got.tau:.2f}", _interval(got.interval), _interval(got.bootstrap)]
    return [*(text.replace("-", "−") for text in texts), *map(str, counts)]


def _interval(ends: tuple[float, float] | None) -> str:
    return "too few seeds" if ends is None else f"[{ends[0]:.2f}, {ends[1]:.2f}]"
