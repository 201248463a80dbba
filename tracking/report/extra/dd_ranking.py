"""DD-Ranking's label-robust and augmentation-robust scores of every method of a grid."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rd3.component import changes_text
from rd3.stats import mean
from tracking.report.dd_ranking import Estimate, sum_of_means, unit_score
from tracking.report.extra import Table, register_table
from tracking.report.query import split_overrides
from tracking.report.results import Results
from tracking.report.scores import Score

TITLE = "DD-Ranking: label-robust and augmentation-robust scores, in per cent with 95\u00a0% intervals"
BASELINE = "random"
SETTING = ("dataset", "ipc", "student", "teacher", "protocol", "changed")
ALWAYS = ("dataset", "ipc", "student")
"""Fields that are shown even if all rows are equal in them."""
COLUMNS = ("HLR", "IOR soft", "IOR hard", "LRS soft", "LRS hard", "ARS soft", "ARS hard")
Kind = tuple[str, bool]
"""Labels of a cell, and whether it has the protocol's augmentation or none."""
Seeds = tuple[int | None, int]
"""(set seed, student seed)"""


class Missing(Exception):
    """A value cannot be computed, for this reason."""


@dataclass
class _Method:
    """The cells of one method, with its settings, in one setting of the evaluation."""

    name: str
    cells: dict[Kind, Score] = field(default_factory=dict)

    def cell(self, kind: Kind) -> Score:
        """A cell with results; raises :class:`Missing` with the reason if there is none."""
        labels, augmented = kind
        score = self.cells.get(kind)
        what = f"{labels}-label cell of {self.name}" + ("" if augmented else " without augmentation")
        if score is None:
            raise Missing(f"no {what}")
        if score.top1 is None:
            raise Missing(f"{what}: {score.unsupported or 'not done'}")
        return score


@dataclass
class _Setting:
    """Methods under one evaluation, which are compared."""

    shown: dict[str, str]
    """Fields that name the evaluation."""
    methods: dict[str, _Method] = field(default_factory=dict)


@register_table("dd-ranking")
def dd_ranking(results: Results) -> Table | None:
    """HLR, IOR, LRS and ARS per method; for grids with random, another method, and hard labels or no augmentation."""
    settings = [one for one in _settings(results.scores) if BASELINE in one.methods and len(one.methods) > 1]
    kinds = {kind for one in settings for method in one.methods.values() for kind in method.cells}
    if not kinds - {("soft", True)}:
        return None
    columns = [name for name in SETTING if name in ALWAYS or len({one.shown[name] for one in settings}) > 1]
    rows = [[*(one.shown[name] for name in columns), *row] for one in settings for row in _rows(one, results)]
    columns += ["method", *COLUMNS, "full data", "missing"]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table(TITLE, columns, rows)


def _settings(scores: Iterable[Score]) -> list[_Setting]:
    """Scores by setting, method and kind, without those with a varied field other than a removed augmentation."""
    found: dict[str, _Setting] = {}
    for score in scores:
        own, rest = _split(score)
        if rest is None:
            continue
        shown = {name: str(getattr(score, name)) for name in SETTING[:-1]} | {"changed": changes_text(rest)}
        setting = found.setdefault(json.dumps(shown), _Setting(shown))
        label = f"{score.method} ({changes_text(own)})" if own else score.method
        setting.methods.setdefault(label, _Method(label)).cells[score.labels, _augmented(score)] = score
    return list(found.values())


def _split(score: Score) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The method's own changed settings, and those of the evaluation; None if another field is varied."""
    own, shared = split_overrides(score.method, score.overrides)
    changed = {**shared, **score.varied}
    if any(name != "augmentation" or value for name, value in score.varied.items()):
        return own, None
    if not _augmented(score):
        del changed["augmentation"]
    if score.labels == "hard":  # the loss follows from the labels
        changed.pop("loss", None)
    changed.pop("labels", None)
    return own, changed


def _augmented(score: Score) -> bool:
    changed = {**score.overrides, **score.varied}
    return "augmentation" not in changed or bool(changed["augmentation"])


def _rows(setting: _Setting, results: Results) -> Iterable[list[str]]:
    measured = _Measured(setting, results)
    for name, method in setting.methods.items():
        texts, reasons = [], dict[str, None]()
        for column in COLUMNS:
            try:
                texts.append(_text(measured.metric(column, method)))
            except Missing as reason:
                texts.append("missing")
                reasons[str(reason)] = None
        full = "missing" if measured.full is None else f"{100 * measured.full:.1f}"
        yield [name, *texts, full, "; ".join(reasons)]


def _text(estimate: Estimate) -> str:
    value, low, high = (None if one is None else 100 * one for one in estimate)
    interval = "(no interval)" if low is None or high is None else f"[{low:.1f}, {high:.1f}]"
    return f"{value:.1f} {interval}".replace("-", "−")


