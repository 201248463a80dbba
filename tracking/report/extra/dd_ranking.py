"""DD-Ranking's scores of every method of a grid: what of its accuracy is due to images, not to labels and augmentation.

Accuracies are fractions (0-1), as the exponential below is defined for differences between -1 and 1; the released code
of DD-Ranking passes percentages, which gives scores in the thousands.

Source: Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation", 2025; NUS-HPC-AI-Lab/DD-Ranking
``ddranking/metrics/``.

Deviations from it: accuracies are those of the last epoch (DD-Ranking: the best one during training), at the protocol's
learning rate (DD-Ranking: the best of five for each set).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from rd3.component import changes_text
from rd3.stats import mean
from tracking.report.blocks import method_text
from tracking.report.columns import several_sets, unit_means
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
"""Hard-label recovery, improvement over random, label-robust and augmentation-robust score, by labels."""
Kind = tuple[str, bool]
"""Labels of a cell, and whether it has the protocol's augmentation or none."""


class Missing(Exception):
    """A value cannot be computed, for this reason."""


@dataclass
class _Setting:
    """Methods under one evaluation, which are compared."""

    shown: dict[str, str]
    """Fields that name the evaluation."""
    cells: dict[str, dict[Kind, Score]] = field(default_factory=dict)
    """By method with its own settings, and kind."""

    def cell(self, method: str, kind: Kind) -> Score:
        """A cell with results; raises :class:`Missing` with the reason if there is none."""
        labels, augmented = kind
        score = self.cells[method].get(kind)
        what = f"{labels}-label cell of {method}" + ("" if augmented else " without augmentation")
        if score is None:
            raise Missing(f"no {what}")
        if score.top1 is None:
            raise Missing(f"{what}: {score.unsupported or 'not done'}")
        return score


@register_table("dd-ranking")
def dd_ranking(results: Results) -> Table | None:
    """HLR, IOR, LRS and ARS per method; for grids with random, another method, and hard labels or no augmentation."""
    settings = [one for one in _settings(results.scores) if BASELINE in one.cells and len(one.cells) > 1]
    kinds = {kind for one in settings for cells in one.cells.values() for kind in cells}
    if not kinds - {("soft", True)}:
        return None
    shown = [name for name in SETTING if name in ALWAYS or len({one.shown[name] for one in settings}) > 1]
    rows = [[*(one.shown[name] for name in shown), *row] for one in settings for row in _rows(one, results)]
    return Table(TITLE, [*shown, "method", *COLUMNS, "full data", "missing"], rows).without_empty()


def _settings(scores: Iterable[Score]) -> list[_Setting]:
    """Scores by setting, method and kind, without those with a varied field other than a removed augmentation."""
    found: dict[tuple[str, ...], _Setting] = {}
    for score in scores:
        if any(name != "augmentation" or value for name, value in score.varied.items()):
            continue
        shown = {name: str(getattr(score, name)) for name in SETTING[:-1]} | {"changed": changes_text(_changed(score))}
        setting = found.setdefault(tuple(shown.values()), _Setting(shown))
        setting.cells.setdefault(method_text(score), {})[score.labels, _augmented(score)] = score
    return list(found.values())


def _changed(score: Score) -> dict[str, Any]:
    """The changed settings of the evaluation, without those that distinguish the kinds of cells."""
    _of_method, of_evaluation = split_overrides(score.method, score.overrides)
    changed = {**of_evaluation, **score.varied}
    if not _augmented(score):
        del changed["augmentation"]
    if score.labels == "hard":  # the loss follows from the labels
        changed.pop("loss", None)
    changed.pop("labels", None)
    return changed


def _augmented(score: Score) -> bool:
    """Whether its images are augmented as the protocol says."""
    return bool({**score.overrides, **score.varied}.get("augmentation", True))


def _rows(setting: _Setting, results: Results) -> Iterable[list[str]]:
    full = _full_data(setting, results)
    for method in setting.cells:
        texts, reasons = [], dict[str, None]()
        for column in COLUMNS:
            try:
                texts.append(_text(_metric(setting, full, column, method)))
            except Missing as reason:
                texts.append("missing")
                reasons[str(reason)] = None
        yield [method, *texts, "missing" if isinstance(full, str) else f"{100 * full:.1f}", "; ".join(reasons)]


def _text(estimate: Estimate) -> str:
    value, low, high = (None if one is None else 100 * one for one in estimate)
    interval = "(no interval)" if low is None or high is None else f"[{low:.1f}, {high:.1f}]"
    return f"{value:.1f} {interval}".replace("-", "−")


