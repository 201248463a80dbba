"""Statistics over seeds: summaries for tables, paired differences, equivalence tests and rank stability.

All functions take plain sequences of numbers, one per seed; *paired* ones take two sequences whose entries share the
seed.  Intervals use Student's t, as three to ten seeds are typical.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rd3.errors import BadValue


class Summary(NamedTuple):
    """Mean ± std (n), with a confidence interval; ``std``, ``low`` and ``high`` are None for a single value."""

    n: int
    mean: float
    std: float | None
    low: float | None
    high: float | None


class PairedDifference(NamedTuple):
    """Mean of first minus second, with its interval and the two-sided p-value."""

    n: int
    mean: float
    low: float
    high: float
    p_value: float


class Equivalence(NamedTuple):
    """Outcome of two one-sided tests: ``low`` to ``high`` is the (1 - 2 alpha) interval of the mean difference."""

    n: int
    difference: float
    bound: float
    low: float
    high: float
    p_value: float
    equivalent: bool


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    _at_least(values, 1)
    return float(np.mean(values))


def std(values: Sequence[float]) -> float | None:
    """Sample standard deviation (ddof 1); None for a single value."""
    _at_least(values, 1)
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def confidence_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the mean by Student's t; raises :class:`BadValue` for fewer than two values."""
    from scipy import stats

    _at_least(values, 2)
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * _standard_error(values)
    return mean(values) - half, mean(values) + half


def summary(values: Sequence[float], confidence: float = 0.95) -> Summary:
    """Mean, standard deviation and confidence interval, for a cell of a table."""
    low, high = confidence_interval(values, confidence) if len(values) > 1 else (None, None)
    return Summary(len(values), mean(values), std(values), low, high)


def paired_difference(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> PairedDifference:
    """Paired t-test over seeds: is ``first`` better than ``second``?"""
    from scipy import stats

    differences = _differences(first, second)
    low, high = confidence_interval(differences, confidence)
    centre, error = mean(differences), _standard_error(differences)
    if error == 0:
        p_value = 1.0 if centre == 0 else 0.0
    else:
        p_value = 2 * float(stats.t.sf(abs(centre) / error, len(differences) - 1))
    return PairedDifference(len(differences), centre, low, high, p_value)


def equivalence(first: Sequence[float], second: Sequence[float], bound: float, alpha: float = 0.05) -> Equivalence:
    """Two one-sided paired t-tests (TOST, Schuirmann 1987): are the sequences equivalent within ± ``bound``?

    ``p_value`` is the larger of the two; equivalence is claimed if it is below ``alpha``, that is, if the
    (1 - 2 alpha) interval lies within the bounds.  "No significant difference" is not equivalence.
    """
    from scipy import stats

    if bound <= 0:
        raise BadValue(f"The bound of an equivalence test is {bound}, expected a positive number.")
    differences = _differences(first, second)
    low, high = confidence_interval(differences, 1 - 2 * alpha)
    centre, error, freedom = mean(differences), _standard_error(differences), len(differences) - 1
    if error == 0:
        p_value = 0.0 if abs(centre) < bound else 1.0
    else:
        above = float(stats.t.sf((centre + bound) / error, freedom))
        below = float(stats.t.cdf((centre - bound) / error, freedom))
        p_value = max(above, below)
    return Equivalence(len(differences), centre, bound, low, high, p_value, p_value < alpha)


def rank_stability(scores: Sequence[Sequence[float]]) -> float:
    """Stability of the ranking of methods across settings: mean Kendall tau-b over all pairs of settings.

    ``scores``: one row per setting (a seed, a temperature), one column per method.  1 means the same ranking for all,
    -1 the reverse.
    """
    from scipy import stats

    _at_least(scores, 2)
    pairs = itertools.combinations(scores, 2)
    return float(np.mean([stats.kendalltau(one, other).statistic for one, other in pairs]))


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    if len(first) != len(second):
        raise BadValue(
            f"A paired test got {len(first)} and {len(second)} values, expected equal numbers.", "pair them by seed"
        )
    _at_least(first, 2)
    return [float(one) - float(other) for one, other in zip(first, second, strict=True)]


def _at_least(values: Sequence[object], count: int) -> None:
    if len(values) < count:
        raise BadValue(f"Got {len(values)} values, expected at least {count}.", "run more seeds")
