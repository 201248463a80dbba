"""Statistics over seeds: means and their intervals, paired differences, equivalence tests and corrections.

All functions take plain sequences of numbers, one per seed; *paired* ones take two sequences whose entries share the
seed.  Intervals use Student's t, as three to ten seeds are typical.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rd3.errors import BadValue


class PairedDifference(NamedTuple):
    """Mean of first minus second, with its interval and the two-sided p-value."""

    n: int
    mean: float
    low: float
    high: float
    p_value: float


class VarianceComponents(NamedTuple):
    """Variance between and within groups; ``within`` and ``between`` are None if the data cannot identify them."""

    between: float | None
    """Unbiased, so it can be negative, which is to be read as zero."""
    within: float | None


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    _at_least(values, 1)
    return float(np.mean(values))


def std(values: Sequence[float]) -> float | None:
    """Sample standard deviation (ddof 1); None for a single value."""
    _at_least(values, 1)
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def confidence_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean by Student's t; raises :class:`BadValue` for fewer than two values."""
    _at_least(values, 2)
    return _interval(*_mean_and_error(values), len(values) - 1, 0.95)


def paired_difference(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> PairedDifference:
    """Two-sided paired t-test over seeds: does ``first`` differ from ``second``?"""
    from scipy import special

    differences = _differences(first, second)
    centre, error = _mean_and_error(differences)
    low, high = _interval(centre, error, len(differences) - 1, confidence)
    if error == 0:
        p_value = 1.0 if centre == 0 else 0.0
    else:
        p_value = 2 * float(special.stdtr(len(differences) - 1, -abs(centre) / error))
    return PairedDifference(len(differences), centre, low, high, p_value)


def equivalence(first: Sequence[float], second: Sequence[float], bound: float) -> float:
    """p-value of two one-sided paired t-tests (TOST, Schuirmann 1987): are the sequences equivalent within ± ``bound``?

    It is the larger of the two; equivalence is claimed if it is below alpha, that is, if the (1 - 2 alpha) interval of
    the difference lies within the bounds.  "No significant difference" is not equivalence.
    """
    from scipy import special

    if bound <= 0:
        raise BadValue(f"The bound of an equivalence test is {bound}, expected a positive number.")
    differences = _differences(first, second)
    centre, error = _mean_and_error(differences)
    if error == 0:
        return 0.0 if abs(centre) < bound else 1.0
    above = float(special.stdtr(len(differences) - 1, -(centre + bound) / error))
    below = float(special.stdtr(len(differences) - 1, (centre - bound) / error))
    return max(above, below)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down correction (Holm 1979) of a family of p-values, for any dependence between them.

    ``p_values``: (..., m), a family in the last dimension.  Returns adjusted p-values of the same shape: rejecting
    those below alpha keeps the probability of any false rejection in a family below alpha.
    """
    given = np.asarray(p_values, dtype=np.float64)
    if given.size and not ((given >= 0) & (given <= 1)).all():
        raise BadValue("Holm's correction got a p-value that is not in [0, 1].", "pass probabilities")
    order = np.argsort(given, axis=-1, kind="stable")
    count = given.shape[-1]
    steps = np.take_along_axis(given, order, axis=-1) * (count - np.arange(count))
    adjusted = np.empty_like(given)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0), axis=-1)
    return adjusted


def variance_components(groups: Sequence[Sequence[float]]) -> VarianceComponents:
    """Variance between and within groups of a one-way random-effects model, by the estimators of ANOVA.

    A group holds the students of one synthetic set, with different seeds; groups may differ in size
    (Searle, Casella and McCulloch 1992, section 3.6).  Raises :class:`BadValue` for an empty group.
    """
    _at_least(groups, 1, "add set seeds")
    sizes = np.array([len(group) for group in groups], dtype=np.float64)
    means = np.array([mean(group) for group in groups])
    total, df = sizes.sum(), len(groups) - 1
    if total == len(groups):
        return VarianceComponents(None, None)
    within = sum(float(np.var(group)) * len(group) for group in groups) / (total - len(groups))
    if df == 0:
        return VarianceComponents(None, float(within))
    between = float((sizes * (means - (sizes * means).sum() / total) ** 2).sum()) / df
    size = (total - (sizes**2).sum() / total) / df
    return VarianceComponents(float((between - within) / size), float(within))


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of at least two values."""
    count = len(values)
    centre = math.fsum(values) / count
    variance = math.fsum((value - centre) ** 2 for value in values) / (count - 1)
    return centre, math.sqrt(variance / count)


def _interval(centre: float, error: float, df: int, confidence: float) -> tuple[float, float]:
    from scipy import special

    if not 0 < confidence < 1:
        raise BadValue(f"The confidence of an interval is {confidence}, expected one between 0 and 1.", "e.g. 0.95")
    half = float(special.stdtrit(df, (1 + confidence) / 2)) * error
    return centre - half, centre + half


def _differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """First minus second; exactly 0 for values equal up to rounding, which a test would take as apart without error."""
    if len(first) != len(second):
        raise BadValue(
            f"A paired test got {len(first)} and {len(second)} values, expected equal numbers.", "pair them by seed"
        )
    _at_least(first, 2)
    pairs = zip(map(float, first), map(float, second), strict=True)
    return [0.0 if math.isclose(one, other, rel_tol=1e-12) else one - other for one, other in pairs]


def _at_least(values: Sequence[object], count: int, fix: str = "run more seeds") -> None:
    if len(values) < count:
        raise BadValue(f"Got {len(values)} values, expected at least {count}.", fix)
