"""Ranks and their agreement: against scipy's tau, and coverage on simulated data with 3 and 5 seeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rd3.errors import BadValue
from rd3.rankings import _resampled_means, average_ranks, rank_bootstrap, rank_intervals, ranking, ranking_agreement
from tests.rd3.test_comparisons import METHODS, drawn

EFFECTS = [(0.0, 0.1, 0.2, 0.3, 0.4), (0.0, 2.0, 4.0, 6.0, 8.0), (0.0, 40.0, 80.0, 120.0, 160.0)]
"""Methods that are close, apart by a few standard deviations, and far apart; the last one is the best."""


def test_rank_one_is_the_highest_mean_and_ties_share():
    assert ranking({"a": {0: 1.0, 1: 3.0}, "b": {0: 5.0}, "c": {0: 2.0}}) == {"a": 2, "b": 1, "c": 2}


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("effects", EFFECTS)
def test_all_true_ranks_lie_in_their_intervals(seeds, effects):
    truth = dict(zip(METHODS, (5, 4, 3, 2, 1), strict=True))
    found = [rank_intervals(values) for values in drawn(seeds, effects, key=2)]
    covered = [all(one[name][0] <= rank <= one[name][1] for name, rank in truth.items()) for one in found]
    assert np.mean(covered) >= 0.94


def test_methods_far_apart_have_one_rank_each():
    [values] = drawn(5, EFFECTS[2], count=1)
    assert rank_intervals(values) == {"a": (5, 5), "b": (4, 4), "c": (3, 3), "d": (2, 2), "e": (1, 1)}
    assert rank_bootstrap(values) == {"a": (5, 5), "b": (4, 4), "c": (3, 3), "d": (2, 2), "e": (1, 1)}


def test_resampled_means_have_students_distribution_in_columns_and_differences():
    scores = np.random.default_rng(0).normal(size=(4, 3)) * [1, 5, 2]
    means = _resampled_means(scores, 20000)
    for drawn_means, values in ((means[:, 1], scores[:, 1]), (means[:, 0] - means[:, 2], scores[:, 0] - scores[:, 2])):
        expected = scipy_stats.t(3, loc=values.mean(), scale=scipy_stats.sem(values))
        assert scipy_stats.kstest(drawn_means, expected.cdf).pvalue > 0.01


def test_resampling_is_the_same_each_time():
    [values] = drawn(3, EFFECTS[1], count=1)
    assert rank_bootstrap(values) == rank_bootstrap(values)


def test_tau_equals_scipys():
    for first, second in zip(drawn(4, count=20), drawn(4, EFFECTS[0], key=3, count=20), strict=True):
        means = [[np.mean(list(column.values())) for column in values.values()] for values in (first, second)]
        found = ranking_agreement(first, second, draws=100)
        assert found.tau == pytest.approx(scipy_stats.kendalltau(*means).statistic)
        assert found.interval[0] <= found.tau <= found.interval[1]


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("first", "second", "truth"), [(0, 0, 1), (1, 2, 1), (1, 2, -1)])
def test_the_true_tau_lies_in_its_interval(seeds, first, second, truth):
    others = EFFECTS[second][::truth]
    tables = zip(drawn(seeds, EFFECTS[first], key=4), drawn(seeds, others, key=5), strict=True)
    intervals = [ranking_agreement(*pair, draws=2).interval for pair in tables]
    assert np.mean([low <= truth <= high for low, high in intervals]) >= 0.94


def test_pairs_of_methods_far_apart_are_decided():
    [first], [second] = drawn(5, EFFECTS[2], count=1), drawn(5, (0, 40, 80, 160, 120), key=6, count=1)
    found = ranking_agreement(first, second)
    assert (found.same, found.opposite, found.undecided) == (9, 1, 0)
    assert found.tau == pytest.approx(0.8)
    assert found.interval == found.bootstrap == pytest.approx((0.8, 0.8))


def test_fewer_than_three_seeds_have_a_tau_without_an_interval():
    first, second = ({"a": {0: 1.0, 1: 2.0}, "b": {0: 3.0, 1: 4.0, 2: 0.0}} for _ in range(2))
    found = ranking_agreement(first, second)
    assert (found.tau, found.interval, found.bootstrap, found.undecided) == (1.0, None, None, 1)


@pytest.mark.parametrize(
    ("second", "match"),
    [({"a": {0: 1.0}}, "expected the same ones"), ({"a": {5: 1.0}, "b": {0: 1.0}}, "share no seed")],
)
def test_rankings_that_cannot_be_compared_are_refused(second, match):
    with pytest.raises(BadValue, match=match):
        ranking_agreement({"a": {0: 1.0}, "b": {0: 2.0}}, second)


def test_a_bootstrap_of_two_seeds_is_refused():
    with pytest.raises(BadValue, match="at least 3 seeds"):
        rank_bootstrap({name: {0: 1.0, 1: 1.0} for name in "abc"})


@pytest.mark.parametrize("blocks", [[], [{"a": 1.0, "b": 2.0}], [{"a": 1.0}] * 2, [{"a": 1.0, "b": 2.0}, {"a": 1.0}]])
def test_average_ranks_of_incomplete_blocks_are_refused(blocks):
    with pytest.raises(BadValue, match="expected at least 2 of each, and the same methods"):
        average_ranks(blocks)
