"""Comparisons of all methods with each other over shared seeds.

The units of all tests are seeds: results of two methods with the same seed are paired.  Where nothing else is said,
``values`` maps each method to its results by seed, and a pair of methods is tested on the seeds that both have.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from rd3.stats import PairedDifference, equivalence, holm, paired_difference

MIN_SEEDS = 3
"""Shared seeds that a test needs."""
ALPHA = 0.05
"""Significance level of every verdict."""

NO_SPREAD = 1e-9
"""Width of the 95 % interval of differences, in points of accuracy, below which they count as all the same.  That
happens by chance where accuracies are counts of few images, and a t-test would take it as certain; so it is not tested,
unless all are zero."""

Values = Mapping[str, Mapping[Hashable, float]]
"""Method to seed to accuracy in per cent."""


class Comparison(NamedTuple):
    """Two methods on their shared seeds."""

    first: str
    second: str
    shared: int
    """Number of shared seeds."""
    difference: PairedDifference | None
    """First minus second; None with fewer than :data:`MIN_SEEDS` shared seeds."""
    adjusted: float | None
    """Two-sided p-value of the paired t-test after Holm's correction over the family of tests; None without a test."""
    equivalent: float | None
    """p-value of the equivalence test after Holm's correction; None without a bound or a test."""

    def separated(self) -> bool:
        """Whether the corrected test finds a difference."""
        return self.adjusted is not None and self.adjusted < ALPHA

    def sign(self) -> int:
        """1 if the corrected test finds the first method better, -1 if the second, 0 if it finds no difference."""
        if self.difference is None or not self.separated():
            return 0
        return 1 if self.difference.mean > 0 else -1

    def verdict(self) -> str:
        """``different``, ``equal within noise``, ``equivalent`` (within the bound) or ``not tested``.

        ``equal within noise`` means that no difference was shown; ``equivalent``, that any difference was shown to be
        smaller than the bound, even where one was shown.
        """
        if self.adjusted is None:
            return "not tested"
        if self.equivalent is not None and self.equivalent < ALPHA:
            return "equivalent"
        return "different" if self.separated() else "equal within noise"


def compare_all(values: Values, *, bound: float | None = None) -> list[Comparison]:
    """Every pair of methods, in the order of ``values``, as one family of paired t-tests with Holm's correction.

    With a ``bound``, two one-sided tests of equivalence within ± bound are a second family.  The 95 % interval of each
    difference is that of the pair by itself.
    """
    return families([values], bound=bound)[0]


def families(settings: Sequence[Values], *, bound: float | None = None) -> list[list[Comparison]]:
    """The comparisons of :func:`compare_all` for each setting (values of one protocol), corrected over all together."""
    found = [[_compared(values, *pair, bound) for pair in itertools.combinations(values, 2)] for values in settings]
    flat = [one for comparisons in found for one in comparisons]
    adjusted = iter(corrected([one.adjusted for one in flat]))
    equivalent = iter(corrected([one.equivalent for one in flat]))
    return [[one._replace(adjusted=next(adjusted), equivalent=next(equivalent)) for one in each] for each in found]


def _compared(values: Values, first: str, second: str, bound: float | None) -> Comparison:
    shared = [seed for seed in values[first] if seed in values[second]]
    sides = [values[first][seed] for seed in shared], [values[second][seed] for seed in shared]
    difference = paired_difference(*sides) if len(shared) >= MIN_SEEDS else None
    if difference is None or is_constant(difference):
        return Comparison(first, second, len(shared), difference, None, None)
    equal = None if bound is None else equivalence(*sides, bound)
    return Comparison(first, second, len(shared), difference, difference.p_value, equal)


def is_constant(difference: PairedDifference) -> bool:
    """Whether the differences are all the same and not zero, so that they are not tested (:data:`NO_SPREAD`)."""
    return difference.high - difference.low < NO_SPREAD and abs(difference.mean) > NO_SPREAD


def single_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference | None:
    """The paired difference of two methods by themselves; None for a single shared seed, or if :func:`is_constant`."""
    found = paired_difference(first, second) if len(first) > 1 else None
    return None if found is None or is_constant(found) else found


def corrected(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction of a family of tests; None stands for a test that could not be done and does not count."""
    adjusted = iter(holm([p for p in p_values if p is not None]).tolist())
    return [None if p is None else next(adjusted) for p in p_values]
