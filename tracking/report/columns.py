"""One column of a result table: which method is best, and which ones are equal to it within noise."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from rd3.comparisons import Comparison, compare_all
from rd3.stats import mean
from tracking.report.scores import Score, Seeds

EQUIVALENCE_MARGIN = 1.0
"""Points of accuracy: methods whose difference is shown to be smaller are equivalent in reports."""


def several_sets(*samples: Iterable[Seeds]) -> bool:
    """Whether the seeds of any sample have several set seeds, which are then the units of tests."""
    return any(len({set_seed for set_seed, _student_seed in seeds}) > 1 for seeds in samples)


def unit_of(*samples: Iterable[Seeds]) -> str:
    """Name of the units of tests between results with these seeds."""
    return "set seeds" if several_sets(*samples) else "student seeds"


def unit_means(by_seeds: Mapping[Seeds, float], by_set: bool) -> dict[Hashable, float]:
    """Accuracies by seed: means over the students of each set seed if ``by_set``, else by student seed.

    Students of one set are not independent samples of the method.
    """
    found: dict[Hashable, list[float]] = {}
    for (set_seed, student_seed), value in by_seeds.items():
        found.setdefault(set_seed if by_set else student_seed, []).append(value)
    return {seed: mean(values) for seed, values in found.items()}


def accuracies_by_unit(*columns: Mapping[str, Score]) -> list[dict[str, dict[Hashable, float]]]:
    """Per cent by label and unit of the scores with results, as :mod:`rd3.comparisons` takes them; one unit for all."""
    by_set = several_sets(*(score.by_seeds for column in columns for score in column.values()))
    return [
        {label: unit_means(score.by_seeds, by_set) for label, score in column.items() if score.by_seeds}
        for column in columns
    ]


@dataclass(frozen=True)
class Column:
    """The methods of one column, compared pairwise with Holm's correction over the column."""

    best: tuple[str, ...]
    """Labels of the highest mean, several if it is shared; empty with fewer than two results."""
    unit: str
    """``set seeds`` or ``student seeds``."""
    comparisons: tuple[Comparison, ...]

    @classmethod
    def of(cls, scores: Mapping[str, Score]) -> Self:
        """``scores``: by the label of the row."""
        means = {label: score.top1.mean for label, score in scores.items() if score.top1 is not None}
        highest = max(means.values(), default=0.0)
        best = tuple(label for label, value in means.items() if math.isclose(value, highest, rel_tol=1e-12))
        compared = tuple(compare_all(*accuracies_by_unit(scores), bound=EQUIVALENCE_MARGIN))
        unit = unit_of(*(score.by_seeds for score in scores.values()))
        return cls(best if len(means) > 1 else (), unit, compared)

    def standing(self, label: str) -> str:
        """``best``, ``equal`` (not separated from the best by a test) or empty."""
        if label in self.best:
            return "best"
        pairs = [{label, best} for best in self.best]
        against = (one for one in self.comparisons if {one.first, one.second} in pairs)
        return "equal" if any(one.adjusted is not None and not one.separated() for one in against) else ""
