from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rd3 import stats
from rd3.errors import BadValue

A = [40.1, 41.3, 39.7, 42.0, 40.6]
B = [39.9, 40.8, 39.9, 41.2, 40.1]


def test_mean_and_std_by_hand():
    assert stats.mean([1, 2, 6]) == 3
    assert stats.std([1, 2, 6]) == pytest.approx(np.sqrt((4 + 1 + 9) / 2))
    assert stats.std([7.0]) is None


def test_interval_equals_scipy():
    low, high = scipy_stats.t.interval(0.95, 4, loc=np.mean(A), scale=scipy_stats.sem(A))
    assert stats.confidence_interval(A) == pytest.approx((low, high))


def test_paired_difference_equals_scipy():
    expected = scipy_stats.ttest_rel(A, B)
    interval = expected.confidence_interval(0.95)
    found = stats.paired_difference(A, B)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(np.mean(A) - np.mean(B))


def test_equivalence_is_two_one_sided_tests():
    difference = np.subtract(A, B)
    above = scipy_stats.ttest_1samp(difference, -1, alternative="greater").pvalue
    below = scipy_stats.ttest_1samp(difference, 1, alternative="less").pvalue
    found = stats.equivalence(A, B, bound=1)
    assert found == pytest.approx(max(above, below))
    assert found < 0.05 < stats.equivalence(A, B, bound=0.2)


@pytest.mark.parametrize("bound", [0.2, 0.7, 0.8, 1])
def test_equivalence_is_an_interval_within_the_bounds(bound):
    found = stats.paired_difference(A, B, confidence=0.9)
    assert (stats.equivalence(A, B, bound) < 0.05) == (found.low > -bound and found.high < bound)


def test_no_spread_at_all():
    assert stats.equivalence([1, 2, 3], [1, 2, 3], bound=0.5) == 0
    assert stats.equivalence([2, 3, 4], [1, 2, 3], bound=0.5) == 1
    assert stats.paired_difference([1, 2], [1, 2]).p_value == 1
    assert stats.paired_difference([2, 3], [1, 2]).p_value == 0
    assert stats.paired_difference([0.1 + 0.2] * 3, [0.3] * 3).p_value == 1, "equal up to rounding"


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.mean([]),
        lambda: stats.confidence_interval([1.0]),
        lambda: stats.paired_difference([1.0, 2.0], [1.0, 3.0], confidence=95),
        lambda: stats.paired_difference([1.0, 2.0], [1.0]),
        lambda: stats.equivalence([1.0, 2.0], [1.0, 2.0], bound=0),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(BadValue, match="expected"):
        call()


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_the_truth_and_the_test_keeps_its_level(seeds):
    draw = np.random.default_rng(seeds)
    shared = draw.normal(0, 2, (10000, seeds))
    first, second = (40 + shared + draw.normal(0, 1, (10000, seeds)) for _ in range(2))
    covered = [low <= 40 <= high for low, high in map(stats.confidence_interval, first)]
    assert 0.93 <= np.mean(covered) <= 0.97
    found = [stats.paired_difference(*pair) for pair in zip(first, second, strict=True)]
    assert 0.93 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.97
    assert np.mean([one.p_value < 0.05 for one in found]) <= 0.06


@pytest.mark.parametrize("seeds", [3, 5])
def test_equivalence_is_claimed_at_the_bound_in_one_of_twenty_cases_at_most(seeds):
    draw = np.random.default_rng(seeds)
    pairs = zip(draw.normal(1, 0.3, (2000, seeds)), draw.normal(0, 0.3, (2000, seeds)), strict=True)
    assert np.mean([stats.equivalence(*pair, bound=1) < 0.05 for pair in pairs]) <= 0.06


def test_holm_by_hand():
    # Holm 1979: the smallest of four times 4, the next times 3, never below the one before.
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert stats.holm([0.7, 0.6, 0.9]) == pytest.approx([1, 1, 1])
    assert stats.holm([]).size == 0


def test_holm_of_many_families_is_holm_of_each():
    p_values = np.random.default_rng(0).random((50, 6)) ** 2
    for given, got in zip(p_values, stats.holm(p_values), strict=True):
        # Reject as long as the k-th smallest is at most alpha / (m - k): the definition, for many alphas.
        for alpha in np.linspace(0.01, 0.99, 50):
            rejected = set()
            for step, index in enumerate(np.argsort(given)):
                if given[index] > alpha / (len(given) - step):
                    break
                rejected.add(int(index))
            assert rejected == set(np.flatnonzero(got <= alpha).tolist())


def test_holm_refuses_values_outside_zero_to_one():
    with pytest.raises(BadValue, match=r"not in \[0, 1\]"):
        stats.holm([0.1, float("nan")])


def test_variance_components_of_equal_groups_are_the_mean_squares():
    groups = [[40.0, 41.0, 42.5], [44.0, 47.0, 45.0], [39.0, 38.0, 41.0], [40.0, 44.0, 43.0]]
    found = stats.variance_components(groups)
    within = np.mean([np.var(group, ddof=1) for group in groups])
    assert found.within == pytest.approx(within)
    between = np.var(np.mean(groups, axis=1), ddof=1) - within / 3
    assert found.between == pytest.approx(between)
    # The F of the analysis of variance is 1 + n between / within.
    assert 1 + 3 * found.between / found.within == pytest.approx(scipy_stats.f_oneway(*groups).statistic)


@pytest.mark.parametrize("sizes", [(3, 3, 3), (5, 5, 5, 5, 5), (1, 4, 2), (5, 2, 1, 3, 3)])
def test_variance_components_are_unbiased(sizes):
    draw = np.random.default_rng(len(sizes))
    found = [
        stats.variance_components([draw.normal(40 + draw.normal(0, 2), 1, size).tolist() for size in sizes])
        for _ in range(2000)
    ]
    for truth, estimates in ((4.0, [one.between for one in found]), (1.0, [one.within for one in found])):
        error = np.std(estimates) / np.sqrt(len(estimates))
        assert abs(np.mean(estimates) - truth) < 4 * error


def test_variance_components_that_the_data_do_not_give():
    assert stats.variance_components([[1.0], [2.0], [4.0]]) == (None, None)
    between, within = stats.variance_components([[1.0, 2.0, 4.0]])
    assert between is None
    assert within == pytest.approx(np.var([1, 2, 4], ddof=1))
