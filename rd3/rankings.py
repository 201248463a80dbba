"""Rankings of methods: the ranks that a test over seeds leaves possible, and the agreement of two settings.

``values`` maps each method to its results by seed, as in :mod:`rd3.comparisons`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rd3.comparisons import ALPHA, MIN_SEEDS, Values, compare_all, families
from rd3.errors import BadValue
from rd3.seeding import derive
from rd3.stats import mean


class RankingAgreement(NamedTuple):
    """Kendall's tau between the rankings of the same methods in two settings."""

    tau: float
    bootstrap: tuple[float, float] | None
    """Percentile interval over seeds that are drawn anew; None with fewer than :data:`MIN_SEEDS` seeds."""
    interval: tuple[float, float] | None
    """Simultaneous interval: the rankings that the paired tests leave possible; None like ``bootstrap``."""
    same: int
    """Pairs of methods in the same order in both settings, both orders significant."""
    opposite: int
    """Pairs with opposite orders, both significant."""
    undecided: int


class AverageRanks(NamedTuple):
    """Ranks of methods within blocks, averaged over the blocks."""

    ranks: dict[str, float]
    """By method; 1 is the best, and equal scores of a block share the mean of their ranks."""
    p_value: float | None
    """Of the Friedman test that all methods rank alike (chi-squared approximation); None for two methods."""


def average_ranks(blocks: Sequence[Mapping[str, float]]) -> AverageRanks:
    """Average ranks and Friedman's test (Demšar 2006); every block has a score of each method, higher is better.

    The test takes blocks as independent, which those of one dataset are not.  Raises :class:`BadValue` for fewer than
    two blocks or methods, or for blocks with other methods than the first.
    """
    from scipy import stats

    methods = list(blocks[0]) if blocks else []
    if len(blocks) < 2 or len(methods) < 2 or any(set(block) != set(methods) for block in blocks):
        raise BadValue(
            f"Average ranks got {len(blocks)} blocks of {len(methods)} methods, expected at least 2 of each, and the "
            "same methods in every block.",
            "leave out incomplete blocks",
        )
    scores = np.array([[block[name] for name in methods] for block in blocks], dtype=np.float64)
    means = stats.rankdata(-scores, axis=1).mean(axis=0)
    ranks = dict(zip(methods, means.tolist(), strict=True))
    if len(methods) == 2:
        return AverageRanks(ranks, None)
    if (means == means[0]).all():  # undefined where every block is one tie
        return AverageRanks(ranks, 1.0)
    return AverageRanks(ranks, float(stats.friedmanchisquare(*scores.T).pvalue))


def rank_intervals(values: Values) -> dict[str, tuple[int, int]]:
    """The ranks (1 is the best) that each method may have, with a joint confidence of 95 % for all methods.

    A method's best rank is one more than the number of methods that are significantly better, its worst rank leaves out
    those that are significantly worse (Mogstad, Romano, Shaikh and Wilhelm 2024), by :func:`compare_all`.
    """
    better, worse = dict.fromkeys(values, 0), dict.fromkeys(values, 0)
    for pair in compare_all(values):
        for name, sign in ((pair.first, pair.sign()), (pair.second, -pair.sign())):
            better[name] += sign < 0
            worse[name] += sign > 0
    return {name: (1 + better[name], len(values) - worse[name]) for name in values}


def on_shared_seeds(*settings: Values) -> list[dict[str, dict[Hashable, float]]]:
    """The results of each setting on those seeds that all methods have in all settings, in one order of the seeds."""
    everything = [results for values in settings for results in values.values()]
    shared = [seed for seed in next(iter(everything), {}) if all(seed in results for results in everything)]
    return [{name: {seed: results[seed] for seed in shared} for name, results in each.items()} for each in settings]


def rank_bootstrap(values: Values, draws: int = 2000) -> dict[str, tuple[int, int]]:
    """Lowest and highest rank of each method in the middle 95 % of rankings when seeds are drawn anew.

    All methods need the same seeds in the same order (:func:`on_shared_seeds`).  The interval describes how far ranks
    move with the seeds.  It is not a confidence interval: where methods are close, it leaves out the true rank of the
    extreme ones too often, which :func:`rank_intervals` does not.  Raises :class:`BadValue` for fewer than
    :data:`MIN_SEEDS` seeds.
    """
    scores = _matrix(values)
    if len(scores) < MIN_SEEDS:
        raise BadValue(f"A bootstrap over seeds got {len(scores)}, expected at least {MIN_SEEDS} seeds.")
    low, high = _middle(_ranks(_resampled_means(scores, draws))).astype(int).tolist()
    return {name: (low[place], high[place]) for place, name in enumerate(values)}


