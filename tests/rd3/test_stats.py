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


def test_summary_of_one_value_claims_no_spread():
    assert stats.summary([5.0]) == (1, 5.0, None, None, None)


def test_interval_equals_scipy():
    low, high = scipy_stats.t.interval(0.95, 4, loc=np.mean(A), scale=scipy_stats.sem(A))
    assert stats.confidence_interval(A) == pytest.approx((low, high))
    assert stats.summary(A)[3:] == pytest.approx((low, high))


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
    assert found.p_value == pytest.approx(max(above, below))
    assert found.equivalent == (found.p_value < 0.05) == (found.low > -1 and found.high < 1)
    assert not stats.equivalence(A, B, bound=0.2).equivalent


def test_no_spread_at_all():
    assert stats.equivalence([1, 2, 3], [1, 2, 3], bound=0.5).p_value == 0
    assert not stats.equivalence([2, 3, 4], [1, 2, 3], bound=0.5).equivalent
    assert stats.paired_difference([1, 2], [1, 2]).p_value == 1
    assert stats.paired_difference([2, 3], [1, 2]).p_value == 0


def test_rank_stability():
    assert stats.rank_stability([[1, 2, 3], [10, 20, 30]]) == pytest.approx(1)
    assert stats.rank_stability([[1, 2, 3], [3, 2, 1]]) == pytest.approx(-1)
    # Three pairs of settings: tau 1, 1/3 and 1/3.
    assert stats.rank_stability([[1, 2, 3], [4, 5, 6], [1, 3, 2]]) == pytest.approx(5 / 9)


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.mean([]),
        lambda: stats.confidence_interval([1.0]),
        lambda: stats.paired_difference([1.0, 2.0], [1.0]),
        lambda: stats.equivalence([1.0, 2.0], [1.0, 2.0], bound=0),
        lambda: stats.rank_stability([[1, 2]]),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(BadValue, match="expected"):
        call()
