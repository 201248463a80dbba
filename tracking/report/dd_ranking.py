"""DD-Ranking's metrics: how much of a set's accuracy is due to its images, and not to labels and augmentation.

Accuracies are fractions (0-1): the exponentials below are defined for differences between -1 and 1, and percentages
raise an error (the released code of DD-Ranking passes percentages, which gives scores in the thousands).

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

from rd3.errors import BadValue
from rd3.stats import mean


def hlr(full: float, synthetic: float) -> float:
    """Hard-label recovery, -1 to 1: what the set lacks to the full data, both with hard labels; smaller is better."""
    return _accuracy(full, "full data") - _accuracy(synthetic, "synthetic set")


def ior(synthetic: float, random: float) -> float:
    """Improvement over random, -1 to 1: over a random set of equal IPC, with labels of the same kind."""
    return _accuracy(synthetic, "synthetic set") - _accuracy(random, "random set")


def lrs(improvement: float, recovery: float, weight: float = 0.5) -> float:
    """Label-robust score, 0 to 1, of IOR and HLR: 0.269 for a set with neither gain nor gap."""
    alpha = weight * _difference(improvement, "IOR") - (1 - weight) * _difference(recovery, "HLR")
    return unit_score(alpha)


def ars(augmented: float, plain: float, weight: float = 0.5) -> float:
    """Augmentation-robust score, 0 to 1, of the improvements over random with and without augmentation."""
    beta = weight * _difference(augmented, "IOR") + (1 - weight) * _difference(plain, "IOR")
    return unit_score(beta)


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


def _accuracy(value: float, whose: str) -> float:
    if not 0 <= value <= 1:
        raise BadValue(
            f"The accuracy of the {whose} is {value:g}, expected a fraction from 0 to 1.", "divide per cent by 100"
        )
    return value


def _difference(value: float, name: str) -> float:
    if not -1 <= value <= 1:
        raise BadValue(
            f"{name} is {value:g}, expected a difference of fractions, -1 to 1.", "divide points of per cent by 100"
        )
    return value