def ranking_agreement(first: Values, second: Values, *, draws: int = 2000) -> RankingAgreement:
    """Kendall's tau (tau-a: a tied pair counts zero) between the rankings by mean in two settings, with intervals.

    Both settings need the same methods, at least two; seeds that all methods have in both settings count.  The
    bootstrap draws seeds jointly for all methods and both settings; like :func:`rank_bootstrap` it describes.  The
    simultaneous ``interval`` holds the true tau with a probability of at least 95 %: pairs of methods that
    Holm's correction over both settings separates in both are fixed, and every other pair may go either way.
    """
    if set(first) != set(second) or len(first) < 2:
        raise BadValue(
            f"Two rankings are of {len(first)} and {len(second)} methods, expected the same ones, at least 2.",
            "compare the methods that both settings have",
        )
    both = on_shared_seeds(first, {name: second[name] for name in first})
    one, other = map(_matrix, both)
    if not len(one):
        raise BadValue("The methods to rank share no seed, expected at least 1.", "run them on the same seeds")
    tau = float(_tau(one.mean(0), other.mean(0)))
    pairs = len(first) * (len(first) - 1) // 2
    if len(one) < MIN_SEEDS:
        return RankingAgreement(tau, None, None, 0, 0, pairs)
    signs = [[pair.sign() for pair in family] for family in families(both)]
    products = [a * b for a, b in zip(*signs, strict=True)]
    same, opposite = products.count(1), products.count(-1)
    undecided = pairs - same - opposite
    drawn = _resampled_means(np.concatenate([one, other], axis=1), draws)
    low, high = _middle(_tau(drawn[:, : len(first)], drawn[:, len(first) :])).tolist()
    interval = ((same - opposite - undecided) / pairs, (same - opposite + undecided) / pairs)
    return RankingAgreement(tau, (low, high), interval, same, opposite, undecided)


def _matrix(values: Values) -> NDArray[np.float64]:
    """The results as (seeds, methods)."""
    return np.array([list(results.values()) for results in values.values()], dtype=np.float64).T


def _middle(drawn: NDArray[Any]) -> NDArray[Any]:
    """Ends of the middle 95 % of what was drawn, along the first dimension."""
    ends: NDArray[Any] = np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2], axis=0, method="inverted_cdf")
    return ends


def _resampled_means(scores: NDArray[np.float64], draws: int) -> NDArray[np.float64]:
    """Means of all columns over resampled seeds: (draws, columns).

    A multiplier bootstrap: a draw weights the residuals of each seed by a standard normal number, for all columns
    alike, and scales them so that each column, and each difference of columns, has its t distribution.  Resampling
    whole seeds would understate the spread: three seeds have ten different resamples.
    """
    count = len(scores)
    stream = np.random.default_rng(derive(0, "bootstrap", count, scores.shape[1]))
    centre = scores.mean(axis=0)
    scale = np.sqrt((count - 1) / stream.chisquare(count - 1, draws)) / np.sqrt(count * (count - 1))
    means: NDArray[np.float64] = centre + scale[:, None] * (stream.standard_normal((draws, count)) @ (scores - centre))
    return means


def _ranks(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ranks along the last dimension; the highest score has rank 1, and equal ones share the better rank."""
    from scipy import stats

    ranks: NDArray[np.int64] = stats.rankdata(-scores, method="min", axis=-1).astype(np.int64)
    return ranks


def _tau(first: NDArray[np.float64], second: NDArray[np.float64]) -> Any:
    """Kendall's tau-a along the last dimension."""
    one, other = np.triu_indices(first.shape[-1], 1)
    signs = [np.sign(scores[..., one] - scores[..., other]) for scores in (first, second)]
    return (signs[0] * signs[1]).mean(axis=-1)


def ranking(values: Values) -> dict[str, int]:
    """Rank of each method by its mean; 1 is the best, and equal means share the better rank."""
    ranks = _ranks(np.array([mean(list(results.values())) for results in values.values()]))
    return dict(zip(values, ranks.tolist(), strict=True))
