"""Ranks of methods, and their agreement between the settings of a grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from rd3.comparisons import MIN_SEEDS, Values
from rd3.rankings import RankingAgreement, on_shared_seeds, rank_bootstrap, rank_intervals, ranking, ranking_agreement
from tracking.report.blocks import Setting, by_block
from tracking.report.columns import accuracies_by_unit
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
            rows += [[name, str(ipc), *texts] for texts in _ranks(*accuracies_by_unit(scores))]
    columns = ("table", "ipc", "method", "rank", "95 % interval", "resampled")
    return Table("Ranks", columns, rows, NOTE_RANKS).without_empty() if rows else None


def _ranks(values: Values) -> list[list[str]]:
    """Method, rank and both intervals, on the seeds that all methods share; empty if these are too few."""
    [values] = on_shared_seeds(values)
    if len(values) < FEWEST or len(next(iter(values.values()))) < MIN_SEEDS:
        return []
    rank, possible, resampled = ranking(values), rank_intervals(values), rank_bootstrap(values)
    return [[name, str(rank[name]), _range(*possible[name]), _range(*resampled[name])] for name in values]


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}–{high}"


@register_table("rankings")
def rankings(results: Results) -> Table | None:
    """Kendall's tau between the rankings of the same methods in two settings of the grid that differ in one field."""
    rows = []
    for (dataset, ipc), settings in _settings(results.scores).items():
        for (one, scores), (other, others) in itertools.combinations(settings.items(), 2):
            differ = [(a or "base point", b or "base point") for a, b in zip(one, other, strict=True) if a != b]
            methods = [label for label in scores if label in others]
            if len(differ) != 1 or len(methods) < FEWEST:
                continue
            sides = ({label: side[label] for label in methods} for side in (scores, others))
            first, second = on_shared_seeds(*accuracies_by_unit(*sides))
            if first[methods[0]]:
                texts = _agreement(ranking_agreement(first, second))
                rows.append([dataset, str(ipc), *differ[0], str(len(methods)), *texts])
    return Table("Agreement of rankings between settings", COLUMNS_TAU, rows, NOTE_TAU) if rows else None


def _settings(scores: Sequence[Score]) -> dict[tuple[str, int], dict[Setting, dict[str, Score]]]:
    """Finished scores by (dataset, IPC), by the setting and by the method with its own settings."""
    found: dict[tuple[str, int], dict[Setting, dict[str, Score]]] = {}
    for block, methods in by_block(scores).items():
        found.setdefault((block.dataset, block.ipc), {})[block.setting] = methods
    return found


def _agreement(got: RankingAgreement) -> list[str]:
    counts: list[Any] = ["", "", ""] if got.interval is None else [got.same, got.opposite, got.undecided]
    texts = [f"{got.tau:.2f}", _interval(got.interval), _interval(got.bootstrap)]
    return [*(text.replace("-", "−") for text in texts), *map(str, counts)]


def _interval(ends: tuple[float, float] | None) -> str:
    return "too few seeds" if ends is None else f"[{ends[0]:.2f}, {ends[1]:.2f}]"