Term = tuple[float, _Method, Kind]
"""A weight, and the cell whose accuracy it multiplies."""


class _Measured:
    """The accuracies of one setting by seed, and its metrics: weighted sums of mean accuracies, all as fractions."""

    def __init__(self, setting: _Setting, results: Results):
        self.random = setting.methods[BASELINE]
        self.rows = {row["evaluation"]: row for row in results.rows if row["status"] == "done"}
        self.full: float | None = None
        self.no_full = ""
        try:
            self.full = _full_data(setting, self.rows, results)
        except Missing as reason:
            self.no_full = str(reason)

    def metric(self, column: str, method: _Method) -> Estimate:
        """One column of a method; raises :class:`Missing`."""
        name, _space, labels = column.partition(" ")
        gap: list[Term] = [(-1, method, ("hard", True))]  # HLR is the full-data accuracy plus this
        if name == "HLR":
            return self.estimate(1, gap)
        gain, plain_gain = (self._gain(method, (labels, augmented)) for augmented in (True, False))
        if name == "IOR":
            return self.estimate(0, gain)
        if name == "LRS":
            return self.estimate(-0.5, [*_times(0.5, gain), *_times(-0.5, gap)]).through(unit_score)
        return self.estimate(0, [*_times(0.5, gain), *_times(0.5, plain_gain)]).through(unit_score)

    def _gain(self, method: _Method, kind: Kind) -> list[Term]:
        """The method's accuracy minus that of a random set."""
        return [(1, method, kind), (-1, self.random, kind)]

    def estimate(self, full: float, terms: Iterable[Term]) -> Estimate:
        """``full`` times the full-data accuracy plus the terms, each of a method's cells.

        Cells of one method are paired by their seeds, as they share sets; methods are taken as independent, which makes
        intervals no narrower where they share student seeds.  The full data has one training, so its spread is not part
        of the interval.
        """
        if full and self.full is None:
            raise Missing(self.no_full)
        weights: dict[str, tuple[_Method, dict[Kind, float]]] = {}
        for weight, method, kind in terms:
            own = weights.setdefault(method.name, (method, {}))[1]
            own[kind] = own.get(kind, 0) + weight
        samples = [self._sample(method, own) for method, own in weights.values()]
        return sum_of_means(full * (self.full or 0), samples)

    def _sample(self, method: _Method, weights: Mapping[Kind, float]) -> list[float]:
        """The weighted sum of a method's cells for each independent unit: a set seed if they vary, else a student seed.

        Students of one set are not independent repeats of the method.
        """
        accuracies = [(weight, self._by_seeds(method.cell(kind))) for kind, weight in weights.items()]
        common = set.intersection(*(set(by_seeds) for _weight, by_seeds in accuracies))
        if not common:
            raise Missing(f"the cells of {method.name} share no seeds")
        several = len({set_seed for set_seed, _student_seed in common}) > 1
        units: dict[int | None, list[float]] = {}
        for seeds in sorted(common, key=lambda seeds: (seeds[0] or 0, seeds[1])):
            unit = seeds[0] if several else seeds[1]
            units.setdefault(unit, []).append(sum(weight * by_seeds[seeds] for weight, by_seeds in accuracies))
        return [mean(values) for values in units.values()]

    def _by_seeds(self, score: Score) -> dict[Seeds, float]:
        rows = [self.rows[key] for key in score.evaluations]
        return {(row["set_seed"], row["student_seed"]): row["top1_pct"] / 100 for row in rows}


def _times(factor: float, terms: Iterable[Term]) -> list[Term]:
    return [(factor * weight, method, kind) for weight, method, kind in terms]


def _full_data(setting: _Setting, rows: Mapping[str, dict[str, Any]], results: Results) -> float:
    """Accuracy of the student's network on the full data, from the teacher that gives the soft labels."""
    scores = [score for method in setting.methods.values() for score in method.cells.values()]
    taught = [rows[key] for score in scores if score.labels == "soft" for key in score.evaluations]
    if not taught:
        raise Missing("full-data accuracy is unknown: no soft-label cell is done, which would name the teacher")
    entry = results.find("teacher", taught[0]["teacher_key"])
    if entry is None:
        raise Missing("full-data accuracy is unknown: the teacher is not in the ledger")
    network, student, tested_on = entry.recipe["network"], scores[0].student, entry.result.get("tested_on", "test")
    if network != student:
        raise Missing(f"full-data accuracy of {student} is unknown: the teacher is a {network}")
    if tested_on != (taught[0]["tested_on"] or "test"):
        raise Missing(f"full-data accuracy is unknown: the teacher was tested on {tested_on} images")
    return float(entry.result["top1_pct"]) / 100
