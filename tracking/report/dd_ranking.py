"""DD-Ranking's metrics: how much of a set's accuracy is due to its images, and not to labels and augmentation.

Accuracies are fractions (0-1), as the exponential below is defined for differences between -1 and 1; the released code
of DD-Ranking passes percentages, which gives scores in the thousands.

Source: Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation", 2025; NUS-HPC-AI-Lab/DD-Ranking
``ddranking/metrics/``.

Deviations from it: accuracies are those of the last epoch (DD-Ranking: the best one during training), at the protocol's
learning rate (DD-Ranking: the best of five for each set).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rd3.stats import mean


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