def _metric(setting: _Setting, full: float | str, column: str, method: str) -> Estimate:
    """One column of a method, from a weighted sum of mean accuracies as fractions; raises :class:`Missing`.

    ``full``: accuracy with the full data, or why it is unknown.  It has one training, so its spread is not part of the
    interval.
    """
    name, _space, labels = column.partition(" ")
    hard, here, plain = ("hard", True), (labels, True), (labels, False)
    of_full, weights = {
        "HLR": (1.0, [(method, hard, -1.0)]),
        "IOR": (0.0, [(method, here, 1.0), (BASELINE, here, -1.0)]),
        "LRS": (-0.5, [(method, here, 0.5), (BASELINE, here, -0.5), (method, hard, 0.5)]),
        "ARS": (0.0, [(method, here, 0.5), (BASELINE, here, -0.5), (method, plain, 0.5), (BASELINE, plain, -0.5)]),
    }[name]
    if of_full and isinstance(full, str):
        raise Missing(full)
    by_method: dict[str, dict[Kind, float]] = {}
    for side, kind, weight in weights:
        own = by_method.setdefault(side, {})
        own[kind] = own.get(kind, 0) + weight
    samples = [_sample(setting, *item) for item in by_method.items()]
    found = sum_of_means(0.0 if isinstance(full, str) else of_full * full, samples)
    return found.through(unit_score) if name in ("LRS", "ARS") else found


def _sample(setting: _Setting, method: str, weights: Mapping[Kind, float]) -> list[float]:
    """The weighted sum of a method's cells for each independent unit: a set seed if they vary, else a student seed.

    Cells of one method are paired by their seeds, as they share sets; methods are taken as independent, which makes
    intervals no narrower where they share student seeds.
    """
    cells = [(weight, setting.cell(method, kind).by_seeds) for kind, weight in weights.items()]
    common = [seeds for seeds in cells[0][1] if all(seeds in by_seeds for _weight, by_seeds in cells)]
    if not common:
        raise Missing(f"the cells of {method} share no seeds")
    sums = {seeds: sum(weight * (by_seeds[seeds] / 100) for weight, by_seeds in cells) for seeds in common}
    return list(unit_means(sums, several_sets(common)).values())


def _full_data(setting: _Setting, results: Results) -> float | str:
    """Accuracy of the student's network on the full data, from the teacher of the soft labels; or why it is unknown."""
    scores = [score for cells in setting.cells.values() for score in cells.values()]
    soft = [key for score in scores if score.labels == "soft" for key in score.evaluations]
    taught = next((row for row in results.rows if soft and row["evaluation"] == soft[0]), None)
    if taught is None:
        return "full-data accuracy is unknown: no soft-label cell is done, which would name the teacher"
    entry = results.find("teacher", taught["teacher_key"])
    if entry is None:
        return "full-data accuracy is unknown: the teacher is not in the ledger"
    network, student, tested_on = entry.recipe["network"], scores[0].student, entry.result.get("tested_on", "test")
    if network != student:
        return f"full-data accuracy of {student} is unknown: the teacher is a {network}"
    if tested_on != (taught["tested_on"] or "test"):
        return f"full-data accuracy is unknown: the teacher was tested on {tested_on} images"
    return float(entry.result["top1_pct"]) / 100


def unit_score(exponent: float) -> float:
    """(e^x - e^-1) / (e - e^-1): increasing, from 0 at -1 to 1 at 1."""
    return (math.exp(exponent) - math.exp(-1)) / (math.e - math.exp(-1))


class Estimate(NamedTuple):
    """A value with its 95 % interval, whose ends are None if a sample behind it has a single value."""

    value: float
    low: float | None
    high: float | None

    def through(self, increasing: Callable[[float], float]) -> Estimate:
        """The estimate of an increasing function of the value; the coverage of the interval stays."""
        ends = (None if end is None else increasing(end) for end in (self.low, self.high))
        return Estimate(increasing(self.value), *ends)


def sum_of_means(constant: float, samples: Sequence[Sequence[float]]) -> Estimate:
    """``constant`` plus the means of independent samples, with Welch's t interval (Satterthwaite's degrees of freedom).

    The values of a sample are independent repeats; a sample of a single value leaves the interval open.
    """
    from scipy import stats

    value = constant + sum(mean(sample) for sample in samples)
    if not samples or any(len(sample) < 2 for sample in samples):
        return Estimate(value, None, None)
    # (squared standard error, degrees of freedom) of each mean
    parts = [(float(np.var(sample, ddof=1)) / len(sample), len(sample) - 1) for sample in samples]
    total = sum(part for part, _df in parts)
    if total == 0:
        return Estimate(value, value, value)
    welch_df = total**2 / sum(part**2 / df for part, df in parts)
    half = float(stats.t.ppf(0.975, welch_df)) * math.sqrt(total)
    return Estimate(value, value - half, value + half)
