"""All pairs of methods: against scipy's paired test, and error rates on simulated data with 3 and 5 seeds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rd3.comparisons import compare_all, families
from rd3.stats import holm

METHODS = "abcde"


def drawn(seeds: int, effects=(0.0,) * 5, key: int = 0, count: int = 2000):
    """``count`` tables of results: methods share a seed's effect, as those of one set of initial weights do."""
    draw = np.random.default_rng([seeds, key])
    scores = draw.normal(0, 2, (count, seeds, 1)) + draw.normal(0, 1, (count, seeds, len(effects))) + np.array(effects)
    return [{name: dict(enumerate(table[:, i].tolist())) for i, name in enumerate(METHODS)} for table in scores]


def test_p_values_are_scipys_paired_tests_after_holm():
    [values] = drawn(5, effects=(0, 1, 2, 4, 8), count=1)
    pairs = list(itertools.combinations(METHODS, 2))
    raw = [scipy_stats.ttest_rel(list(values[a].values()), list(values[b].values())).pvalue for a, b in pairs]
    found = compare_all(values)
    assert [(one.first, one.second) for one in found] == pairs
    assert [one.difference.p_value for one in found] == pytest.approx(raw)
    assert [one.adjusted for one in found] == pytest.approx(holm(raw).tolist())
    assert found[3].difference.mean == pytest.approx(
        np.mean(list(values["a"].values())) - np.mean(list(values["e"].values()))
    )


def test_only_shared_seeds_count_and_fewer_than_three_are_not_tested():
    values = {
        "a": {0: 1.0, 1: 2.0, 2: 4.0, 3: 4.0},
        "b": {3: 9.0, 2: 7.0, 1: 6.0, 7: 100.0},
        "c": {0: 1.0, 1: 2.0},
    }
    one, two, three = compare_all(values)
    assert (one.shared, two.shared, three.shared) == (3, 2, 1)
    assert one.adjusted == pytest.approx(scipy_stats.ttest_rel([2, 4, 4], [6, 7, 9]).pvalue)  # a family of one test
    assert one.verdict() == "different"
    assert (two.verdict(), two.difference, two.adjusted) == ("not tested", None, None)


@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_methods_are_told_apart_in_six_of_a_hundred_tables_at_most(seeds):
    wrong = [any(one.separated() for one in compare_all(values)) for values in drawn(seeds)]
    assert np.mean(wrong) <= 0.06


@pytest.mark.parametrize("seeds", [3, 5])
def test_with_some_methods_apart_the_equal_ones_still_are(seeds):
    equal = {frozenset(pair) for pair in itertools.combinations("abc", 2)}
    wrong = [
        any(one.separated() and {one.first, one.second} in equal for one in compare_all(values))
        for values in drawn(seeds, effects=(0, 0, 0, 60, 120))
    ]
    assert np.mean(wrong) <= 0.06


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("accuracy", [0.5, 0.99])
def test_accuracies_of_few_test_images_are_not_told_apart_either(seeds, accuracy):
    # 340 images: near 100 %, three differences of one image each are no rarity.
    scores = np.random.default_rng(seeds).binomial(340, accuracy, (2000, seeds, len(METHODS))) / 3.4
    tables = [{name: dict(enumerate(table[:, i].tolist())) for i, name in enumerate(METHODS)} for table in scores]
    assert np.mean([any(one.separated() for one in compare_all(values)) for values in tables]) <= 0.06


def test_differences_without_any_spread_are_not_tested():
    values = {"a": {0: 57.6, 1: 54.7, 2: 49.7}, "b": {0: 57.3, 1: 54.4, 2: 49.4}, "c": {0: 57.6, 1: 54.7, 2: 49.7}}
    found = {(one.first, one.second): one.verdict() for one in compare_all(values, bound=1.0)}
    assert found == {("a", "b"): "not tested", ("a", "c"): "equivalent", ("b", "c"): "not tested"}


def test_equivalence_within_a_bound_is_more_than_no_difference():
    near = {"a": {0: 40.0, 1: 41.0, 2: 42.0, 3: 41.5}, "b": {0: 40.1, 1: 40.9, 2: 42.1, 3: 41.4}}
    assert [one.verdict() for one in compare_all(near)] == ["equal within noise"]
    [within] = compare_all(near, bound=1.0)
    assert within.verdict() == "equivalent"
    sides = [[*near[name].values()] for name in "ab"]
    above = scipy_stats.ttest_1samp(np.subtract(*sides), -1, alternative="greater").pvalue
    below = scipy_stats.ttest_1samp(np.subtract(*sides), 1, alternative="less").pvalue
    assert within.equivalent == pytest.approx(max(above, below))
    assert [one.verdict() for one in compare_all(near, bound=0.1)] == ["equal within noise"]


@pytest.mark.parametrize("seeds", [3, 5])
def test_false_claims_of_equivalence_are_rare_in_a_whole_table(seeds):
    # Every pair is exactly at the bound or beyond it.
    tables = drawn(seeds, effects=(0, 8, 16, 24, 32), key=1)
    claimed = [any(one.verdict() == "equivalent" for one in compare_all(values, bound=8)) for values in tables]
    assert np.mean(claimed) <= 0.06


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", [0.05, 0.2, 0.5, 2.0])
def test_a_difference_of_exactly_the_margin_is_rarely_taken_as_equivalent(seeds, spread):
    draw = np.random.default_rng([seeds, round(100 * spread)])
    differences = draw.normal(1.0, spread, (4000, seeds)).tolist()
    pairs = [{"a": dict(enumerate(one)), "b": dict.fromkeys(range(seeds), 0.0)} for one in differences]
    claimed = [compare_all(values, bound=1.0)[0].equivalent < 0.05 for values in pairs]
    assert np.mean(claimed) <= 0.06
    if spread <= 0.2:  # where the other side of the margin is out of reach, the error rate is that of one test
        assert np.mean(claimed) >= 0.04


@pytest.mark.parametrize(("seeds", "least"), [(3, 0.7), (5, 0.99)])
def test_equal_methods_of_little_spread_are_found_equivalent(seeds, least):
    differences = np.random.default_rng(seeds).normal(0.0, 0.3, (1000, seeds)).tolist()
    pairs = [{"a": dict(enumerate(one)), "b": dict.fromkeys(range(seeds), 0.0)} for one in differences]
    assert np.mean([compare_all(values, bound=1.0)[0].verdict() == "equivalent" for values in pairs]) >= least


def test_several_settings_are_one_family():
    first, second = drawn(5, effects=(0, 1, 2, 4, 8), count=2)
    found = families([first, second])
    raw = [one.difference.p_value for one in (*compare_all(first), *compare_all(second))]
    assert [one.adjusted for comparisons in found for one in comparisons] == pytest.approx(holm(raw).tolist())
