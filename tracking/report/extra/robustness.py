"""Calibration and corruption robustness of kept students by score, over seeds, and accuracy by corruption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rd3.component import changes_text
from tracking.report.extra._base import Cell, Table, register_table
from tracking.report.results import Results
from tracking.report.scores import Score, Summary, differing, summarise
from tracking.report.tables import count_text, differences, spread_text

FIGURES = {
    "corrupted_top1_pct": ("corrupted top-1 %", 1),
    "ece_pct": ("ECE %", 1),
    "nll": ("NLL", 3),
    "brier": ("Brier", 3),
    "scaled_ece_pct": ("ECE % after temperature scaling", 1),
}
"""Figures by name, with their column and number of digits."""
NOTE = (
    "Of students whose weights were kept, on the same test images as the clean accuracy; mean ± standard deviation "
    "[95 % interval] (seeds). Corrupted: mean over corruptions and severities 1 to 5. ECE: expected calibration error "
    "in 15 bins. NLL: negative log-likelihood in nats. Brier: squared distance to the one-hot label, 0 to 2. The "
    "temperature is fitted on validation images. They are training images: sets of real images (random, "
    "coresets, crops) may contain some of them; optimised or sampled sets contain none."
)
SHOWN = ("dataset", "ipc", "method")
"""Fields of a score that its row always shows."""


@dataclass(frozen=True)
class Measured:
    """The measurements of a score's evaluations."""

    score: Score
    planned: int
    """Number of measurements in the grid."""
    by_set_seed: Sequence[tuple[int | None, Mapping[str, Any]]]
    """Set seed and figures of each measurement that is done."""
    keys: Sequence[str] = ()
    """Keys of the measurements that are done."""

    def summary(self, name: str) -> Summary | None:
        """Mean, spread and interval of a figure over the measurements that have it; None if none has."""
        found = [(figures[name], seed) for seed, figures in self.by_set_seed if name in figures]
        return summarise([value for value, _seed in found], [seed for _value, seed in found]) if found else None

    def text(self, name: str, digits: int) -> str:
        """A figure as tables show it: ``3.2 ± 0.4 [2.2, 4.2] (3)``, or what is missing.

        Measurements that are done may lack a figure: that after temperature scaling if no temperature could be fitted.
        """
        got = self.summary(name)
        if got is None:
            return "not done" if len(self.by_set_seed) < self.planned else "–"
        counts = {"missing": self.planned - len(self.by_set_seed), "without": len(self.by_set_seed) - got.n}
        notes = "".join(f", {count} {what}" for what, count in counts.items() if count)
        return f"{got.mean:.{digits}f}{spread_text(got, digits)} ({count_text(got)}{notes})"


def measured(results: Results) -> list[Measured]:
    """The measurements of every score that has some in the grid, in the order of the scores."""
    planned = {row["evaluation"]: row for row in results.rows if row["evaluation"] and row["robustness"]}
    found = []
    for score in results.scores:
        rows = [planned[key] for key in score.keys if key in planned]
        done = [(row["set_seed"], entry) for row in rows if (entry := results.find("robustness", row["robustness"]))]
        if rows:
            figures = [(seed, entry.result) for seed, entry in done]
            found.append(Measured(score, len(rows), figures, [entry.key for _seed, entry in done]))
    return found


def field_texts(score: Score, names: Sequence[str]) -> list[str]:
    """Fields of a score as tables show them."""
    values = [getattr(score, name) for name in names]
    return [changes_text(value) if isinstance(value, Mapping) else str(value) for value in values]


def labels_of(found: Sequence[Measured]) -> list[str]:
    """A short name of each score: the fields that tell the scores apart."""
    fields = fields_of(found)
    labels = differences([field_texts(each.score, fields) for each in found])
    return [label or ("base point" if any(labels) else "") for label in labels]


def fields_of(found: Sequence[Measured]) -> list[str]:
    """:data:`SHOWN`, and the other fields in which the scores differ."""
    differ = differing([each.score for each in found])
    return [*SHOWN, *(name for name in differ if name not in (*SHOWN, "printed"))]


@register_table("robustness")
def robustness(results: Results) -> Table | None:
    """Clean and corrupted accuracy and calibration of every method; for grids that measure robustness."""
    found = measured(results)
    if not found:
        return None
    shown = [name for name in FIGURES if name != "corrupted_top1_pct" or _corrupts(found)]
    fields = fields_of(found)
    columns = [*fields, "clean top-1 %", *(FIGURES[name][0] for name in shown)]
    rows: list[list[Cell]] = [
        [*field_texts(each.score, fields), each.score, *(each.text(name, FIGURES[name][1]) for name in shown)]
        for each in found
    ]
    return Table("Calibration and robustness", columns, rows, NOTE)


@register_table("corruptions")
def corruptions(results: Results) -> Table | None:
    """Accuracy by corruption, the mean over severities 1 to 5; for grids that measure robustness to corruptions."""
    found = measured(results)
    names = list(dict.fromkeys(name for each in found for name in _corruptions(each)))
    if not names:
        return None
    fields = fields_of(found)
    columns = [*fields, *(name.replace("_", " ") for name in names)]
    texts = ([each.text(f"{name}_top1_pct", 1) for name in names] for each in found)
    rows = [[*field_texts(each.score, fields), *own] for each, own in zip(found, texts, strict=True)]
    return Table("Top-1 % by corruption", columns, rows, "Mean over severities 1 to 5.")


def _corrupts(found: list[Measured]) -> bool:
    """Whether corruptions were measured, or no measurement is finished yet (``found`` has planned ones as well)."""
    return any(map(_corruptions, found)) or not any(each.by_set_seed for each in found)


def _corruptions(each: Measured) -> list[str]:
    """Names of the corruptions that were measured, in the order of the benchmark."""
    from rd3.robustness.corruptions import KNOWN

    figures = [figures for _seed, figures in each.by_set_seed]
    return [name for name in KNOWN if any(f"{name}_top1_pct" in one for one in figures)]
