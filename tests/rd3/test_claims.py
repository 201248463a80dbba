"""Verdicts on claims: against scipy's tests, and error rates on simulated data with 3 and 5 seeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rd3.claims import FAILS, HOLDS, OPEN, judge, overall
from rd3.stats import holm


def p_of(values) -> float:
    return stats.ttest_1samp(values, 0).pvalue


def test_p_values_are_scipys_with_holm_and_the_larger_one_of_two_contrasts():
    stream = np.random.default_rng(0)
    cases = [[stream.normal(3, 1, 5).tolist() for _ in range(count)] for count in (1, 2, 1, 2)]
    expected = holm([max(map(p_of, case)) for case in cases])
    assert [one.adjusted for one in judge(cases)] == pytest.approx(expected.tolist())


UP, DOWN, NOISE, NEAR = [5.0, 5.1, 4.9], [-5.0, -5.1, -4.9], [-3.0, 4.0, 0.5], [0.1, -0.1, 0.05]
SLIGHTLY_UP = [0.5, 0.51, 0.49]


@pytest.mark.parametrize(
    ("case", "verdict"),
    [
        ([UP], HOLDS),
        ([DOWN], FAILS),
        ([NOISE], OPEN),
        ([NEAR], FAILS),  # shown to be within ±1 point
        ([SLIGHTLY_UP], HOLDS),  # within ±1 point, and significantly above zero
        ([UP[:2]], OPEN),
        ([[2.0, 2.0, 2.0]], OPEN),  # no spread
        ([[1e-14, 1e-14, 2e-14], UP], OPEN),  # rounding errors of zero
        ([UP, UP], HOLDS),
        ([DOWN, DOWN], HOLDS),
        ([UP, DOWN], FAILS),
        ([UP, NOISE], OPEN),
        ([UP, NEAR], OPEN),
    ],
)
def test_the_verdict_of_a_case(case, verdict):
    assert [one.verdict for one in judge([case], bound=1.0)] == [verdict]


def test_without_a_bound_nothing_is_equivalent():
    assert [one.verdict for one in judge([[NEAR]])] == [OPEN]


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [([HOLDS, HOLDS], HOLDS), ([HOLDS, OPEN], OPEN), ([HOLDS, OPEN, FAILS], FAILS), ([], OPEN)],
)
def test_a_claim_holds_if_all_its_cases_do(verdicts, whole):
    assert overall(verdicts) == whole
    assert overall(verdicts, complete=False) == (OPEN if whole == HOLDS else whole)


@pytest.mark.parametrize("seeds", [3, 5])
def test_false_verdicts_of_equal_methods_are_rare_in_a_whole_table(seeds):
    # No difference at all: "holds" is wrong for every case.
    draws = np.random.default_rng(seeds).normal(0, 2, (2000, 6, 1, seeds)).tolist()
    assert np.mean([any(one.verdict == HOLDS for one in judge(cases, 1.0)) for cases in draws]) <= 0.06


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("first", [0.0, 8.0])
def test_two_contrasts_of_which_one_is_zero_rarely_decide(seeds, first):
    # The product of their means is zero: neither "holds" nor "does not hold" is true.
    stream = np.random.default_rng([seeds, int(first)])
    draws = np.stack([stream.normal(first, 1, (4000, seeds)), stream.normal(0, 1, (4000, seeds))], axis=1)
    assert np.mean([judge([case])[0].verdict != OPEN for case in draws.tolist()]) <= 0.06


@pytest.mark.parametrize("change", [6.0, -6.0])
def test_a_sum_and_a_difference_of_one_sign_mean_that_the_first_is_larger(change):
    noise = np.random.default_rng(1).normal(0, 0.1, (2, 5))
    larger, smaller = change + noise[0], -2 + noise[1]
    assert judge([[larger + smaller, larger - smaller]])[0].verdict == HOLDS
    assert judge([[smaller + larger, smaller - larger]])[0].verdict == FAILS
