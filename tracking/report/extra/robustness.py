"""Calibration and corruption robustness of kept students, and accuracy by corruption."""

from __future__ import annotations

from tracking.report.extra import Table, register_table
from tracking.report.results import Results
from tracking.report.robustness import Measured, field_texts, fields_of, measured

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


@register_table("robustness")
def robustness(results: Results) -> Table | None:
    """Clean and corrupted accuracy and calibration of every method; for grids that measure robustness."""
    found = measured(results)
    if not found:
        return None
    shown = [name for name in FIGURES if name != "corrupted_top1_pct" or _corrupts(found)]
    fields = fields_of(found)
    columns = [*fields, "clean top-1 %", *(FIGURES[name][0] for name in shown)]
    rows = [
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
