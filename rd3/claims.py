"""Claims about methods, and what paired differences over shared seeds say about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from rd3.comparisons import ALPHA, MIN_SEEDS, NO_SPREAD, corrected, is_constant
from rd3.stats import PairedDifference, equivalence, paired_difference
from rd3.values import Frozen

Test = Literal["better", "same ranking", "evaluation"]
HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be decided here"


class Claim(Frozen):
    """A sentence about the methods of a grid, and how it is tested."""

    text: str
    test: Test
    """``better``: each method of ``better`` is more accurate than each of ``than``, wherever both have results.
    ``same ranking``: every two methods have the same order as under the first setting of the grid.  ``evaluation``:
    another setting moves a method by more than it differs from the first method of the grid."""
    better: tuple[str, ...] = ()
    than: tuple[str, ...] = ()


class Evidence(NamedTuple):
    """The tests of one case of a claim, such as one pair of methods at one IPC."""

    adjusted: float | None
    """Two-sided p-value after Holm's correction over all cases; None without a test."""
    equivalent: float | None
    """p-value of the equivalence test after Holm's correction; None without a test."""
    verdict: str
    """``holds``, ``does not hold`` or ``cannot be decided here``."""


def judge(cases: Sequence[Sequence[Sequence[float]]], bound: float | None = None) -> list[Evidence]:
    """Evidence for each case: one or two contrasts (differences of accuracies, in points), with a value for every seed.

    A case with one contrast claims that it is positive, a case with two that both have the same sign.  It holds if the
    two-sided t-tests of all its contrasts are significant, with these signs, and does not hold if they are significant
    with others, or if a single contrast is not significant and equivalent to zero within ± ``bound``.  The p-value of a
    case is the largest of its tests (an intersection-union test), which keeps the level: wherever the claim is false,
    at least one contrast must err.  Holm's correction is over all cases, of t-tests and of equivalence tests each by
    themselves.  Fewer than three seeds, and contrasts without spread, are not tested.
    """
    contrasts = [_contrasts(case) for case in cases]
    p_values = corrected([max((one.p_value for one in found), default=None) for found in contrasts])
    equal = corrected(
        [
            equivalence(case[0], [0.0] * len(case[0]), bound) if bound is not None and len(found) == 1 else None
            for case, found in zip(cases, contrasts, strict=True)
        ]
    )
    return [Evidence(p, q, _verdict(case, p, q)) for case, p, q in zip(cases, p_values, equal, strict=True)]


def overall(verdicts: Sequence[str], complete: bool = True) -> str:
    """A claim holds if each of its cases does and they are ``complete``, and does not hold if any does not."""
    if FAILS in verdicts:
        return FAILS
    return HOLDS if complete and verdicts and set(verdicts) == {HOLDS} else OPEN


def contrast(values: Sequence[float]) -> PairedDifference | None:
    """Mean, 95 % interval and p-value against zero; None for fewer than three values."""
    values = [0.0 if abs(value) <= NO_SPREAD else value for value in values]  # rounding errors are not significant
    return paired_difference(values, [0.0] * len(values)) if len(values) >= MIN_SEEDS else None


def _contrasts(case: Sequence[Sequence[float]]) -> list[PairedDifference]:
    """All contrasts of a case; none if one has too few seeds, or the same value other than zero for each of them."""
    found = [one for one in map(contrast, case) if one is not None]
    return found if len(found) == len(case) and not any(map(is_constant, found)) else []


def _verdict(case: Sequence[Sequence[float]], p_value: float | None, equivalent: float | None) -> str:
    if p_value is None or p_value >= ALPHA:
        return FAILS if equivalent is not None and equivalent < ALPHA else OPEN
    signs = {sum(values) > 0 for values in case}
    return HOLDS if signs == {True} or (len(case) > 1 and len(signs) == 1) else FAILS
